"""Rotating an API key: another in its place, and a while in which both open.

What limits the old one must hold for the new one before anybody can use it, and settings.KEY_ROTATED sees to that over
HTTP, which no transaction may wait for. So the new key is written first as one that opens nothing (keys.UNBEGUN), and
is begun at last.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.module_loading import import_string

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import ApiError, TenantRequest
from tenants.roles import SCOPES
from tenants.users.keys import SHOWN_WITHIN, UNBEGUN, facts_of, insert_key
from tenants.users.models import ApiKey


class KeyEnded(ApiError):
    status = HTTPStatus.CONFLICT
    code = "key_ended"
    message = "This key has expired or was revoked, so there is nothing to go on from. Make a new key instead."


def rotate_key(request: TenantRequest, key_id: int, *, overlap: timedelta, life: timedelta | None) -> ApiKey:
    """A key in the place of one of this member's own: same name, scopes and models. The old one goes on for `overlap`.

    Asked twice, both get the one new key. Raises ApiKey.DoesNotExist, KeyEnded, and what the hook raises: the old key
    then goes on as it was.
    """
    old, new = _replacement_of(request, key_id)
    if _has_begun(new):
        return new
    if settings.KEY_ROTATED:
        hook: Callable[[ApiKey, ApiKey], None] = import_string(settings.KEY_ROTATED)
        hook(old, new)
    with transaction.atomic(durable=True):
        # Again: it may have been revoked meanwhile, and then nothing goes on in its place.
        _begin(request, _locked(request, key_id), new, overlap=overlap, life=life)
    return new


def _replacement_of(request: TenantRequest, key_id: int) -> tuple[ApiKey, ApiKey]:
    """The key, and the one that has come in its place, or is to come."""
    with transaction.atomic(durable=True):
        old, now = _locked(request, key_id), timezone.now()
        later = old.replaced_by.filter(revoked_at=None)
        begun = later.filter(Q(expires_at=None) | Q(expires_at__gt=now)).order_by("-pk").first()
        if begun is not None:
            return old, begun
        _refuse_ended(old)
        # Of a second click, while the first one's is being made.
        if (coming := later.filter(UNBEGUN, created_at__gt=now - SHOWN_WITHIN).first()) is not None:
            return old, coming
        # Of a try that failed, and whose secret is kept no longer.
        later.filter(UNBEGUN).delete()
        scopes = SCOPES if old.scopes is None else old.scopes
        new, _ = insert_key(old.user, name=old.name, scopes=scopes, replaces=old, expires_at=now, shown_later=True)
        return old, new


def _begin(request: TenantRequest, old: ApiKey, new: ApiKey, *, overlap: timedelta, life: timedelta | None) -> None:
    now = timezone.now()
    expires_at = None if life is None else now + life
    unbegun = ApiKey.objects.filter(UNBEGUN, pk=new.pk)
    if not unbegun.exists():
        return
    _refuse_ended(old)
    # As they are now: they may have been changed since the new one was written.
    unbegun.update(expires_at=expires_at, rates=old.rates, allowed_models=old.allowed_models)
    ends_at = now + overlap
    if old.expires_at is None or old.expires_at > ends_at:
        ApiKey.objects.filter(pk=old.pk).update(expires_at=ends_at)
    new.expires_at = expires_at
    record(Event.KEY_ROTATED, request=request, target=old.name, replaces=old.prefix, **facts_of(new))


def _locked(request: TenantRequest, key_id: int) -> ApiKey:
    """Its owner's alone: who rotates a key is shown the new one."""
    keys = ApiKey.objects.select_for_update(of=("self",)).select_related("user")
    return keys.get(pk=key_id, user=request.user)


def _has_begun(key: ApiKey) -> bool:
    return key.expires_at is None or key.expires_at > key.created_at


def _refuse_ended(key: ApiKey) -> None:
    if not key.is_active:
        raise KeyEnded
