"""API keys: making, finding. A key is looked up only in the schema that the request has already resolved to."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone

from tenants.users.models import ApiKey, User

SECRET_PREFIX = "tk_"
PREFIX_LENGTH = 11
# A write for each request would double their cost; an hour-glass of a minute tells an owner as much.
LAST_USED_EVERY = timedelta(minutes=1)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(user: User, *, name: str) -> tuple[ApiKey, str]:
    """A new key and its secret: 256 random bits, shown this once and stored nowhere."""
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey.objects.create(user=user, name=name, prefix=secret[:PREFIX_LENGTH], digest=digest(secret))
    return key, secret


def bearer_secret(request: HttpRequest) -> str | None:
    """What `Authorization: Bearer …` carries: None without the header, "" where it cannot be a key."""
    header = request.headers.get("Authorization")
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    usable = scheme.lower() == "bearer" and secret.isascii() and secret.isprintable() and len(secret) <= 200
    return secret.strip() if usable else ""


def key_from_header(request: HttpRequest) -> ApiKey | None:
    """The live key of this schema that the request carries, or None."""
    key = key_in_schema(bearer_secret(request))
    if key is not None:
        _note_use(key)
    return key


def key_in_schema(secret: str | None) -> ApiKey | None:
    """The live key of that secret in the schema that is entered."""
    if not secret:
        return None
    return (
        ApiKey.objects.select_related("user")
        .filter(prefix=secret[:PREFIX_LENGTH], digest=digest(secret), revoked_at=None, user__is_active=True)
        .first()
    )


def _note_use(key: ApiKey) -> None:
    now = timezone.now()
    stale = Q(last_used_at=None) | Q(last_used_at__lt=now - LAST_USED_EVERY)
    if key.last_used_at is None or key.last_used_at < now - LAST_USED_EVERY:
        ApiKey.objects.filter(stale, pk=key.pk).update(last_used_at=now)
