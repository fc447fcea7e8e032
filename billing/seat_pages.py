"""The page on which a member's or a key's limit is set, changed and taken away, on a tenant's host.

The rows of the members' and the keys' pages post here, and what is wrong with what was typed is said here. Owns no
rule: tenants.roles says who may, billing.seats does it.
"""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.db.models.functions import Now
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from billing.errors import AuthorityUnavailable, BudgetError, LimitNotSet
from billing.forms import LimitForm
from billing.money import usd
from billing.seats import Beside, read_keys, read_members, remove_limit, set_limit
from tenants.fields import focus_on_error
from tenants.http import ApiError, Forbidden, TenantRequest, say_when
from tenants.roles import Action
from tenants.users.access import needs
from tenants.users.models import ApiKey, User

NOT_KNOWN = "The budget authority did not answer, so it is not known whether the limit was changed. Send it again."


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.SET_LIMITS)
def member_limit(request: TenantRequest, pk: int) -> HttpResponse:
    return _limit(request, _member(pk))


@require_POST
@needs(Action.SET_LIMITS)
def remove_member_limit(request: TenantRequest, pk: int) -> HttpResponse:
    return _remove(request, _member(pk))


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.SET_LIMITS)
def key_limit(request: TenantRequest, pk: int) -> HttpResponse:
    return _limit(request, _key(pk))


@require_POST
@needs(Action.SET_LIMITS)
def remove_key_limit(request: TenantRequest, pk: int) -> HttpResponse:
    return _remove(request, _key(pk))


def _member(pk: int) -> User:
    return get_object_or_404(User, pk=pk, is_active=True)


def _key(pk: int) -> ApiKey:
    return get_object_or_404(ApiKey.objects.exclude(expires_at__lte=Now()), pk=pk, revoked_at=None)


def _limit(request: TenantRequest, whose: User | ApiKey) -> HttpResponse:
    seat = _seat(request, whose)
    form = LimitForm(request.POST) if request.method == "POST" else seat.form
    if request.method != "POST" or not form.is_valid():
        return _page(request, seat, form)
    amount = form.cleaned_data["amount"]
    try:
        set_limit(request, whose, amount)
    except (BudgetError, LimitNotSet) as refusal:
        return _page(request, seat, form, refusal)
    each = " in each feature" if isinstance(whose, ApiKey) else ""
    messages.success(request, f"{seat.name} may spend ${usd(amount)}{each} in each period.")
    return redirect(f"/settings/{seat.kind}/")


def _remove(request: TenantRequest, whose: User | ApiKey) -> HttpResponse:
    seat = _seat(request, whose)
    try:
        remove_limit(request, whose)
    except (BudgetError, LimitNotSet) as refusal:
        return _page(request, seat, seat.form, refusal)
    messages.success(request, f"{seat.name} has no limit now, beside the workspace's own budget.")
    return redirect(f"/settings/{seat.kind}/")


def _seat(request: TenantRequest, whose: User | ApiKey) -> Beside:
    """Raises Forbidden where the role of who asks does not reach so far: nobody limits who stands above them."""
    (seat,) = read_keys(request, [whose]) if isinstance(whose, ApiKey) else read_members(request, [whose])
    if not seat.may_set:
        raise Forbidden("Only somebody whose role is as high may limit this member, or their keys.")
    return seat


def _page(request: TenantRequest, seat: Beside, form: LimitForm, refusal: ApiError | None = None) -> HttpResponse:
    if refusal is not None:
        form = form if form.is_bound else LimitForm({}, use_required_attribute=False)
        form.errors.clear()
        form.add_error(None, NOT_KNOWN if isinstance(refusal, AuthorityUnavailable) else refusal.message)
    focus_on_error(form)
    context: dict[str, Any] = {"seat": seat, "form": form}
    status = refusal.status if refusal else 400 if form.errors else 200
    response = render(request, "billing/limit.html", context, status=status)
    if refusal:
        say_when(response, refusal)
    return response
