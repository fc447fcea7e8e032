"""The page of API keys, on a tenant's host: making, rotating and revoking them, and which models they may call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.module_loading import import_string
from django.views.decorators.http import require_http_methods, require_POST

from tenants.fields import focus_on_error
from tenants.http import ApiError, Forbidden, TenantRequest, say_when
from tenants.rates import in_words, lower
from tenants.roles import Action
from tenants.spelling import number_in
from tenants.users import drafts
from tenants.users.access import needs
from tenants.users.allowing import allow_key
from tenants.users.forms.keys import KeyForm, RotateForm
from tenants.users.forms.models import ModelsForm, offered_to_keys
from tenants.users.keys import create_key, forget_untaken, keys_for, may_revoke, revoke_key, take_secret
from tenants.users.models import ApiKey
from tenants.users.pages.answers import answer
from tenants.users.rates import may_set_rates
from tenants.users.rotating import rotate_key

SHOWN_KEYS = 200


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.OWN_KEYS, keeps=("name", "scopes[]", "life", "which", "models[]"))
def api_keys(request: TenantRequest) -> HttpResponse:
    """Answers a form with a redirect: a reload of what follows makes no second key and shows no secret again."""
    draft, sent = drafts.take(request, having="life"), request.POST or None
    form, models = KeyForm(sent, user=request.user, draft=draft), _models_form(request, sent, draft=draft)
    if request.method == "POST" and form.is_valid() & models.is_valid():
        facts = {**form.facts(), "allowed_models": models.chosen()}
        key, _ = create_key(request.user, **facts, shown_later=True, request=request)
        return _lead_to(key)
    return _page(request, form, models=models, status=400 if request.method == "POST" else 200)


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.OWN_KEYS)
def models(request: TenantRequest, pk: int) -> HttpResponse:
    """Which models one key may call, on a page of its own: a list on each row would make the keys' page long."""
    key = get_object_or_404(keys_for(request.user).select_related("user"), pk=pk, revoked_at=None)
    if not may_revoke(request.user, key):
        raise Forbidden("Only somebody whose role is as high as its owner’s may change this key.")
    form = _models_form(request, request.POST if request.method == "POST" else None, key)
    if request.method == "POST" and form.is_valid():
        if allow_key(request, pk, form.chosen()):
            messages.success(request, f"The models of {key.name} are changed, from its next call on.")
        return redirect("api_keys")
    return answer(request, "users/key_models.html", {"key": key, "models": form}, form)


@require_POST
@needs(Action.OWN_KEYS)
def rotate(request: TenantRequest, pk: int) -> HttpResponse:
    key = get_object_or_404(keys_for(request.user).filter(user=request.user), pk=pk)
    form = RotateForm(request.POST, key=key)
    try:
        if not form.is_valid():
            return _page(request, KeyForm(user=request.user), rotating=form, rotated=pk, status=400)
        return _lead_to(rotate_key(request, pk, **form.facts()))
    except ApiKey.DoesNotExist:
        raise Http404 from None
    except ApiError as refusal:
        return _page(request, KeyForm(user=request.user), rotating=form, rotated=pk, refusal=refusal)


@require_POST
@needs(Action.OWN_KEYS)
def revoke(request: TenantRequest, pk: int) -> HttpResponse:
    try:
        key = revoke_key(request, pk)
    except ApiKey.DoesNotExist:
        raise Http404 from None
    messages.success(request, f"{key.name} is revoked. Programs that use it are refused from now on.")
    return redirect("api_keys")


def _lead_to(key: ApiKey) -> HttpResponse:
    return redirect(f"{reverse('api_keys')}?new={key.pk}")


def _models_form(
    request: TenantRequest, data: Any = None, key: ApiKey | None = None, draft: Mapping[str, Any] | None = None
) -> ModelsForm:
    offered = offered_to_keys(request.tenant.allowed_models)
    return ModelsForm(data, offered=offered, allowed=None if key is None else key.allowed_models, draft=draft)


def _page(
    request: TenantRequest,
    form: KeyForm,
    *,
    models: ModelsForm | None = None,
    rotating: RotateForm | None = None,
    rotated: int | None = None,
    refusal: ApiError | None = None,
    status: int = 200,
) -> HttpResponse:
    focus_on_error(form)
    if models is not None and not form.errors:
        focus_on_error(models)
    forget_untaken(request.user)
    keys = list(keys_for(request.user).select_related("user").order_by("-created_at", "-pk")[:SHOWN_KEYS])
    _describe(request, keys, {rotated: rotating} if rotating else {})
    new_secret = _new_secret(request)
    context = {
        "new_secret": new_secret,
        "shown_before": None if new_secret else _just_made(request, keys),
        "form": form,
        "models": models or _models_form(request),
        "refusal": refusal,
        "keys": [key for key in keys if key.user_id == request.user.pk],
        "others": [key for key in keys if key.user_id != request.user.pk],
        "shown": SHOWN_KEYS if len(keys) == SHOWN_KEYS else None,
    }
    response = render(request, "users/keys.html", context, status=refusal.status if refusal else status)
    if refusal:
        say_when(response, refusal)
    return response


def _describe(request: TenantRequest, keys: Sequence[Any], posted: dict[Any, RotateForm]) -> None:
    """What each row shows beside the key itself."""
    beside = import_string(settings.KEYS_BESIDE)(request, keys)
    # Their order is the newest first, so a key's last replacement stays.
    several = len(offered_to_keys(request.tenant.allowed_models)) > 1
    replacements = {key.replaces_id: key for key in reversed(keys) if key.is_active}
    for key in keys:
        key.beside = beside.get(key.pk, "")
        key.replacement = replacements.get(key.pk)
        key.rates_in_words = in_words(lower(key.rates, settings.KEY_RATES)) if key.is_active else []
        key.can_be_rated = may_set_rates(request.user, key)
        key.can_be_revoked = key.is_active and may_revoke(request.user, key)
        key.models_can_be_set = key.can_be_revoked and (several or key.allowed_models is not None)
        is_own = key.user_id == request.user.pk
        if is_own and key.is_active and key.replacement is None:
            key.rotate_form = posted.get(key.pk) or RotateForm(key=key)


def _just_made(request: TenantRequest, keys: Sequence[ApiKey]) -> ApiKey | None:
    """The key whose page this is, where its secret was taken by another request: of a form that was sent twice, or of
    this page before a reload. Whoever has not seen it is to know that it does not come.
    """
    new = number_in(request.GET.get("new", ""))
    own = (key for key in keys if key.pk == new and key.user_id == request.user.pk and key.is_active)
    return next(own, None)


def _new_secret(request: TenantRequest) -> str | None:
    """Each form leads to its own key's page, so that two tabs each show their own."""
    new = number_in(request.GET.get("new", ""))
    return take_secret(request.user, new) if request.method == "GET" and new is not None else None
