"""The ways in on the bare host: name the workspace, or have the ones that one is in sent by mail.

Each answer is the same, whoever is asked for (tenants.users.finding), and whether there is such a workspace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from tenants.hosts import url_for
from tenants.http import RateLimited
from tenants.users.finding import ask_for_workspaces
from tenants.users.forms.finding import AddressForm, WorkspaceForm
from tenants.users.pages.answers import answer


@require_http_methods(["GET", "HEAD", "POST"])
def choose(request: HttpRequest) -> HttpResponse:
    """To the log-in of the workspace that is named. Whether there is one, that address says."""
    form = WorkspaceForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        return redirect(url_for(form.cleaned_data["slug"], "/login/"))
    return answer(request, "users/choose.html", {"form": form}, form)


@require_http_methods(["GET", "HEAD", "POST"])
def find(request: HttpRequest) -> HttpResponse:
    return ask_for_mail(
        request, lambda email: ask_for_workspaces(request, email), page="users/find.html", then="find_sent"
    )


@require_safe
def sent(request: HttpRequest) -> HttpResponse:
    return render(request, "users/find_sent.html")


def ask_for_mail(
    request: HttpRequest, ask: Callable[[str], None], *, page: str, then: str, **context: Any
) -> HttpResponse:
    """A form of one address: `ask`, which may raise RateLimited, and on to `then`."""
    form = AddressForm(request.POST or None)
    refusal = None
    if request.method == "POST" and form.is_valid():
        try:
            ask(form.cleaned_data["email"])
            return redirect(then)
        except RateLimited as exc:
            refusal = exc
            form.add_error(None, exc.message)
    return answer(request, page, {"form": form, **context}, form, refusal)
