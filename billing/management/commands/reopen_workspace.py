"""Undoes the deletion of a workspace while its rows are there."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from billing import closing
from billing.errors import BudgetError
from billing.models import Account
from tenants.hosts import host_for, url_for


class Command(BaseCommand):
    help = "Reopen a deleted workspace. Its members log in as before; sessions, keys and invitations stay ended."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug")

    def handle(self, *args: Any, **options: Any) -> None:
        slug = options["slug"].strip().lower()
        # By its address, which may be an earlier one.
        account = Account.objects.select_related("tenant").filter(tenant__domains__domain=host_for(slug)).first()
        if account is None:
            raise CommandError(f"There is no workspace {slug}.")
        try:
            closing.reopen(account)
        except (closing.CannotReopen, BudgetError) as exc:
            raise CommandError(f"{slug} cannot be reopened. {exc}") from exc
        self.stdout.write(f"{account.tenant.slug} is open again: {url_for(account.tenant.slug)}")
