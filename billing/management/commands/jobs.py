"""The jobs process: runs what is enqueued, what is due by the clock, and the sweep of holds. Ends on SIGTERM."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, connection

from billing import jobs
from tenants.context import public_scope
from tenants.grants import NoBuilder, refuse_who_cannot_build


class Command(BaseCommand):
    help = "Run jobs, periodic tasks and the sweep until told to stop. Several may run side by side."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with public_scope():
                refuse_who_cannot_build()
        except NoBuilder as exc:
            raise CommandError(str(exc)) from exc
        except OperationalError:
            pass  # a database that is away just now is waited for
        finally:
            connection.close()
        jobs.run()
