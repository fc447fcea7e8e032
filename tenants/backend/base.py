"""Where Django finds the backend's connection.

Owns the one place that each statement of the ORM and of `connection.cursor()` passes, and the statement that sets the
search path. Must not choose a schema: tenants.context does.
"""

from __future__ import annotations

from typing import Any

import psycopg
from django.db.utils import DatabaseErrorWrapper, ProgrammingError
from django.utils.functional import cached_property
from django_tenants.postgresql_backend import base
from django_tenants.utils import get_limit_set_calls, get_public_schema_name

from tenants.context import refuse_another_schema
from tenants.http import TenantNotReady
from tenants.schema_is_there import SCHEMA_IS_THERE

# Sets nothing where the workspace's schema is not there, or may not be used: the path would lead past it to public's
# rows, without an error. Whoever found the tenant may have kept its row since before somebody dropped the schema.
_ENTER = f"SELECT set_config('search_path', %(path)s, false) WHERE {SCHEMA_IS_THERE}"


NOT_IN_PUBLIC = (
    "This code works on the public schema, which has none of the tenants' tables. Enter tenant_scope(tenant) around "
    "it; make a command a tenants.commands.TenantCommand, or run it by `manage.py in_tenant`."
)


class SchemaIsGone(TenantNotReady, ProgrammingError):
    """A workspace's schema is not there: to who asks for a page that it is not ready, to code that the SQL is wrong."""


class _Errors(DatabaseErrorWrapper):
    """Django's. Where a table is not there because no tenant is, it says so: a command's first mistake."""

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        try:
            super().__exit__(exc_type, exc_value, traceback)
        except ProgrammingError as exc:
            connection = self.wrapper  # type: ignore[attr-defined]  # Django's, and not in its stubs
            if exc_type is psycopg.errors.UndefinedTable and connection.schema_name == get_public_schema_name():
                exc.add_note(NOT_IN_PUBLIC)
            raise


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]  # django-tenants carries no types
    """A connection that shows no rows to code that is bound to another schema, or to nothing.

    When it is opened is too early to ask: async code and pools come back to connections that are open already.
    """

    # django-tenants' own.
    include_public_schema: bool
    search_path_set_schemas: list[str] | None
    _setting_search_path: bool

    @cached_property
    def wrap_database_errors(self) -> _Errors:
        return _Errors(self)

    def _cursor(self, name: str | None = None) -> Any:
        refuse_another_schema(self)
        return super()._cursor(name)

    def _handle_search_path(self, cursor: Any = None) -> None:
        """Of a workspace by _ENTER; as django-tenants does it where no public comes next, or where a schema only has a
        name, as one that is being built. Raises TenantNotReady.
        """
        is_set = get_limit_set_calls() and self.search_path_set_schemas
        has_public_behind = self.include_public_schema and not isinstance(self.tenant, base.FakeTenant)
        if self._setting_search_path or is_set or not has_public_behind:
            super()._handle_search_path(cursor)
            return
        schemas = self._get_cursor_search_paths()
        own = self.connection.cursor() if cursor is None else cursor
        self._setting_search_path = True
        try:
            own.execute(_ENTER, {"path": ", ".join(f'"{name}"' for name in schemas), "schema": self.schema_name})
            is_there = own.fetchone() is not None
        except psycopg.errors.InFailedSqlTransaction:
            return  # what comes next fails as well, unless it rolls back
        finally:
            self._setting_search_path = False
            if cursor is None:
                own.close()
        if not is_there:
            raise SchemaIsGone
        self.search_path_set_schemas = schemas
