"""Log-in, log-out and the hand-off's landing place, on a tenant's host."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth import logout
from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.fields import focus_on_error
from tenants.hosts import origin_of
from tenants.http import TenantRequest, say_when
from tenants.models import Domain
from tenants.users import drafts
from tenants.users.browsers import forget_session
from tenants.users.entering import let_in, safe_target
from tenants.users.forms.signing_in import LoginForm
from tenants.users.guesses import Guess
from tenants.users.handoff import redeem_token
from tenants.users.pages.answers import looked_at
from tenants.users.signed_out import log_in_page, way_in


@require_http_methods(["GET", "HEAD", "POST"])
@way_in
def log_in(request: TenantRequest) -> HttpResponse:
    target = request.POST.get("next") or request.GET.get("next") or ""
    if request.method != "POST" and request.user.is_authenticated:
        return redirect(safe_target(target))
    form = LoginForm(request.POST or None, request=request)
    draft = request.POST.get("draft", "")
    # Who must wait is told on the form, and so loses neither the way nor the address.
    is_right, refusal = looked_at(request, form)
    if is_right:
        response = let_in(request, form.user, method="password", target=target)
        drafts.keep(request, draft)
        return response
    focus_on_error(form)
    status = refusal.status if refusal else 400 if request.method == "POST" else 200
    response = log_in_page(request, form, target=target, draft=draft, status=status)
    if refusal:
        say_when(response, refusal)
    return response


@require_POST
def log_out(request: TenantRequest) -> HttpResponse:
    with transaction.atomic(durable=True):
        if request.user.is_authenticated:
            record(Event.LOGGED_OUT, request=request)
            forget_session(request.session.session_key)
        logout(request)
    return redirect("login")


@csrf_exempt  # the token is the proof, and the form comes from another host; its Origin is checked instead
@require_POST
def welcome(request: TenantRequest) -> HttpResponse:
    """Signs in whoever has just signed up on the bare host, or has just moved the workspace here."""
    found = None
    if _comes_from_where_tokens_are_given(request):
        found = redeem_token(request.POST.get("token", ""))
    if found is None:
        response = render(request, "users/welcome_failed.html", status=400)
    else:
        user, proven_at = found
        # Else strangers could keep a new owner out from the first log-in.
        Guess.of(request, user.email).remember()
        method = "sign-up" if request.headers["Origin"] == settings.SITE_URL else "new address"
        target = request.POST.get("next", "")
        response = let_in(request, user, method=method, target=target, proven_at=proven_at)
    response["Referrer-Policy"] = "no-referrer"
    return response


def _comes_from_where_tokens_are_given(request: TenantRequest) -> bool:
    """The bare host, or an earlier address of this very workspace: no neighbour's page can log anybody in here."""
    origin = request.headers.get("Origin")
    if origin is None or origin == settings.SITE_URL:
        return origin is not None
    earlier = Domain.objects.filter(tenant_id=request.tenant.pk, is_primary=False)
    return any(origin == origin_of(host) for host in earlier.values_list("domain", flat=True))
