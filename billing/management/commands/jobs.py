"""The jobs process: runs what is enqueued, what is due by the clock, and the sweep of holds. Ends on SIGTERM."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from billing import jobs


class Command(BaseCommand):
    help = "Run jobs, periodic tasks and the sweep until told to stop. Several may run side by side."

    def handle(self, *args: Any, **options: Any) -> None:
        jobs.run()
