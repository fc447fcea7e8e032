"""Tasks as an app would declare them; each writes down where it ran."""

import os
import time
from pathlib import Path

from django.db import connection, transaction
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from billing import settlement
from tenants.context import current_tenant
from tenants.jobs import without_tenant
from tenants.users.models import User


@app.task
def add_member(*, email: str) -> None:
    User.objects.create(email=email)


@app.task(retry=RetryStrategy(max_attempts=5, wait=0))
def note(*, path: str) -> None:
    """Which tenant the code, and which schema the connection works for."""
    tenant = current_tenant()
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        write(path, f"{tenant and tenant.pk} {cursor.fetchone()[0]}")


@app.task
@without_tenant
def note_public(*, path: str) -> None:
    note.func(path=path)


@app.task
def linger(*, path: str, seconds: float) -> None:
    write(path, f"began {os.getpid()}")
    time.sleep(seconds)
    write(path, f"ended {os.getpid()}")


@app.task
def enqueue_and_fail(*, path: str) -> None:
    with transaction.atomic():
        note.defer(path=path)
        raise RuntimeError("rolled back")


@app.task
def enqueue(*, path: str) -> None:
    note.defer(path=path)


@app.task
def is_lazy() -> object:
    async def later() -> None: ...

    return later()


@app.task
async def is_async() -> None: ...


def sweep() -> None:
    if os.environ.get("SWEEP_AT_ONCE"):
        settlement.sweep(at_once=True)
    if path := os.environ.get("SWEEP_NOTES"):
        write(path, "swept")
        raise RuntimeError("the sweep failed on purpose")


def write(path: str, line: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{line}\n")


def read(path) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
