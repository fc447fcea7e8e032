"""`manage.py roll_budgets [slug]`: roll over now the budgets that are due; the jobs process does it every minute."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from billing import periods
from billing.allowance import SERVED
from billing.models import Account
from billing.money import usd


class Command(BaseCommand):
    help = "Begin the next period of each budget whose period has ended. Safe to repeat, and beside the jobs process."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug", nargs="?", help="one workspace; without it, all")

    def handle(self, *args: Any, **options: Any) -> None:
        now = periods.database_time()
        accounts = periods.due(now).order_by("pk")
        if slug := options["slug"]:
            accounts = accounts.filter(tenant__slug=slug)
            if not accounts:
                self._say_why_not(slug)
                return
        rolled = [self._tell(periods.roll_over(account, now=now)) for account in accounts.iterator()]
        if not all(rolled):
            sys.exit(1)

    def _tell(self, rolled: periods.Rolled) -> bool:
        slug = rolled.account.tenant.slug
        for period in rolled.opened:
            carried = f" and ${usd(period.carried)} carried over" if period.carried else ""
            self.stdout.write(
                f"{slug}: {period.starts_at:%Y-%m-%d} to {period.ends_at:%Y-%m-%d}: ${usd(period.allowance)}{carried}."
            )
        if rolled.problem is not None:
            self.stdout.write(f"{slug}: not rolled over: {rolled.problem}")
        elif not rolled.opened:
            self.stdout.write(f"{slug}: up to date.")
        return rolled.problem is None

    def _say_why_not(self, slug: str) -> None:
        account = Account.objects.filter(tenant__slug=slug, status__in=SERVED).first()
        period = None if account is None else periods.current(account)
        if period is None:
            raise CommandError(f"There is no workspace {slug} whose budget could be rolled over.")
        self.stdout.write(f"{slug}: its period ends on {period.ends_at:%Y-%m-%d at %H:%M} UTC.")
