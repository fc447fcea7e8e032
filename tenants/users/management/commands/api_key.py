"""Makes an API key of a workspace and prints it once."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tenants.context import tenant_scope
from tenants.models import Tenant
from tenants.roles import Role
from tenants.spelling import normal_name
from tenants.users.keys import create_key
from tenants.users.models import User


class Command(BaseCommand):
    help = "Make an API key for a member of a workspace (its owner, unless --email says otherwise)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug")
        parser.add_argument("--email", help="the member; default: the owner")
        parser.add_argument("--name", default="Made on the command line")

    def handle(self, *args: Any, **options: Any) -> None:
        name = normal_name(options["name"])
        if not 1 <= len(name) <= 100:
            raise CommandError("A key's name has 1 to 100 characters that can be seen.")
        tenant = Tenant.objects.filter(slug=options["slug"], status=Tenant.Status.ACTIVE).first()
        if tenant is None:
            raise CommandError(f"There is no active workspace {options['slug']}.")
        with tenant_scope(tenant):
            if options["email"]:
                member = User.objects.with_email(options["email"])
            else:
                member = User.objects.filter(is_active=True, role=Role.OWNER).order_by("pk").first()
            if member is None or not member.is_active:
                raise CommandError("No such member in this workspace.")
            _, secret = create_key(member, name=name)
        self.stdout.write(secret)
