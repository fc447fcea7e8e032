"""Building a tenant's schema by replaying the SQL that the migrations ran, instead of running the migrations.

Owns recording those statements, proving that they make the same schema, and replaying them. Must not know a tenant.
A template is recorded from a scratch schema that the migrations build, once for each fingerprint of theirs, so that a
changed migration and an app of a builder's make a new one by themselves. It is kept only when a second scratch schema
that is made from it equals the first, rows included: what cannot be replayed, such as an index that is built
concurrently, a table of public's that a migration looks for, or a secret that one draws for each tenant, leaves tenants
to the migrations, and the log says so. Rows that migrations write keep the time at which they were recorded.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction
from django.db.backends.postgresql.psycopg_any import mogrify
from psycopg import sql

from tenants.context import enter, public_scope
from tenants.locks import one_at_a_time
from tenants.migrating import migrate_schema
from tenants.models import Domain, SchemaVersion, Tenant

logger = logging.getLogger(__name__)

# No tenant's schema begins so (tenants.services.register_tenant).
SCRATCH = "scratch_"
COMMENT = "made to record a template, and left behind if it is still here"
# What reads, and what opens and closes transactions: a replay is one transaction of its own.
_LEFT_OUT = ("SELECT", "SHOW", "SET SEARCH_PATH", "SAVEPOINT", "RELEASE", "ROLLBACK", "BEGIN", "COMMIT")
_APPLIED = 'INSERT INTO "django_migrations"'
# What Django itself writes once the migrations are through: the same for every schema.
_OF_DJANGO = ('INSERT INTO "django_content_type"', 'INSERT INTO "auth_permission"')
_OF_TENANTS = re.compile(rf"\b({Tenant._meta.db_table}|{Domain._meta.db_table})\b")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(\+00:00)?")


class CannotReplay(Exception):
    """The statements do not make what the migrations made. Says why, for the log."""


def statements_for(version: SchemaVersion) -> list[str]:
    """What makes a schema of that version; empty where migrations must. Recorded by the first that asks."""
    if not settings.SCHEMA_TEMPLATE:
        return []
    if version.statements is None:
        with one_at_a_time("schema-template"):
            version.refresh_from_db(fields=["statements"])
            if version.statements is None:
                version.statements = _recorded()
                version.save(update_fields=["statements"])
    return list(version.statements)


def replay(schema_name: str, statements: Sequence[str]) -> None:
    """Run the statements in the schema, in the caller's transaction, which must roll back with any of them.

    The search path is that schema alone: a table could land in public otherwise, or refer to one of public's.
    """
    connection.set_schema(schema_name, include_public=False)  # type: ignore[attr-defined]  # django-tenants adds it
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


# --- recording ------------------------------------------------------------------------------------------------------


def _recorded() -> list[str]:
    """The statements, proven; none where they cannot be used, and then the log has the reason."""
    _drop_scratch_schemas()
    recorder = _Recorder()
    try:
        with public_scope(), _scratch() as migrated:
            with connection.execute_wrapper(recorder), _failures_of(recorder):
                migrate_schema(migrated)
            if where := recorder.asks_for_tenants():
                raise CannotReplay(f"{where} reads the table of tenants, where a scratch schema has no row")
            _prove_that_it_replays(recorder, migrated)
            if recorder.fills_tables:
                _prove_that_rows_are_for_everybody(migrated)
            logger.info("Template recorded: statements=%s", len(recorder.statements))
            return _in_one(recorder.statements, migrated)
    except CannotReplay as why:
        logger.warning("No template is kept, tenants are built by migrations: %s", why)
        return []


def _in_one(statements: list[str], migrated: str) -> list[str]:
    """All of them as one text, proven again: two hundred answers fewer to wait for. As they are where the database
    takes one at a time, as the workers of Citus do.
    """
    together = [";\n".join(statements)]
    with _scratch() as replayed:
        try:
            with transaction.atomic(durable=True):
                replay(replayed, together)
        except DatabaseError as exc:
            logger.info("The template is replayed statement by statement: %s", exc)
            return statements
        return statements if described(migrated) ^ described(replayed) else together


@contextmanager
def _failures_of(recorder: _Recorder) -> Iterator[None]:
    """A migration may want what only a tenant has, its row or its members, and then sign-ups must not fail with it. A
    database that is away says nothing about the migrations.
    """
    try:
        yield
    except (InterfaceError, OperationalError):
        raise
    except Exception as exc:
        raise CannotReplay(
            f"{recorder.under_way()} fails in a schema of no tenant: {type(exc).__name__}: {exc}"
        ) from exc


def _prove_that_it_replays(recorder: _Recorder, migrated: str) -> None:
    for index, statement in enumerate(recorder.statements):
        if migrated in statement:
            raise CannotReplay(f"{recorder.migration_at(index)} names its schema: {statement[:200]}")
    replayable = 0
    with _scratch() as replayed:
        try:
            with transaction.atomic(durable=True):
                for statement in recorder.statements:
                    replay(replayed, [statement])
                    replayable += 1
        except DatabaseError as exc:
            raise CannotReplay(f"{recorder.migration_at(replayable)} cannot be replayed: {exc}") from exc
        if differing := described(migrated) ^ described(replayed):
            raise CannotReplay(f"a replayed schema differs from a migrated one: {min(differing)[:300]}")


def _prove_that_rows_are_for_everybody(migrated: str) -> None:
    """Replayed, a secret or a number that a migration draws for each tenant would be one and the same for all."""
    with _scratch() as again:
        migrate_schema(again)
        differing = {_MOMENT.sub("", row) for row in described(migrated)}
        differing ^= {_MOMENT.sub("", row) for row in described(again)}
        if differing:
            raise CannotReplay(f"migrations make another row each time, in {min(differing).split(' {')[0]}")


class _Recorder:
    """Wraps each statement of Django's connection: https://docs.djangoproject.com/en/5.2/topics/db/instrumentation/."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.fills_tables = False
        self._ends: list[tuple[int, str]] = []
        self._has_rows = False
        self._asked: int | None = None

    def __call__(
        self, execute: Callable[..., Any], query: Any, params: Any, many: bool, context: dict[str, Any]
    ) -> Any:
        result = execute(query, params, many, context)
        for values in params if many else [params]:
            self._keep(query, values)
        return result

    def migration_at(self, index: int) -> str:
        return next((name for end, name in self._ends if index < end), "what follows the migrations")

    def under_way(self) -> str:
        return f"what comes after {self._ends[-1][1]}" if self._ends else "the first migration"

    def asks_for_tenants(self) -> str | None:
        """The migration that looks for the tenant it is in: it finds none here, and in a tenant's schema it does."""
        if self._asked is None:
            return None
        return next((name for _, name in self._ends[self._asked :]), "what follows the migrations")

    def _keep(self, query: Any, params: Any) -> None:
        text = query if isinstance(query, str) else query.as_string(connection.connection)
        word = text.lstrip().upper()
        if word.startswith(_LEFT_OUT):
            if self._asked is None and _OF_TENANTS.search(text):
                self._asked = len(self._ends)
            return
        if word.startswith(_APPLIED.upper()):
            self._end(params[0], params[1])
            return
        if not word.startswith(("CREATE", "ALTER", "DROP", "COMMENT", "SET")):
            self._has_rows = True
            self.fills_tables |= not text.startswith(_OF_DJANGO)
        self.statements.append(mogrify(query, params, connection) if params is not None else text)

    def _end(self, app: str, name: str) -> None:
        """Of a migration. Its transaction ended here, which a replay has to do with less: rows whose constraints are
        still to be checked would keep the next migration from altering their table.
        """
        if self._has_rows:
            self.statements += ["SET CONSTRAINTS ALL IMMEDIATE", "SET CONSTRAINTS ALL DEFERRED"]
            self._has_rows = False
        row = mogrify("(%s, %s, now())", (app, name), connection)
        if self.statements and self.statements[-1].startswith(_APPLIED):
            # One after another of the migrations that do nothing here: those of shared apps.
            self.statements[-1] += f", {row}"
        else:
            self.statements.append(f'{_APPLIED} ("app", "name", "applied") VALUES {row}')
        self._ends.append((len(self.statements), f"{app}.{name}"))


@contextmanager
def _scratch() -> Iterator[str]:
    name = f"{SCRATCH}{secrets.token_hex(10)}"
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        cursor.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(sql.Identifier(name), sql.Literal(COMMENT)))
    try:
        yield name
    finally:
        enter(None)
        _drop(name)


def _drop(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


def _drop_scratch_schemas() -> None:
    """Those that killed runs have left. Called under the lock, so none is in use."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s) AND obj_description(oid) = %s",
            [SCRATCH, COMMENT],
        )
        left = [name for (name,) in cursor.fetchall()]
    for name in left:
        _drop(name)


# --- comparing ------------------------------------------------------------------------------------------------------

_OBJECTS = """
    WITH here AS (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s),
         owned AS (SELECT c.oid, c.relname, c.relkind FROM pg_class c JOIN here ON c.relnamespace = here.oid)
    SELECT 'relation ' || relname || ' ' || relkind::text FROM owned
    UNION ALL
    SELECT concat_ws(' ', 'column', o.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                     a.attidentity, a.attgenerated, a.attcollation, pg_get_expr(d.adbin, d.adrelid))
    FROM owned o JOIN pg_attribute a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = o.oid AND d.adnum = a.attnum
    WHERE o.relkind IN ('r', 'p', 'v', 'm')
    UNION ALL
    SELECT concat_ws(' ', 'constraint', o.relname, k.conname, k.condeferrable, k.condeferred, k.convalidated,
                     pg_get_constraintdef(k.oid))
    FROM owned o JOIN pg_constraint k ON k.conrelid = o.oid
    UNION ALL
    SELECT concat_ws(' ', 'index', pg_get_indexdef(i.indexrelid), i.indisvalid)
    FROM owned o JOIN pg_index i ON i.indrelid = o.oid
    UNION ALL
    SELECT concat_ws(' ', 'sequence', sequencename, data_type, start_value, increment_by, cycle, last_value)
    FROM pg_sequences WHERE schemaname = %(schema)s
    UNION ALL
    SELECT 'trigger ' || pg_get_triggerdef(t.oid)
    FROM owned o JOIN pg_trigger t ON t.tgrelid = o.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT 'view ' || o.relname || ' ' || pg_get_viewdef(o.oid) FROM owned o WHERE o.relkind IN ('v', 'm')
    UNION ALL
    SELECT 'function ' || pg_get_functiondef(p.oid) FROM pg_proc p JOIN here ON p.pronamespace = here.oid
    WHERE p.prokind IN ('f', 'p')
    UNION ALL
    SELECT 'type ' || t.typname || ' ' || coalesce(string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder), '')
    FROM pg_type t JOIN here ON t.typnamespace = here.oid LEFT JOIN pg_enum e ON e.enumtypid = t.oid
    GROUP BY t.oid, t.typname
    UNION ALL
    SELECT concat_ws(' ', 'policy', tablename, policyname, cmd, qual, with_check)
    FROM pg_policies WHERE schemaname = %(schema)s"""


def described(schema_name: str) -> set[str]:
    """Everything that a schema is made of, rows too, in words that do not depend on its name or on the time."""
    connection.set_schema(schema_name, include_public=False)  # type: ignore[attr-defined]
    try:
        with connection.cursor() as cursor:
            cursor.execute(_OBJECTS, {"schema": schema_name})
            found = {row for (row,) in cursor.fetchall()}
            tables = [row.split()[1] for row in found if row.startswith("relation ") and row.endswith((" r", " p"))]
            for table in tables:
                cursor.execute(sql.SQL("SELECT to_jsonb(t) - %s FROM {} t").format(sql.Identifier(table)), ["applied"])
                found |= {f"row of {table} {row}" for (row,) in cursor.fetchall()}
    finally:
        enter(None)
    return {row.replace(schema_name, "") for row in found}
