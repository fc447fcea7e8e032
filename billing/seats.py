"""What members and keys have spent, and how much they may: the part of their pages that is about money."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.safestring import SafeString

from tenants.http import TenantRequest
from tenants.users.models import ApiKey, User


def beside_members(request: TenantRequest, members: Sequence[User]) -> dict[int, SafeString]:
    """By member's id, what the members' page shows on their row."""
    return {}


def beside_keys(request: TenantRequest, keys: Sequence[ApiKey]) -> dict[int, SafeString]:
    """By key's id, what the keys' page shows on its row."""
    return {}


def key_rotated(old: ApiKey, new: ApiKey) -> None:
    """Carry what limits `old` over to `new`, which opens nothing before this has returned. May be called again."""
