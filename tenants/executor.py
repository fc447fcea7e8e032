"""Migrating tenants: those that have a schema.

A tenant that is still being set up has none yet, or half of one; django-tenants' own executor stops at the first such,
and every tenant after it stays behind. What is pending is migrated by `ensure_schema` when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterable

from django.db import connection
from django_tenants.migration_executors import StandardExecutor


class BuiltSchemasExecutor(StandardExecutor):  # type: ignore[misc]
    codename = "built"

    def run_migrations(self, tenants: Iterable[str] | None = None) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT nspname FROM pg_namespace")
            built = {name for (name,) in cursor.fetchall()}
        super().run_migrations([name for name in tenants or [] if name in built])


def get_executor(codename: str | None = None) -> type[BuiltSchemasExecutor]:
    """For GET_EXECUTOR_FUNCTION."""
    return BuiltSchemasExecutor
