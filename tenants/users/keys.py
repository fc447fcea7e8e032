"""API keys: how one is spelled, making and revoking them, showing a secret once, reading one off a request.

`<brand>_<tenant>_<prefix>_<secret>`: the tenant's public id lets a program ask on the bare host with its key alone; the
prefix is what a key is found and shown by. Whose a key is, and whether it counts: tenants.resolve.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.context import tenant_or_public
from tenants.http import Forbidden, TenantRequest
from tenants.roles import SCOPES, Action, may_act_on
from tenants.sealing import seal, unseal
from tenants.users.models import ApiKey, User

SHOWN_WITHIN = timedelta(minutes=10)
# An operator's, of the public schema, where no tenant is.
NO_TENANT = "0" * 12
_SIGNS = string.ascii_letters + string.digits
_PREFIX_LENGTH = 8
# Any brand: when an operator changes it, keys that were made before go on.
_KEY = re.compile(r"[a-z0-9]{1,12}_([0-9a-f]{12})_([A-Za-z0-9]{8})_[A-Za-z0-9_-]{43}")
# A key of before said nothing of its tenant, and was found by its first signs, `tk_` among them.
_OLD_PREFIX_LENGTH = 11
# A replacement that opens nothing yet, for its life ends as it begins: see tenants.users.rotating.
UNBEGUN = Q(expires_at__isnull=False, expires_at__lte=F("created_at"))


# --- how a key is spelled --------------------------------------------------------------------------------------------


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def tenant_of(secret: str) -> str | None:
    """The public id of the tenant that a key names; None for an old key, and for what is no key."""
    found = _KEY.fullmatch(secret)
    return found[1] if found else None


def prefix_of(secret: str) -> str:
    found = _KEY.fullmatch(secret)
    return found[2] if found else secret[:_OLD_PREFIX_LENGTH]


def bearer_secret(request: HttpRequest) -> str | None:
    """What `Authorization: Bearer …` carries: None without the header, "" where it cannot be a key."""
    header = request.META.get("HTTP_AUTHORIZATION")
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    usable = scheme.lower() == "bearer" and secret.isascii() and secret.isprintable() and len(secret) <= 200
    return secret.strip() if usable else ""


# --- making ----------------------------------------------------------------------------------------------------------


def create_key(
    user: User,
    *,
    name: str,
    scopes: Sequence[str] = SCOPES,
    expires_at: datetime | None = None,
    allowed_models: list[str] | None = None,
    shown_later: bool = False,
    request: HttpRequest | None = None,
    via: str = "job",
) -> tuple[ApiKey, str]:
    """A new key and its secret: 256 random bits, shown once. `shown_later`: by `take_secret`, sealed until then. The
    same asked for again before it was shown is the same key.

    `via` is for the trail, where there is no request.
    """
    with transaction.atomic():
        limits: dict[str, Any] = {"expires_at": expires_at, "allowed_models": allowed_models}
        if shown_later and (key := _untaken(user, name=name, scopes=[str(scope) for scope in scopes], **limits)):
            return key, unseal(key.sealed_secret)
        key, secret = insert_key(user, name=name, scopes=scopes, shown_later=shown_later, **limits)
        facts = facts_of(key) if allowed_models is None else {**facts_of(key), "models": allowed_models}
        record(Event.KEY_MADE, request=request, via="" if request else via, target=name, **facts)
    return key, secret


def _untaken(user: User, *, expires_at: datetime | None, **facts: Any) -> ApiKey | None:
    """The key that the same form has made just now and nobody was shown: after a second one, nobody would have it.

    A form is sent twice by a double click without script, and once more where the answer to the first one was lost.
    """
    User.objects.select_for_update(no_key=True).get(pk=user.pk)  # of two at once the second finds the first one's
    since = timezone.now() - SHOWN_WITHIN
    made = ApiKey.objects.filter(user=user, replaces=None, revoked_at=None, created_at__gt=since)
    for key in made.exclude(sealed_secret="").order_by("-pk"):
        if all(getattr(key, name) == value for name, value in facts.items()) and _end_alike(key.expires_at, expires_at):
            return key
    return None


def _end_alike(one: datetime | None, other: datetime | None) -> bool:
    """Of the same choice of a life, made within the time in which a key may still be shown."""
    if one is None or other is None:
        return one is other
    return abs(one - other) < SHOWN_WITHIN


def insert_key(user: User, *, shown_later: bool, scopes: Sequence[str], **fields: Any) -> tuple[ApiKey, str]:
    tenant = tenant_or_public()
    prefix = "".join(secrets.choice(_SIGNS) for _ in range(_PREFIX_LENGTH))
    secret = "_".join(
        [settings.KEY_BRAND, tenant.public_id if tenant else NO_TENANT, prefix, secrets.token_urlsafe(32)]
    )
    key = ApiKey.objects.create(
        user=user,
        prefix=prefix,
        digest=digest(secret),
        scopes=[str(scope) for scope in scopes],
        sealed_secret=seal(secret) if shown_later else "",
        **fields,
    )
    return key, secret


def facts_of(key: ApiKey) -> dict[str, Any]:
    """What the trail says of a key beside its name."""
    expires = key.expires_at.isoformat() if key.expires_at else None
    return {"key": key.pk, "prefix": key.prefix, "owner": key.user.email, "scopes": key.scopes, "expires_at": expires}


def take_secret(user: User, key_id: int) -> str | None:
    """The secret of a key that this member has just made, the first time it is asked for; None ever after."""
    slot = ApiKey.objects.filter(pk=key_id, user=user, created_at__gt=timezone.now() - SHOWN_WITHIN)
    sealed = slot.exclude(UNBEGUN).values_list("sealed_secret", flat=True).first()
    if not sealed:
        return None
    secret = unseal(sealed)  # first, for where that fails the slot must keep it
    # Of two that read it, one empties it.
    return secret if slot.filter(sealed_secret=sealed).update(sealed_secret="") == 1 else None


def forget_untaken(user: User) -> None:
    """What was never shown in its time, for its page never came, is not kept."""
    stale = ApiKey.objects.filter(user=user, created_at__lte=timezone.now() - SHOWN_WITHIN)
    stale.exclude(sealed_secret="").update(sealed_secret="")


# --- revoking --------------------------------------------------------------------------------------------------------


def keys_for(user: User) -> QuerySet[ApiKey]:
    """The keys that a member may see: their own, or everybody's."""
    shown = ApiKey.objects.exclude(UNBEGUN)
    return shown if user.may(Action.ALL_KEYS) else shown.filter(user=user)


def may_revoke(user: User, key: ApiKey) -> bool:
    return key.user_id == user.pk or may_act_on(user.role, key.user.role, Action.ALL_KEYS)


def revoke_key(request: TenantRequest, key_id: int) -> ApiKey:
    """At once and for good; a second time changes nothing. Raises ApiKey.DoesNotExist, Forbidden."""
    with transaction.atomic(durable=True):
        key = keys_for(request.user).select_related("user").get(pk=key_id)
        if not may_revoke(request.user, key):
            raise Forbidden("Only somebody whose role is as high as its owner’s may revoke this key.")
        if key.revoke():
            record(Event.KEY_REVOKED, request=request, target=key.name, **facts_of(key))
    return key
