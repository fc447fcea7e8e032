"""Find my workspaces, on the bare host. Each answer is the same, whoever is asked for (tenants.users.finding)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from tenants.fields import focus_on_error
from tenants.http import RateLimited, say_when
from tenants.users.finding import ask_for_workspaces
from tenants.users.forms.finding import AddressForm


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
    status, refusal = 400 if request.method == "POST" else 200, None
    if request.method == "POST" and form.is_valid():
        try:
            ask(form.cleaned_data["email"])
            return redirect(then)
        except RateLimited as exc:
            status, refusal = exc.status, exc
            form.add_error(None, exc.message)
    focus_on_error(form)
    response = render(request, page, {"form": form, **context}, status=status)
    if refusal:
        say_when(response, refusal)
    return response
