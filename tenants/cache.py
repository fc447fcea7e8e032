"""The keys of caches: each tenant's entries have its own.

For `KEY_FUNCTION` and `REVERSE_KEY_FUNCTION` in CACHES. django-tenants' own take the tenant from the connection, which
on an event loop says `public`: one tenant reads there what another wrote. `clear()` empties a cache for all tenants.
"""

from __future__ import annotations

from django_tenants.utils import get_public_schema_name

from tenants.context import tenant_or_public


def make_key(key: object, key_prefix: str, version: int) -> str:
    """By the schema's name, which is opaque and never used twice, as a slug may be. Raises NoContext in a bare thread,
    whose entries would be the bare host's.
    """
    tenant = tenant_or_public()
    room = get_public_schema_name() if tenant is None else tenant.schema_name
    return f"{room}:{key_prefix}:{version}:{key}"


def reverse_key(key: str) -> str:
    """The key that make_key was given. A prefix with a colon would be cut wrongly; a check refuses one."""
    return key.split(":", 3)[3]
