"""Django's own, whose autoreloader runs the command on a thread: bound to the public schema, as any command is."""

from __future__ import annotations

from typing import Any

from django.contrib.staticfiles.management.commands import runserver

from tenants.context import bind


class Command(runserver.Command):
    def inner_run(self, *args: Any, **options: Any) -> None:
        bind(None)
        super().inner_run(*args, **options)
