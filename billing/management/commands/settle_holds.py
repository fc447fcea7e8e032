"""`manage.py settle_holds`: settle now what dead processes left; the jobs process does it every few seconds."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand

from billing.settlement import sweep


class Command(BaseCommand):
    help = "Settle the calls of processes that have died, by what their rows say. Safe to repeat."

    def handle(self, *args: Any, **options: Any) -> None:
        swept = sweep(at_once=True)
        self.stdout.write(f"{swept.settled} settled, {swept.waiting} to be tried again.")
        if swept.waiting:
            sys.exit(1)
