"""Finishes every account that is still being set up. Safe to run at any time, from cron or by hand."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from billing.provisioning import try_to_provision, unfinished


class Command(BaseCommand):
    help = "Finish accounts whose setting-up was interrupted."

    def handle(self, *args: Any, **options: Any) -> None:
        failed = 0
        for account in unfinished().order_by("pk"):
            done = try_to_provision(account)
            failed += not done
            self.stdout.write(f"{account.tenant.slug}: {'ready' if done else 'not finished, see the log'}")
        if failed:
            raise CommandError(f"{failed} account(s) could not be finished. Run this again once the cause is gone.")
