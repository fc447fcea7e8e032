"""Migrating many tenants: those that have a schema and are behind, each for itself.

A tenant that is still being set up has no schema yet, or half of one, and one migration may fail for one tenant's rows;
django-tenants' own executor stops at the first such, and every tenant after it stays behind. What is pending is
migrated by `ensure_schema` when its turn comes. Must not build a schema.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from django.core.management import CommandError
from django.db import connection
from django_tenants.migration_executors import StandardExecutor
from django_tenants.migration_executors.base import run_migrations

from tenants import grants, schema_versions
from tenants.context import enter
from tenants.locks import one_at_a_time, schema_lock
from tenants.migrating import one_schema_at_a_time, refuse_missing_tables
from tenants.models import SchemaVersion, Tenant
from tenants.schema_template import statements_for

logger = logging.getLogger(__name__)

# With any of these, `migrate` does something else than to bring a schema up to date.
_OTHER_WISHES = ("app_label", "fake", "fake_initial", "plan", "prune", "check_unapplied")


class BuiltSchemasExecutor(StandardExecutor):  # type: ignore[misc]
    codename = "built"

    def run_migrations(self, tenants: Iterable[str] | None = None) -> None:
        names = list(tenants or [])
        if names == [self.PUBLIC_SCHEMA_NAME]:
            super().run_migrations([*names])  # it takes out what it has done
            open_to_serving(names)
            return
        if not (wished := any(self.options.get(wish) for wish in _OTHER_WISHES)):
            of_all = not self.options.get("schema_name")
            _record_template(schema_versions.begin_release() if of_all else schema_versions.ensure_version())
        left_out = Tenant.objects.none() if wished else Tenant.objects.filter(schema_versions.is_current())
        built, current = _built(), set(left_out.values_list("schema_name", flat=True))
        # Also where there is nothing to migrate: somebody may have granted by hand, or the settings say otherwise now.
        open_to_serving([name for name in names if name in built & current])
        names = [name for name in names if name in built - current]
        failed = [name for place, name in enumerate(names) if not self._migrated(name, place, len(names), wished)]
        if failed:
            slugs = Tenant.objects.filter(schema_name__in=failed).order_by("slug").values_list("slug", flat=True)
            raise CommandError(f"Failed for {', '.join(slugs)}; the others are done.")

    def _migrated(self, name: str, place: int, count: int, wished: bool) -> bool:
        """Whether it went well. A failure is logged, and no other tenant's."""
        try:
            with one_at_a_time(schema_lock(name)), one_schema_at_a_time():
                run_migrations(self.args, self.options, self.codename, name, idx=place, count=count)
                if not wished:
                    refuse_missing_tables(name)
        except (Exception, SystemExit):  # `--check` ends the process by the latter
            logger.exception("Not migrated: schema=%s", name)
            connection.close()
            return False
        else:
            self._note(name, wished)
            return True
        finally:
            enter(None)

    def _note(self, name: str, wished: bool) -> None:
        if self.options.get("plan") or self.options.get("check_unapplied"):
            return
        open_to_serving([name])
        if not wished:
            schema_versions.note_migrated(name)
        elif not schema_versions.has_all_migrations(name):
            schema_versions.note_unknown(name)


def _record_template(version: SchemaVersion) -> None:
    """Here, at a deploy, rather than in the first customer's sign-up after it; which will meet the same failure."""
    try:
        statements_for(version)
    except Exception:  # a migration that fails on an empty schema must not keep tenants that have rows behind
        logger.exception("No template can be recorded now")


def _built() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nspname FROM pg_namespace")
        return {name for (name,) in cursor.fetchall()}


def open_to_serving(schemas: list[str]) -> None:
    """Web and plane may use what was migrated."""
    try:
        for name in schemas:
            grants.on_public() if name == grants.PUBLIC else grants.on_schema(name)
    except grants.UnsafeServingRole as refused:
        raise CommandError(str(refused)) from None


def get_executor(codename: str | None = None) -> type[BuiltSchemasExecutor]:
    """For GET_EXECUTOR_FUNCTION."""
    return BuiltSchemasExecutor
