"""Makes an API key of a workspace and prints it once."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from tenants.commands import active_tenant
from tenants.context import tenant_scope
from tenants.roles import SCOPES, Action, Role
from tenants.spelling import normal_name
from tenants.users.keys import create_key
from tenants.users.models import User

MAX_DAYS = 3650


class Command(BaseCommand):
    help = "Make an API key for a member of a workspace (its owner, unless --email says otherwise)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug")
        parser.add_argument("--email", help="the member; default: the owner")
        parser.add_argument("--name", default="Made on the command line")
        every = ",".join(SCOPES)
        parser.add_argument("--scopes", default=every, help=f"what it may do, separated by commas; default: {every}")
        parser.add_argument("--expires-days", help="in how many days it ends, 1 to 3650; default: never")

    def handle(self, *args: Any, **options: Any) -> None:
        name = normal_name(options["name"])
        if not 1 <= len(name) <= 100:
            raise CommandError("A key's name has 1 to 100 characters that can be seen.")
        scopes, expires_at = _scopes(options["scopes"]), _end(options["expires_days"])
        with tenant_scope(active_tenant(options["slug"])):
            if options["email"]:
                member = User.objects.with_email(options["email"])
            else:
                member = User.objects.filter(is_active=True, role=Role.OWNER).order_by("pk").first()
            if member is None or not member.is_active:
                raise CommandError("No such member in this workspace.")
            if missing := [scope for scope in scopes if not member.may(Action(scope))]:
                raise CommandError(f"{member.role.capitalize()}s may not {', '.join(missing)}, nor may their keys.")
            _, secret = create_key(member, name=name, scopes=scopes, expires_at=expires_at, via="command")
        self.stdout.write(secret)


def _scopes(given: str) -> list[str]:
    scopes = list(dict.fromkeys(scope.strip() for scope in given.split(",") if scope.strip()))
    if not scopes or not set(scopes) <= set(SCOPES):
        raise CommandError(f"--scopes is {given!r}: write one or more of {', '.join(SCOPES)}, separated by commas.")
    return scopes


def _end(days: str | None) -> datetime | None:
    if days is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,3}", days) or int(days) > MAX_DAYS:
        raise CommandError(f"--expires-days is {days!r}: write a whole number from 1 to {MAX_DAYS}.")
    return timezone.now() + timedelta(days=int(days))
