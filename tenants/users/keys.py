"""API keys: making them, showing a secret once, reading one off a request. Whose a key is: tenants.resolve."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from django.http import HttpRequest
from django.utils import timezone

from tenants.sealing import seal, unseal
from tenants.users.models import ApiKey, User

SECRET_PREFIX = "tk_"
PREFIX_LENGTH = 11
SHOWN_WITHIN = timedelta(minutes=10)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(user: User, *, name: str, shown_later: bool = False) -> tuple[ApiKey, str]:
    """A new key and its secret: 256 random bits, shown once. `shown_later`: by `take_secret`, sealed until then."""
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey.objects.create(
        user=user,
        name=name,
        prefix=secret[:PREFIX_LENGTH],
        digest=digest(secret),
        sealed_secret=seal(secret) if shown_later else "",
    )
    return key, secret


def take_secret(user: User, key_id: int) -> str | None:
    """The secret of a key that this member has just made, the first time it is asked for; None ever after."""
    slot = ApiKey.objects.filter(pk=key_id, user=user, created_at__gt=timezone.now() - SHOWN_WITHIN)
    sealed = slot.values_list("sealed_secret", flat=True).first()
    # Of two that read it, one empties it.
    if not sealed or slot.filter(sealed_secret=sealed).update(sealed_secret="") != 1:
        return None
    return unseal(sealed)


def forget_untaken(user: User) -> None:
    """What was never shown in its time, for its page never came, is not kept."""
    stale = ApiKey.objects.filter(user=user, created_at__lte=timezone.now() - SHOWN_WITHIN)
    stale.exclude(sealed_secret="").update(sealed_secret="")


def bearer_secret(request: HttpRequest) -> str | None:
    """What `Authorization: Bearer …` carries: None without the header, "" where it cannot be a key."""
    header = request.META.get("HTTP_AUTHORIZATION")
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    usable = scheme.lower() == "bearer" and secret.isascii() and secret.isprintable() and len(secret) <= 200
    return secret.strip() if usable else ""
