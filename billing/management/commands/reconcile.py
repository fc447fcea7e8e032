"""`manage.py reconcile [tenant]`: do lines, holds, ledgers and reservations agree? Exit code 0 if they do."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from billing.errors import BudgetError
from billing.models import Account
from billing.reconcile import differences, read


class Command(BaseCommand):
    help = (
        "Compare each tenant's lines, holds and ledgers with the authority, and say why they differ. Changes nothing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", nargs="?", help="the slug of one tenant; without it, all")

    def handle(self, *args: Any, **options: Any) -> None:
        accounts = Account.objects.exclude(status=Account.Status.PENDING).select_related("tenant").order_by("id")
        if options["tenant"]:
            accounts = accounts.filter(tenant__slug=options["tenant"])
            if not accounts:
                raise CommandError(f"There is no tenant {options['tenant']} that has been set up.")
        agree = [self._reconcile(account) for account in accounts]
        if not all(agree):
            sys.exit(1)

    def _reconcile(self, account: Account) -> bool:
        slug = account.tenant.slug
        try:
            books = read(account)
        except BudgetError as exc:
            self.stdout.write(f"{slug}: the authority gives no figures: {exc}")
            return False
        found = differences(books)
        self.stdout.write(f"{slug}: {books.summary()}: {'they differ' if found else 'they agree'}.")
        for difference in found:
            self.stdout.write(f"  {difference}")
        return not found
