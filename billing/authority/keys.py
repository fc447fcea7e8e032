"""API keys as text, pure: making a secret, and what is kept of one."""

from __future__ import annotations

import hashlib
import secrets
import uuid

PREFIX_LENGTH = 14
DEFAULT_PERMISSIONS = [
    "reservations:create",
    "reservations:commit",
    "reservations:release",
    "reservations:extend",
    "reservations:list",
    "balances:read",
]
_ADMIN = [
    f"admin:{name}:{verb}"
    for name in ("tenants", "budgets", "policies", "apikeys", "webhooks")
    for verb in ("read", "write")
]
PERMISSIONS = {
    *DEFAULT_PERMISSIONS,
    *(f"{name}:{verb}" for name in ("budgets", "policies", "webhooks", "admin") for verb in ("read", "write")),
    "events:read",
    "admin:events:read",
    "admin:audit:read",
    *_ADMIN,
}


def new_secret() -> str:
    return "cyc_live_" + secrets.token_urlsafe(24)


def new_key_id() -> str:
    return f"key_{str(uuid.uuid4())[:16]}"


def prefix_of(secret: str) -> str:
    """What a key is looked up by; also what an operator may see of it."""
    return secret[:PREFIX_LENGTH]


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def grants(permissions: list[str], needed: str) -> bool:
    """`admin:read` stands for every read, `admin:write` for every write."""
    return needed in permissions or f"admin:{needed.rpartition(':')[2]}" in permissions
