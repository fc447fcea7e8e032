"""The page of how much a key may ask for, on a tenant's host."""

from __future__ import annotations

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods

from tenants.http import TenantRequest
from tenants.rates import in_words
from tenants.roles import Action
from tenants.users.access import needs
from tenants.users.forms.rates import RatesForm
from tenants.users.models import ApiKey
from tenants.users.pages.answers import answer
from tenants.users.rates import key_to_rate, set_rates


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.SET_LIMITS)
def key_rates(request: TenantRequest, pk: int) -> HttpResponse:
    try:
        key = key_to_rate(request.user, pk)
    except ApiKey.DoesNotExist:
        raise Http404 from None
    form = RatesForm(request.POST if request.method == "POST" else None, key=key)
    if not form.is_valid():
        return answer(request, "users/key_rates.html", {"form": form, "key": key}, form)
    if set_rates(request, key, form.rates()):
        messages.success(request, f"{key.name} {_said(form.rates())}")
    return redirect("api_keys")


def _said(rates: dict[str, int]) -> str:
    words = in_words(rates)
    return f"may ask for {', '.join(words)} at most." if words else "has no rates of its own now."
