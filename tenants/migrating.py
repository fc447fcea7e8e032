"""Running the migrations in one schema. Must not know which schemas there are, nor what else can build one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.management import call_command
from django.db import connection, router
from django.db.backends.postgresql.introspection import TableInfo
from django.db.migrations.recorder import MigrationRecorder
from django_tenants.postgresql_backend.introspection import DatabaseSchemaIntrospection
from django_tenants.utils import get_tenant_base_migrate_command_class


class OneSchemaIntrospection(DatabaseSchemaIntrospection):  # type: ignore[misc]
    """Lists one schema's tables by its own entry in the catalogue.

    Django asks for what is visible of all relations there are, four times a migration run: with a thousand tenants
    that was three quarters of the time.
    """

    def get_table_list(self, cursor: Any) -> list[TableInfo]:
        cursor.execute(
            """
            SELECT relname, CASE WHEN relispartition THEN 'p' WHEN relkind IN ('m', 'v') THEN 'v' ELSE 't' END,
                   obj_description(oid, 'pg_class')
            FROM pg_class
            WHERE relkind IN ('f', 'm', 'p', 'r', 'v') AND relnamespace = to_regnamespace(quote_ident(%s))
            """,
            [self.connection.schema_name],
        )
        return [TableInfo(*row) for row in cursor.fetchall() if row[0] not in self.ignored_tables]


@contextmanager
def one_schema_at_a_time() -> Iterator[None]:
    """Within the block, Django looks for tables in the schema it is in, and through no other."""
    before = connection.introspection
    connection.introspection = OneSchemaIntrospection(connection)
    try:
        yield
    finally:
        connection.introspection = before


class TablesMissing(Exception):
    """A tenant's schema lacks a table of its own, where public's of the same name would be read and written for it."""


def refuse_missing_tables(schema_name: str) -> None:
    """Each schema writes down the migrations of all apps, and makes the tables of its own: those of an app that is
    moved into TENANT_APPS later are taken for made. Leaves Django's connection on public.
    """
    try:
        connection.set_schema(schema_name)  # type: ignore[attr-defined]
        with connection.cursor() as cursor:
            there = {table.name for table in OneSchemaIntrospection(connection).get_table_list(cursor)}
        missing = {
            model._meta.db_table: model._meta.app_label
            for label in {AppConfig.create(name).label for name in settings.TENANT_APPS}
            for model in apps.get_app_config(label).get_models(include_auto_created=True)
            if model._meta.can_migrate(connection)
            and router.allow_migrate_model(connection.alias, model)
            and model._meta.db_table not in there
        }
    finally:
        connection.set_schema_to_public()  # type: ignore[attr-defined]
    if missing:
        labels = sorted(set(missing.values()))
        moved = "; ".join(f"manage.py migrate_schemas --tenant --fake {label} zero" for label in labels)
        raise TablesMissing(
            f"{', '.join(sorted(missing))}: not in schema {schema_name}, so that public's would be taken for it. Where "
            f"no migration makes it yet: manage.py makemigrations {' '.join(labels)}. Where the app was moved into "
            f"TENANT_APPS, or its migrations were faked, end the jobs process, or it writes them down again: "
            f"{moved}; then manage.py migrate_schemas."
        )


def migrate_schema(schema_name: str) -> None:
    """Bring that schema, which must exist, up to date. Leaves Django's connection on public.

    What django-tenants' own command does for one schema, but the error that stops a migration comes out as it is, and
    no signal is sent: a schema need not be a tenant's.
    """
    try:
        with one_schema_at_a_time():
            # Alone: public has a table of migrations too, by which none would be missing here.
            connection.set_schema(schema_name, include_public=False)  # type: ignore[attr-defined]
            MigrationRecorder(connection).ensure_schema()
            connection.set_schema(schema_name)  # type: ignore[attr-defined]
            call_command(get_tenant_base_migrate_command_class()(), interactive=False, verbosity=0)
    finally:
        connection.set_schema_to_public()  # type: ignore[attr-defined]
