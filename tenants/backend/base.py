"""Where Django finds the backend's connection.

Owns the one place that each statement of the ORM and of `connection.cursor()` passes. Must not choose a schema:
tenants.context does.
"""

from __future__ import annotations

from typing import Any

from django_tenants.postgresql_backend import base

from tenants.context import refuse_another_schema


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]  # django-tenants carries no types
    """A connection that shows no rows to code that is bound to another schema, or to nothing.

    When it is opened is too early to ask: async code and pools come back to connections that are open already.
    """

    def _cursor(self, name: str | None = None) -> Any:
        refuse_another_schema(self)
        return super()._cursor(name)
