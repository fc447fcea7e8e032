"""Gives a member of a workspace another role, such as an owner's where its owner cannot be asked any more.

Make sure who asks: an owner may do everything there.
"""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tenants.commands import active_tenant
from tenants.context import tenant_scope
from tenants.http import NotFound
from tenants.roles import RANK
from tenants.users import people


class Command(BaseCommand):
    help = "Give a member of a workspace a role. The workspace's audit trail says so."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug")
        parser.add_argument("email")
        parser.add_argument("role", choices=[role.value for role in RANK])

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with tenant_scope(active_tenant(options["slug"])):
                member = people.give_role(options["email"], role=options["role"])
        except NotFound:
            raise CommandError("No such member in this workspace.") from None
        except people.LastOwner as exc:
            raise CommandError(exc.message) from None
        self.stdout.write(f"{member.email} is {people.in_words(member.role)} now.")
