"""Commands that work for workspaces: `--tenant SLUG` or `--all`, each inside its tenant.

Owns which workspaces are meant, that one which fails stops no other, and the exit code. Must not know what a command
does. Also what is said in place of django-tenants' own commands, which ask for schema names, bind no tenant, and make
or break tenants by halves.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from django_tenants.utils import schema_exists

from tenants.context import tenant_scope
from tenants.models import Tenant
from tenants.schema_versions import is_current

logger = logging.getLogger(__name__)


class TenantCommand(BaseCommand):
    """Base of a command of yours: write `handle_tenant(tenant, **options)`.

    It is called once for each workspace that is active at its turn, with the tenant bound and the connection inside its
    schema. Raise CommandError to say that it failed there; the others follow all the same, and the exit code is 1.
    """

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--tenant", metavar="SLUG", action="append", help="a workspace; may be given several times")
        which.add_argument("--all", dest="all_tenants", action="store_true", help="every active workspace")

    def handle(self, *args: Any, **options: Any) -> None:
        slugs = self._slugs(options.pop("tenant"), all_tenants=options.pop("all_tenants"))
        failed = [slug for slug in slugs if not self._is_done(slug, options)]
        if failed:
            others = "; the others are done" if len(failed) < len(slugs) else ""
            raise CommandError(f"Failed for {', '.join(failed)}{others}.")

    def handle_tenant(self, tenant: Tenant, **options: Any) -> None:
        raise NotImplementedError

    def _slugs(self, named: list[str] | None, *, all_tenants: bool) -> list[str]:
        active = list(_active().order_by("slug").values_list("slug", flat=True))
        if all_tenants:
            return active
        wanted = list(dict.fromkeys(named or []))
        if strangers := [slug for slug in wanted if slug not in active]:
            raise CommandError(f"There is no active workspace {', '.join(strangers)}.")
        return wanted

    def _is_done(self, slug: str, options: dict[str, Any]) -> bool:
        tenant = _active().filter(slug=slug).first()
        if tenant is None:  # suspended or closed while others were worked for
            return True
        try:
            # Without its schema the search path would go on to public, and its rows would be taken for the tenant's.
            if not schema_exists(tenant.schema_name):
                raise CommandError("Its schema is missing.")
            # A table that is still to come may be public's, too, and be read there.
            if not _active().filter(is_current(), pk=tenant.pk).exists():
                raise CommandError("Its schema is behind this code: run `manage.py migrate_schemas` first.")
            with tenant_scope(tenant):
                self.handle_tenant(tenant, **options)
        except CommandError as exc:
            self.stderr.write(f"{slug}: {exc}")
            return False
        except Exception:
            logger.exception("The command failed for %s.", slug)
            return False
        finally:
            connection.close_if_unusable_or_obsolete()
        return True


def active_tenant(slug: str) -> Tenant:
    """For a command that works for the one workspace that it names."""
    found: Tenant | None = _active().filter(slug=slug).first()
    if found is None:
        raise CommandError(f"There is no active workspace {slug}.")
    return found


def _active() -> Any:
    return Tenant.objects.filter(status=Tenant.Status.ACTIVE)


class Superseded(BaseCommand):
    """A command of django-tenants that is not used here: whatever its arguments, it says what is."""

    instead: str
    requires_system_checks = []

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = self.instead

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("args", nargs="*")

    def run_from_argv(self, argv: list[str]) -> None:
        self.stderr.write(self.instead)
        sys.exit(1)

    def execute(self, *args: Any, **options: Any) -> NoReturn:
        raise CommandError(self.instead)
