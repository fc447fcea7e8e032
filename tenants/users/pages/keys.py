"""The page of API keys, on a tenant's host."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from tenants.fields import focus_on_error
from tenants.http import TenantRequest
from tenants.roles import Action
from tenants.users.access import needs
from tenants.users.forms.keys import KeyForm
from tenants.users.keys import create_key, forget_untaken, take_secret
from tenants.users.models import ApiKey


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.OWN_KEYS)
def api_keys(request: TenantRequest) -> HttpResponse:
    """Answers a form with a redirect: a reload of what follows makes no second key and shows no secret again."""
    form = KeyForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        key, _ = create_key(request.user, name=form.cleaned_data["name"], shown_later=True)
        return redirect(f"{reverse('api_keys')}?new={key.pk}")
    focus_on_error(form)
    forget_untaken(request.user)
    context = {
        "new_secret": _new_secret(request),
        "form": form,
        "keys": ApiKey.objects.filter(user=request.user).order_by("-created_at", "-pk"),
    }
    return render(request, "users/keys.html", context, status=400 if form.errors else 200)


def _new_secret(request: TenantRequest) -> str | None:
    """Each form leads to its own key's page, so that two tabs each show their own."""
    new = request.GET.get("new", "")
    is_asked_for = request.method == "GET" and new.isascii() and new.isdigit() and len(new) < 19
    return take_secret(request.user, int(new)) if is_asked_for else None


@require_POST
@needs(Action.OWN_KEYS)
def revoke_key(request: TenantRequest, pk: int) -> HttpResponse:
    get_object_or_404(ApiKey, pk=pk, user=request.user).revoke()
    return redirect("api_keys")
