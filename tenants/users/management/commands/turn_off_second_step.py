"""Lets somebody in by the password alone again, who has lost their phone and their recovery codes.

Make sure who asks, by another way than mail: whoever has the password is in after this.
"""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tenants.commands import active_tenant
from tenants.context import tenant_scope
from tenants.users.models import User
from tenants.users.second_step import turn_off


class Command(BaseCommand):
    help = "Turn off a member's two-step log-in. They are told by mail, and the workspace's audit trail says so."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug")
        parser.add_argument("email")

    def handle(self, *args: Any, **options: Any) -> None:
        with tenant_scope(active_tenant(options["slug"])):
            member = User.objects.with_email(options["email"])
            if member is None or not member.is_active:
                raise CommandError("No such member in this workspace.")
            if member.second_step_at is None:
                raise CommandError("Their two-step log-in is not on.")
            turn_off(member, request=None, via="command")
        self.stdout.write(f"Two-step log-in is off for {member.email}.")
