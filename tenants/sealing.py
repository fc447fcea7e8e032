"""Sealing a secret that must lie somewhere for a while, under KEY_SEALING_KEY. Must never log or show one."""

from __future__ import annotations

import json
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured


class SealedUnderAnotherKey(ImproperlyConfigured):
    """The operator's to mend. For whoever asks it is a 503 (tenants.middleware)."""


def _box() -> Fernet:
    try:
        return Fernet(settings.KEY_SEALING_KEY)
    except ValueError:
        raise ImproperlyConfigured(
            "KEY_SEALING_KEY must be 32 bytes in URL-safe base64, as Fernet makes them."
        ) from None


def seal(secret: str) -> str:
    return _box().encrypt(secret.encode()).decode()


def unseal(sealed: str) -> str:
    """The secret again. Raises SealedUnderAnotherKey: better no call than a call as nobody."""
    try:
        return _box().decrypt(sealed.encode()).decode()
    except InvalidToken:
        raise SealedUnderAnotherKey("KEY_SEALING_KEY is not the key under which this was sealed.") from None


def seal_facts(*facts: Any) -> str:
    """For a job's arguments, which lie in a table, for a month where the job failed, and in the log then: who is meant
    is in neither.
    """
    return seal(json.dumps(facts))


def unseal_facts(sealed: str) -> list[Any]:
    facts: list[Any] = json.loads(unseal(sealed))
    return facts
