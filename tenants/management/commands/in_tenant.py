"""Runs a command of Django's, or of anybody's, inside workspaces: `manage.py in_tenant --tenant acme shell`."""

from __future__ import annotations

import argparse
from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser

from tenants.commands import TenantCommand
from tenants.models import Tenant


class Command(TenantCommand):
    help = "Run another command inside one workspace, some, or every active one. Its name and options come last."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("command", nargs=argparse.REMAINDER, help="the command with its options")

    def handle_tenant(self, tenant: Tenant, **options: Any) -> None:
        if not options["command"]:
            raise CommandError("Which command? Write its name and options last.")
        if options["command"][0] == "dbshell":
            # A process of its own, where the tables of the same names are public's: operators and their sessions.
            raise CommandError(
                "psql would not be inside it. Write `manage.py dbshell`, and there "
                f"SET search_path = {tenant.schema_name};"
            )
        self.stderr.write(f"{tenant.slug}:")
        try:
            call_command(*options["command"], stdout=self.stdout, stderr=self.stderr)
        except SystemExit as exc:  # as `check` and others end; it would end this for all other workspaces, too
            if exc.code:
                raise CommandError(f"{options['command'][0]} ended with {exc.code}.") from None
