"""Sealing what a webhook sends again and again and nobody may read at rest: its signing secret, its headers' values.

Owns the key's derivation. Must never log or show a secret, nor give one out that was not sealed under this key.
"""

from __future__ import annotations

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from billing.authority.conf import setting

LABEL = b"embedded authority: webhook secrets"
NOT_OURS = (
    "This webhook's signing secret or its headers were sealed under another KEY_SEALING_KEY. "
    "Set that key again, or give the webhook a new signing_secret and new headers."
)


class SealError(Exception):
    """A seal that this key does not open; the text says what to do and names no value."""


def _box() -> Fernet:
    # The app seals its tenants' keys under the same variable. Under a key of our own, a seal put into the other's
    # table opens nothing there.
    derived = HKDF(SHA256(), length=32, salt=None, info=LABEL)
    return Fernet(base64.urlsafe_b64encode(derived.derive(base64.urlsafe_b64decode(setting("KEY_SEALING_KEY")))))


def seal(secret: str) -> str:
    return _box().encrypt(secret.encode()).decode()


def unseal(sealed: str) -> str:
    try:
        return _box().decrypt(sealed.encode()).decode()
    except InvalidToken:
        raise SealError(NOT_OURS) from None
