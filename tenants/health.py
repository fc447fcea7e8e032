"""Is the database there and migrated? A sentence when not, None when it is."""

from __future__ import annotations

from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from tenants.context import public_scope
from tenants.schema_versions import is_numbered

_migrated = False


def database_ready() -> str | None:
    global _migrated
    try:
        with public_scope():
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            if not _migrated:
                executor = MigrationExecutor(connection)
                # Once migrated stays migrated for this process: the plan is too dear for every probe.
                # Without a number no process has migrated tenants to this code, so that none of them is served.
                _migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes()) and is_numbered()
    except DatabaseError:
        return "database: does not answer"
    finally:
        connection.close()
    return None if _migrated else "database: not migrated"
