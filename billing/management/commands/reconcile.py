"""`manage.py reconcile [tenant | --house]`: do lines, holds, ledgers, reservations agree? Exit code 0 if they do."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import ProgrammingError

from billing.errors import BudgetError, NoHouseAccount
from billing.models import Account
from billing.reconcile import Books, differences, house_has_books, read, read_house


class Command(BaseCommand):
    help = (
        "Compare the lines, holds and ledgers of each tenant, and of the house, with the authority, and say why they "
        "differ. Changes nothing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", nargs="?", help="the slug of one tenant; without it, all, and the house")
        parser.add_argument("--house", action="store_true", help="the house's own account alone")

    def handle(self, *args: Any, **options: Any) -> None:
        # Of a deleted workspace's books nothing is left on our side.
        set_up = Account.objects.exclude(status=Account.Status.PENDING).filter(tenant__purged_at=None)
        accounts = set_up.select_related("tenant").order_by("id")
        is_house_too = options["house"] or (not options["tenant"] and house_has_books())
        if options["house"]:
            if options["tenant"]:
                raise CommandError("Name a tenant or --house, not both.")
            if not house_has_books():
                raise CommandError(str(NoHouseAccount()))
            accounts = accounts.none()
        elif options["tenant"]:
            accounts = accounts.filter(tenant__slug=options["tenant"])
            if not accounts:
                raise CommandError(f"There is no tenant {options['tenant']} that has been set up.")
        agree = [self._reconcile(account.tenant.slug, functools.partial(read, account)) for account in accounts]
        if is_house_too:
            agree.append(self._reconcile("the house", read_house))
        if not all(agree):
            sys.exit(1)

    def _reconcile(self, who: str, read_books: Callable[[], Books]) -> bool:
        try:
            books = read_books()
        except NoHouseAccount as exc:
            self.stdout.write(f"{who}: calls of it are not settled, and nothing can be asked: {exc}")
            return False
        except BudgetError as exc:
            self.stdout.write(f"{who}: the authority gives no figures: {exc}")
            return False
        except ProgrammingError as exc:
            # A schema that is gone, or is just being dropped. The others' books must be compared all the same.
            self.stdout.write(f"{who}: its rows cannot be read: {str(exc).partition(chr(10))[0]}")
            return False
        found = differences(books)
        self.stdout.write(f"{who}: {books.summary()}: {'they differ' if found else 'they agree'}.")
        for difference in found:
            self.stdout.write(f"  {difference}")
        return not found
