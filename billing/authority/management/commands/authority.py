"""`manage.py authority`: the embedded budget authority, both planes, until it is told to stop."""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import RawDescriptionHelpFormatter
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError

from billing.authority.conf import setting
from billing.authority.processes import Planes, StartError, watch_parent
from billing.authority.schema import bring_up_to_date


class Command(BaseCommand):
    help = """Run the embedded budget authority: the runtime plane and the admin plane, each on its own port.

Makes its Postgres schema if it is missing, migrates it, installs its SQL functions, starts both planes and prints one
line when they answer.
TERM or Ctrl-C stops both. If one plane ends, the other is stopped too and the exit code is 1.
Each plane describes itself in OpenAPI: GET /api-docs with the admin key as X-Admin-API-Key.

variables:
  AUTHORITY_RUNTIME_PORT  port of the runtime plane (7878)
  AUTHORITY_ADMIN_PORT    port of the admin plane (7979)
  CYCLES_ADMIN_API_KEY    the admin key; without it the file secrets/CYCLES_ADMIN_API_KEY in STATE_DIR
  KEY_SEALING_KEY         seals the webhooks' secrets; without it the file secrets/KEY_SEALING_KEY in STATE_DIR
  DATABASE_URL            the database; its schema `authority` is used
  DB_POOL_MAX             connections of the runtime plane (2)
  AUTHORITY_GATHER        reserves and commits of the same moment together: on or off (on)"""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        return super().create_parser(prog_name, subcommand, formatter_class=RawDescriptionHelpFormatter, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--runtime-port", type=int, default=setting("AUTHORITY_RUNTIME_PORT"))
        parser.add_argument("--admin-port", type=int, default=setting("AUTHORITY_ADMIN_PORT"))
        parser.add_argument("--host", default="127.0.0.1", help="address of both listeners (127.0.0.1)")
        parser.add_argument("--watch", type=int, default=-1, help="file descriptor that ends when the starter does")

    def handle(self, *args: Any, **options: Any) -> None:
        planes = Planes(options["host"], options["runtime_port"], options["admin_port"])
        # From here on a signal is an exception, so that it meets `finally` wherever it comes.
        signal.signal(signal.SIGTERM, _leave)
        signal.signal(signal.SIGINT, _leave)
        watch_parent(options["watch"])
        try:
            bring_up_to_date()
        except OperationalError as error:
            raise CommandError(f"The database cannot be reached: {str(error).strip()}") from None
        # The planes are told by the environment which settings are theirs, whoever started us.
        os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings_authority"
        try:
            planes.start()
            planes.wait_until_ready()
            self.stdout.write(
                f"authority: runtime plane http://{planes.host}:{planes.runtime_port} · "
                f"admin plane http://{planes.host}:{planes.admin_port}"
            )
            self.stdout.flush()
            while (gone := planes.gone()) is None:
                time.sleep(0.2)
            raise CommandError(f"The {gone} plane ended; the other was stopped.")
        except StartError as error:
            raise CommandError(str(error)) from None
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            planes.stop()


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
