"""Adds money to a workspace's budget, once for each key."""

from __future__ import annotations

import argparse
from decimal import InvalidOperation
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from billing.errors import BudgetError
from billing.models import Account
from billing.money import microcents, usd
from billing.topups import TopUpConflict, TopUpKeyUnfit, TopUpRefused, top_up


def _amount(text: str) -> int:
    try:
        amount = microcents(text)
    except (ValueError, InvalidOperation):
        raise argparse.ArgumentTypeError("write USD with at most 8 decimals, such as 5 or 0.25") from None
    if not 0 < amount <= 10**16:
        raise argparse.ArgumentTypeError("write an amount above 0 and of at most 100000000")
    return amount


class Command(BaseCommand):
    help = "Add USD to a workspace's budget. The same --key adds once, however often it is run."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug")
        parser.add_argument("usd", type=_amount, help="for example 5 or 0.25")
        parser.add_argument("--key", required=True, help="names this payment, for example the invoice's number")

    def handle(self, *args: Any, **options: Any) -> None:
        account = Account.objects.select_related("tenant").filter(tenant__slug=options["slug"]).first()
        if account is None or not account.sealed_key:
            raise CommandError(f"There is no workspace {options['slug']} that is ready to be topped up.")
        try:
            row = top_up(account, amount=options["usd"], key=options["key"])
        except (TopUpConflict, TopUpKeyUnfit, TopUpRefused, BudgetError) as exc:
            raise CommandError(str(exc)) from exc
        self.stdout.write(f"{account.tenant.slug}: ${usd(row.amount)} added under key {row.key}.")
