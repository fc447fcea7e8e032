"""The only writers of tenants: registering one, building its schema, changing its state.

Must not know billing: who pays is decided a room further up. Nothing here may run inside a transaction of a caller,
for building a schema in one hides the real error behind "current transaction is aborted".
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.db import Error, connection, transaction
from django_tenants.signals import schema_migrated, schema_pre_migration
from psycopg import sql

from tenants import grants, schema_template, schema_versions
from tenants.context import enter, public_scope
from tenants.hosts import host_for
from tenants.locks import one_at_a_time, schema_lock
from tenants.migrating import migrate_schema
from tenants.models import Domain, Tenant

logger = logging.getLogger(__name__)

# A backup that is being made keeps a table from being changed for hours. As many migrations as there are workers waited
# for one, and no job ran: no budget was rolled over. One that gives up comes again.
LOCK_SECONDS = 10.0


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

    A schema that is not there is made by replaying the template, with its comment and its version in one transaction:
    a killed run leaves all of it or nothing. One that is there is migrated. django-tenants' own `create_schema`
    returns False on a schema that exists and leaves it half-built.
    """
    with public_scope(), one_at_a_time(schema_lock(tenant.schema_name)):
        _ensure_created(tenant)
        _ensure_migrated(tenant)


def catch_up(tenant: Tenant) -> None:
    """Bring a schema that is behind the code up to date. One that is gone stays so: an empty one in its place would
    look like a customer who has lost everything.
    """
    if _comment_of(tenant) is None:
        logger.error("There is no schema to bring up to date: tenant=%s", tenant.pk)
        return
    ensure_schema(tenant)


def _ensure_created(tenant: Tenant) -> None:
    comment = f"tenant:{tenant.pk}"
    found = _comment_of(tenant)
    if found is None:
        _create(tenant, comment)
    elif found != comment:
        raise SchemaNotOurs(f"Schema {tenant.schema_name} exists and is not tenant {tenant.pk}'s.")


def _create(tenant: Tenant, comment: str) -> None:
    name = sql.Identifier(tenant.schema_name)
    version = schema_versions.ensure_version()
    statements = schema_template.statements_for(version)
    try:
        with transaction.atomic(durable=True):
            with connection.cursor() as cursor:
                cursor.execute(sql.SQL("CREATE SCHEMA {}").format(name))
                cursor.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(name, sql.Literal(comment)))
            # Without a template unknown: a schema that was dropped by hand has left the tenant its version.
            schema_versions.note(tenant, version.pk if statements else None)
            schema_template.replay(tenant.schema_name, statements)
            # In the same transaction: a schema that web may not use would show it public's rows.
            grants.on_schema(tenant.schema_name)
    finally:
        enter(None)
    if statements:
        schema_migrated.send(Tenant, schema_name=tenant.schema_name)


def _ensure_migrated(tenant: Tenant) -> None:
    if not Tenant.objects.filter(schema_versions.is_current(), pk=tenant.pk).exists():
        schema_pre_migration.send(Tenant, schema_name=tenant.schema_name)
        with _waiting_briefly():
            migrate_schema(tenant.schema_name)
        grants.on_schema(tenant.schema_name)
        schema_versions.note_migrated(tenant.schema_name)
        schema_migrated.send(Tenant, schema_name=tenant.schema_name)
    tenant.refresh_from_db(fields=["schema_version"])


@contextmanager
def _waiting_briefly() -> Iterator[None]:
    """Within the block a statement that waits for a lock for longer fails."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {round(LOCK_SECONDS * 1_000)}")
    try:
        yield
    finally:
        # What went wrong within is the error to tell, and a connection that broke has no setting left.
        with suppress(Error), connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")


def _comment_of(tenant: Tenant) -> str | None:
    """The schema's comment, empty where it has none; None where there is no schema."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce(obj_description(oid, 'pg_namespace'), '') FROM pg_namespace WHERE nspname = %s",
            [tenant.schema_name],
        )
        found = cursor.fetchone()
        return found[0] if found else None
