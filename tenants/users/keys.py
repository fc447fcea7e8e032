"""API keys: making them, and reading one off a request. Which member a key stands for: tenants.resolve."""

from __future__ import annotations

import hashlib
import secrets

from django.http import HttpRequest

from tenants.users.models import ApiKey, User

SECRET_PREFIX = "tk_"
PREFIX_LENGTH = 11


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(user: User, *, name: str) -> tuple[ApiKey, str]:
    """A new key and its secret: 256 random bits, shown this once and stored nowhere."""
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey.objects.create(user=user, name=name, prefix=secret[:PREFIX_LENGTH], digest=digest(secret))
    return key, secret


def bearer_secret(request: HttpRequest) -> str | None:
    """What `Authorization: Bearer …` carries: None without the header, "" where it cannot be a key."""
    header = request.META.get("HTTP_AUTHORIZATION")
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    usable = scheme.lower() == "bearer" and secret.isascii() and secret.isprintable() and len(secret) <= 200
    return secret.strip() if usable else ""
