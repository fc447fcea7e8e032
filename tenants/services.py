"""The only writers of tenants: registering one, building its schema, changing its state.

Must not know billing: who pays is decided a room further up. What makes or drops a schema (`ensure_schema`, `catch_up`,
`purge`) may not run inside a transaction of a caller: that would hide the real error behind "current transaction is
aborted".
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from django.core.files.storage import default_storage
from django.db import Error, IntegrityError, connection, transaction
from django.utils import timezone
from django_tenants.signals import schema_migrated, schema_pre_migration
from psycopg import sql

from tenants import grants, schema_template, schema_versions
from tenants.context import enter, public_scope
from tenants.hosts import host_for
from tenants.locks import one_at_a_time, schema_lock
from tenants.migrating import migrate_schema, refuse_missing_tables
from tenants.models import Domain, Membership, Tenant

logger = logging.getLogger(__name__)

# A backup that is being made keeps a table from being changed for hours. As many migrations as there are workers waited
# for one, and no job ran: no budget was rolled over. One that gives up comes again.
LOCK_SECONDS = 10.0
# Tables that go in one transaction: each takes a lock, with its indexes and sequences, of those that all share.
DROPPED_AT_ONCE = 10


class SchemaNotOurs(Exception):
    """A schema of the tenant's name exists without our comment: it is never adopted, for it may hold others' rows."""


class SlugIsTaken(Exception):
    """Another workspace has this address, or had it once."""


class NotClosed(Exception):
    """Only what a closed workspace leaves is dropped."""


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


def require_second_step(tenant: Tenant, *, is_required: bool) -> bool:
    """Of everybody, or of nobody. False where it was so already."""
    unlike = Tenant.objects.filter(pk=tenant.pk, requires_second_step=not is_required)
    changed: int = unlike.update(requires_second_step=is_required)
    tenant.requires_second_step = is_required
    return changed == 1


def _change(tenant: Tenant, before: Tenant.Status, after: Tenant.Status) -> None:
    Tenant.objects.filter(pk=tenant.pk, status=before).update(status=after)
    tenant.refresh_from_db(fields=["status"])


# --- what a workspace is called -------------------------------------------------------------------------------------


def change_name(tenant: Tenant, name: str) -> str:
    """In the caller's transaction; the one of before."""
    before: str = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk).name
    if name != before:
        Tenant.objects.filter(pk=tenant.pk).update(name=name)
    tenant.name = name
    return before


def change_time_zone(tenant: Tenant, time_zone: str) -> str:
    """In the caller's transaction; the one of before."""
    before: str = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk).time_zone
    if time_zone != before:
        Tenant.objects.filter(pk=tenant.pk).update(time_zone=time_zone)
    tenant.time_zone = time_zone
    return before


def change_origins(tenant: Tenant, origins: list[str]) -> list[str]:
    """In the caller's transaction; those of before."""
    before = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk).allowed_origins or []
    Tenant.objects.filter(pk=tenant.pk).update(allowed_origins=origins or None)
    tenant.allowed_origins = origins or None
    return list(before)


def allow_models(tenant: Tenant, models: list[str] | None) -> list[str] | None:
    """In the caller's transaction; those of before."""
    before: list[str] | None = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk).allowed_models
    Tenant.objects.filter(pk=tenant.pk).update(allowed_models=models)
    tenant.allowed_models = models
    return before


def change_chat_settings(tenant: Tenant, changes: Mapping[str, Any]) -> dict[str, Any]:
    """In the caller's transaction; those of before. None takes one out, and what is not named stays."""
    before: dict[str, Any] = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk).chat_settings
    after = {name: value for name, value in {**before, **changes}.items() if value is not None}
    if after != before:
        Tenant.objects.filter(pk=tenant.pk).update(chat_settings=after)
    tenant.chat_settings = after
    return before


def change_slug(tenant: Tenant, slug: str) -> str:
    """The tenant's address from now on, in the caller's transaction; the one before. Raises SlugIsTaken.

    An address that it had once goes on leading to it and is nobody else's ever, and the tenant may go back to it.
    """
    # Of two changes at once the second begins with what the first has made.
    before: str = Tenant.objects.select_for_update(no_key=True).get(pk=tenant.pk).slug
    host = host_for(slug)
    domain = Domain.objects.filter(domain=host).first() or Domain(tenant=tenant, domain=host)
    if domain.tenant_id != tenant.pk:
        raise SlugIsTaken
    domain.is_primary = True  # and when it is saved the others are not
    try:
        with transaction.atomic():
            domain.save()
            Tenant.objects.filter(pk=tenant.pk).update(slug=slug)
    except IntegrityError:  # somebody else was faster
        raise SlugIsTaken from None
    tenant.slug = slug
    return before


# --- its end --------------------------------------------------------------------------------------------------------


def close(tenant: Tenant) -> bool:
    """Shut its doors, in the caller's transaction: it is an unknown host from then on. Its rows stay until `purge`.

    Whether it was this call that did. `reopen` undoes it.
    """
    is_first = Tenant.objects.filter(pk=tenant.pk, status=Tenant.Status.ACTIVE).update(
        status=Tenant.Status.CLOSED, closed_at=timezone.now()
    )
    if is_first:
        # Nobody finds it any more. What its schema says makes them anew (tenants.users.directory.refresh).
        Membership.objects.filter(tenant_id=tenant.pk).delete()
    tenant.refresh_from_db(fields=["status", "closed_at"])
    return bool(is_first)


def reopen(tenant: Tenant) -> None:
    """Open its doors again, in the caller's transaction; what is purged is gone."""
    Tenant.objects.filter(pk=tenant.pk, status=Tenant.Status.CLOSED, purged_at=None).update(
        status=Tenant.Status.ACTIVE, closed_at=None
    )
    tenant.refresh_from_db(fields=["status", "closed_at"])


def purge(tenant: Tenant) -> None:
    """Drop a closed tenant's rows and files, and blank its name, for good. Safe to run again after any failure.

    What stays is that its slug, its addresses, its public id and its schema's name were used.
    """
    with public_scope():
        if not Tenant.objects.filter(pk=tenant.pk, status=Tenant.Status.CLOSED).exists():
            raise NotClosed(f"Tenant {tenant.pk} is not closed.")
        with one_at_a_time(schema_lock(tenant.schema_name)), _waiting_briefly():
            _drop_schema(tenant)
        _drop_files(tenant)
        Membership.objects.filter(tenant_id=tenant.pk).delete()
        Tenant.objects.filter(pk=tenant.pk, purged_at=None).update(purged_at=timezone.now(), name="")
    tenant.refresh_from_db(fields=["name", "purged_at"])


def _drop_schema(tenant: Tenant) -> None:
    """Table by table, and then what is left: a schema in one piece can need more locks than Postgres has."""
    found = _comment_of(tenant)
    if found is None:
        return
    if found != f"tenant:{tenant.pk}":
        raise SchemaNotOurs(f"Schema {tenant.schema_name} exists and is not tenant {tenant.pk}'s.")
    while tables := _some_tables_of(tenant):
        names = sql.SQL(", ").join(sql.Identifier(tenant.schema_name, table) for table in tables)
        with transaction.atomic(durable=True), connection.cursor() as cursor:
            cursor.execute(sql.SQL("DROP TABLE {} CASCADE").format(names))
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(tenant.schema_name)))
    logger.info("The rows of a closed workspace are dropped: tenant=%s", tenant.pk)


def _some_tables_of(tenant: Tenant) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%s))
            AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY relname LIMIT %s""",
            [tenant.schema_name, DROPPED_AT_ONCE],
        )
        return [name for (name,) in cursor.fetchall()]


def _drop_files(tenant: Tenant) -> None:
    forget = getattr(default_storage, "forget_tenant", None)
    if forget is None:
        logger.warning("The default storage cannot forget a tenant: drop %s's files yourself", tenant.schema_name)
        return
    forget(tenant)


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
            refuse_missing_tables(tenant.schema_name)
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
