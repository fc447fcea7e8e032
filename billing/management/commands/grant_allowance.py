"""`manage.py grant_allowance <slug>`: the allowance of a workspace whose owner cannot confirm their e-mail, by hand."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from billing import allowance
from billing.errors import BudgetError
from billing.models import Account
from tenants.context import tenant_scope


class Command(BaseCommand):
    help = "Grant a workspace the allowance that waits for its owner's confirmed e-mail. Safe to repeat."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug")

    def handle(self, *args: Any, **options: Any) -> None:
        slug: str = options["slug"]
        account = Account.objects.select_related("tenant").filter(tenant__slug=slug).first()
        if account is None or account.status not in allowance.SERVED:
            raise CommandError(f"There is no workspace {slug} that is set up.")
        with tenant_scope(account.tenant), transaction.atomic(durable=True):
            is_new = allowance.grant(account, via="command")
        try:
            allowance.pay(account)
        except BudgetError as exc:
            raise CommandError(
                f"{slug} is granted its allowance, and the authority has not credited it yet ({exc}). The jobs process "
                "does so within minutes; this command may be run again."
            ) from exc
        self.stdout.write(f"{slug}: {'granted' if is_new else 'it has its allowance'}")
