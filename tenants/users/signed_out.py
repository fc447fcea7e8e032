"""The answer to whoever asks for something and is signed out, and to a form that is older than the browser's log-in.

Owns where they are led and what they are told: to log-in and back, with what they had typed where the view keeps it.
Must not let anything happen that such a form asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render, resolve_url

from tenants.http import TenantRequest
from tenants.typed import is_from_here
from tenants.users import drafts
from tenants.users.auth import is_signed_in
from tenants.users.entering import safe_target
from tenants.users.forms.signing_in import LoginForm

SIGNED_OUT = "You are signed out, so nothing was changed. Log in, and do it again."
KEPT = "You are signed out. Log in, and what you typed is still here."
OLDER = "You had logged in anew since this page was opened, so nothing was sent. What you typed is here: send it again."


View = TypeVar("View", bound=Callable[..., Any])


def way_in(view: View) -> View:
    """A form that logs somebody in: sent twice, it goes where the first one went."""
    view.is_a_way_in = True  # type: ignore[attr-defined]
    return view


def signed_out(request: TenantRequest, keeps: tuple[str, ...] = ()) -> HttpResponse:
    """To log-in and back; what came by POST is not done, and its fields in `keeps` wait on the log-in page."""
    if request.method in ("GET", "HEAD"):
        return redirect_to_login(request.get_full_path(), resolve_url(settings.LOGIN_URL))
    if draft := drafts.typed(request, keeps):
        return log_in_page(
            request,
            LoginForm(request=request),
            target=came_from(request),
            draft=drafts.pack(request, draft),
            status=401,
        )
    messages.info(request, SIGNED_OUT)
    return redirect_to_login(came_from(request), resolve_url(settings.LOGIN_URL))


def log_in_page(
    request: TenantRequest, form: LoginForm, *, target: str, draft: str = "", refusal: str = "", status: int = 200
) -> HttpResponse:
    """`refusal`: why another way than this form's did not let them in."""
    context = {"form": form, "next": target, "draft": draft, "kept": KEPT if draft else "", "refusal": refusal}
    return render(request, "users/login.html", context, status=status)


def older_form(request: TenantRequest) -> HttpResponse:
    """A form whose token is not this browser's any more, or never was: it logged in or out since, or keeps no cookies.

    One that comes from another site gets the page alone, whatever it has in it.
    """
    if request.tenant is not None and is_from_here(request):
        view = request.resolver_match.func if request.resolver_match else None
        if is_signed_in(request) and getattr(view, "is_a_way_in", False):
            # Sent twice: the first one has logged them in, and has changed the token.
            return redirect(safe_target(request.POST.get("next", "")))
        keeps: tuple[str, ...] = getattr(view, "keeps", ())
        if draft := drafts.typed(request, keeps):
            if not is_signed_in(request):
                return signed_out(request, keeps)
            drafts.keep_typed(request, draft)
            messages.info(request, OLDER)
            return redirect(came_from(request))
    return render(request, "users/older_form.html", {"back": came_from(request)}, status=403)


def came_from(request: HttpRequest) -> str:
    """The page that the form stood on, a path of this host; else the form's own address, which mostly is that page."""
    page = urlsplit(request.headers.get("Referer", ""))
    if page.netloc != request.get_host():
        return request.get_full_path()
    return safe_target(page._replace(scheme="", netloc="", fragment="").geturl())
