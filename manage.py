#!/usr/bin/env python
"""Django's entry point. On a laptop it also brings up what a command needs: secrets and Postgres.

Must do neither when DATABASE_URL is set: production imports nothing of config.stack. Commands are the database's owner;
who only serves is not.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from types import FrameType

# These read no rows. Everything else gets a database, for a command nobody thought of is better off with one.
START_NOTHING = {
    "help",
    "version",
    "check",
    "collectstatic",
    "compilemessages",
    "diffsettings",
    "findstatic",
    "makemessages",
    "startapp",
    "startproject",
}


# How psycopg and its pool begin to say that a server cannot be reached, or lets nobody in. They quote no password.
AWAY = ("connection failed: ", "connection timeout expired", "failed to resolve host ", "couldn't get a connection ")

# What a command loads stays: looking through it for garbage, after every few hundred objects, was a sixth of the two
# seconds of CPU that `check` took.
COLLECT = (20_000, 20, 50)


def needs_database(arguments: list[str]) -> bool:
    """By the command's name and options alone: Django is not loaded yet."""
    command, options = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if command.startswith("-") or {"-h", "--help", "--version"} & set(options):
        return False
    if command == "makemigrations":
        return not {"--check", "--dry-run"} & set(options)
    if command == "check":
        return any(option.startswith("--database") for option in options)
    return command not in START_NOTHING


def serves(arguments: list[str]) -> bool:
    """A development server is web: what web's role may not do must fail there too."""
    return bool(arguments) and arguments[0].startswith("runserver")


def main() -> None:
    gc.set_threshold(*COLLECT)
    if find_spec("django") is None:
        sys.exit(f"This Python has no Django: write .venv/bin/python manage.py {' '.join(sys.argv[1:])}")
    authority = sys.argv[1:2] == ["authority"]
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings_authority" if authority else "config.settings")
    with ExitStack() as held:
        if not any(os.environ.get(name, "").strip() for name in ("DATABASE_URL", "DATABASE_OWNER_URL")):
            _start_laptop(held, sys.argv[1:])
        if not serves(sys.argv[1:]):
            from config.database import act_as_owner

            act_as_owner()
        _execute()


def _execute() -> None:
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    try:
        execute_from_command_line(sys.argv)
    except OperationalError as away:
        if "--traceback" in sys.argv or not str(away).startswith(AWAY):
            raise
        sys.exit(f"The database cannot be used: {away}")
    except ImproperlyConfigured as nonsense:
        if settings.configured:  # and so by the command itself, whose builder wants to see where
            raise
        # A variable, by its name. Where the settings were read when it was found says nothing about it.
        sys.exit(str(nonsense))


def _start_laptop(held: ExitStack, arguments: list[str]) -> None:
    from config.env import state_dir
    from config.stack import StackError
    from config.stack.secrets import ensure_secrets

    try:
        ensure_secrets(state_dir())
        if needs_database(arguments):
            from config.stack.postgres import SharedPostgres

            # A plain TERM would skip the release, and the last command would leave its server behind.
            signal.signal(signal.SIGTERM, _leave)
            held.enter_context(SharedPostgres(state_dir()))
    except StackError as error:
        sys.exit(str(error))


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
