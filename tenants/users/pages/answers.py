"""What pages with a form have in common: how a form that may have to wait is looked at, and how it comes back."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from tenants.fields import focus_on_error
from tenants.http import ApiError, RateLimited, say_when


def looked_at(request: HttpRequest, form: forms.Form) -> tuple[bool, RateLimited | None]:
    """Whether it was sent and is right. Who must wait is told on the form, and loses nothing of what was typed."""
    try:
        return request.method == "POST" and form.is_valid(), None
    except RateLimited as exc:
        form.add_error(None, exc.message)
        return False, exc


def answer(
    request: HttpRequest,
    template: str,
    context: dict[str, Any],
    form: forms.Form | None,
    refusal: ApiError | None = None,
) -> HttpResponse:
    """The page, with a form to be filled in or mended. Where it has several, `form` is the one that was sent."""
    if form is not None:
        focus_on_error(form)
    status = refusal.status if refusal else 400 if request.method == "POST" else 200
    response = render(request, template, context, status=status)
    if refusal:
        say_when(response, refusal)
    return response
