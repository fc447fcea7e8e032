"""The only writers of tenants: registering one, building its schema, changing its state.

Must not know billing: who pays is decided a room further up. Nothing here may run inside a transaction of a caller,
for building a schema in one hides the real error behind "current transaction is aborted".
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from django.core.management import call_command
from django.db import connection, transaction
from psycopg import sql

from tenants.context import current_tenant, enter
from tenants.hosts import host_for
from tenants.models import Domain, Tenant


class SchemaNotOurs(Exception):
    """A schema of the tenant's name exists without our comment: it is never adopted, for it may hold others' rows."""


def register_tenant(slug: str, *, name: str) -> Tenant:
    """The rows of a new tenant, in the caller's transaction; its schema comes later, by ensure_schema.

    A slug that is taken raises IntegrityError.
    """
    tenant: Tenant = Tenant.objects.create(slug=slug, name=name, schema_name=f"t_{secrets.token_hex(10)}")
    Domain.objects.create(tenant=tenant, domain=host_for(slug), is_primary=True)
    return tenant


def activate(tenant: Tenant) -> None:
    """From PENDING to ACTIVE; a tenant that was suspended meanwhile stays so."""
    _change(tenant, Tenant.Status.PENDING, Tenant.Status.ACTIVE)


def suspend(tenant: Tenant) -> None:
    _change(tenant, Tenant.Status.ACTIVE, Tenant.Status.SUSPENDED)


def reactivate(tenant: Tenant) -> None:
    """Lift a suspension; what is closed stays closed."""
    _change(tenant, Tenant.Status.SUSPENDED, Tenant.Status.ACTIVE)


def _change(tenant: Tenant, before: Tenant.Status, after: Tenant.Status) -> None:
    Tenant.objects.filter(pk=tenant.pk, status=before).update(status=after)
    tenant.refresh_from_db(fields=["status"])


def ensure_schema(tenant: Tenant) -> None:
    """Create the tenant's schema and bring it up to date. Safe to run again on a half-built one.

    django-tenants' own `create_schema` returns False on a schema that exists and leaves it half-built.
    """
    with _lock(f"tenant-schema:{tenant.pk}"):
        _ensure_created(tenant)
        before = current_tenant()
        enter(None)
        try:
            call_command("migrate_schemas", tenant=True, schema_name=tenant.schema_name, interactive=False, verbosity=0)
        finally:
            # The command closes the connection and leaves it on public; nothing may rely on what it was.
            enter(before)


def _ensure_created(tenant: Tenant) -> None:
    comment = f"tenant:{tenant.pk}"
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(
            "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s",
            [tenant.schema_name],
        )
        found = cursor.fetchone()
        if found is None:
            name = sql.Identifier(tenant.schema_name)
            cursor.execute(sql.SQL("CREATE SCHEMA {}").format(name))
            cursor.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(name, sql.Literal(comment)))
        elif found[0] != comment:
            raise SchemaNotOurs(f"Schema {tenant.schema_name} exists and is not tenant {tenant.pk}'s.")


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """One at a time across processes. On a connection of its own: the migration closes Django's."""
    params = connection.get_connection_params()
    wanted = {key: value for key, value in params.items() if key not in {"cursor_factory", "context", "pool"}}
    with psycopg.connect(**wanted, autocommit=True) as own:
        own.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
        yield
