"""The authority's Postgres schema: made, migrated, and then given the functions of `sql/`.

Migrations make tables, columns and indexes, and never functions: an earlier migration would install today's functions
over tables that only a later one makes. Owns when functions are replaced; must not know what any of them does.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from django.core.management import call_command
from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader

log = logging.getLogger(__name__)

APP = "authority"
SQL = Path(__file__).resolve().parent / "sql"
LOCK = 7_878_797_900  # any number, the same in every copy of the authority
SETTING = "functions"  # the digests of all sets that were ever installed here; the last one is in place

# All routines and free types of the schema are ours. Dropped first, so that neither a changed parameter list nor a
# removed file leaves anything behind. Others see the old set until the new one is committed. A call that is under way
# at that moment may fail; then it is rolled back, as any failed call, and may be sent again.
DROP = """DO $$
DECLARE
    old text;
BEGIN
    FOR old IN SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = current_schema()::regnamespace LOOP
        EXECUTE 'DROP ROUTINE ' || old;
    END LOOP;
    FOR old IN SELECT c.reltype::regtype FROM pg_class c
               WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'c' LOOP
        EXECUTE 'DROP TYPE ' || old;
    END LOOP;
END
$$"""
RUNNING = """SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
    AND application_name = %(name)s AND pid <> pg_backend_pid())"""


def bring_up_to_date() -> None:
    """Make the schema, migrate it, install the functions. Copies that start at once wait for each other."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%(lock)s)", {"lock": LOCK})
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {APP}")
        call_command("migrate", APP, verbosity=0, interactive=False)
        _install_functions()
        cursor.execute("SELECT pg_advisory_unlock(%(lock)s)", {"lock": LOCK})
    connection.close()


def digest() -> str:
    """What `sql/` is: the names and contents of its files."""
    total = hashlib.sha256()
    for path in _files():
        total.update(b"%s\0%s\0" % (path.name.encode(), path.read_bytes()))
    return total.hexdigest()


def _install_functions() -> None:
    """Put the functions of `sql/` in the place of another set. One transaction: all of them or none."""
    own, installed = digest(), _installed()
    if installed and installed[-1] == own:
        return
    if reason := _left_to_a_newer_copy(own, installed):
        log.warning("The SQL functions stay as another copy of the authority installed them: %s.", reason)
        return
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(DROP)
        for path in _files():
            cursor.execute(path.read_text(encoding="utf-8"))
        cursor.execute(
            """INSERT INTO setting (name, value) VALUES (%(name)s, %(value)s::jsonb)
            ON CONFLICT (name) DO UPDATE SET value = excluded.value""",
            {"name": SETTING, "value": json.dumps([*(d for d in installed if d != own), own])},
        )


def _left_to_a_newer_copy(own: str, installed: list[str]) -> str | None:
    """Why the functions in place are newer than ours and must stay; none if ours shall replace them.

    Digests have no order. A copy is surely the older one if the database is migrated further than it knows. If its
    functions were replaced before, it may be a return to them on purpose: so it is when no other authority runs here.
    """
    if unknown := _unknown_migrations():
        return f"the database has migrations that this copy does not know ({', '.join(unknown)})"
    if own in installed and _another_runs():
        return "they replaced this copy's, and an authority that may need them is running"
    return None


def _files() -> list[Path]:
    return sorted(SQL.glob("*.sql"))


def _installed() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT value::text FROM setting WHERE name = %(name)s", {"name": SETTING})
        row = cursor.fetchone()
    return list(json.loads(row[0])) if row else []


def _unknown_migrations() -> list[str]:
    loader = MigrationLoader(connection)
    known = set(loader.disk_migrations)
    return sorted(name for app, name in loader.applied_migrations if app == APP and (app, name) not in known)


def _another_runs() -> bool:
    name = connection.settings_dict["OPTIONS"]["application_name"]
    with connection.cursor() as cursor:
        cursor.execute(RUNNING, {"name": name})
        return bool(cursor.fetchone()[0])
