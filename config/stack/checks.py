"""What is looked at before anything is started: who else runs, and what was given from outside.

Owns the sentences for it. Must not start anything.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psycopg

from config.env import envstr, envurl
from config.stack import StackError
from config.stack.server import check_version


@contextmanager
def only_one(state: Path) -> Iterator[IO[str]]:
    """The lock of a running stack; its file tells the pid to the one who comes second."""
    try:
        lock = (state / "supervisor.lock").open("a+")
    except OSError as exc:
        raise StackError(f"{state} cannot be written ({exc.strerror}): does it belong to someone else?") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"This stack is already running (pid {lock.read().strip() or 'unknown'}): "
                "stop it, or give this one its own STATE_DIR and ports."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock
        lock.truncate(0)


def authority_is_embedded() -> bool:
    given = {name for name in ("CYCLES_BASE_URL", "CYCLES_ADMIN_URL") if envurl(name)}
    if len(given) == 1:
        (missing,) = {"CYCLES_BASE_URL", "CYCLES_ADMIN_URL"} - given
        raise StackError(f"{missing} is not set: an external authority needs it beside {given.pop()}.")
    if given and not envstr("CYCLES_ADMIN_API_KEY"):
        raise StackError("CYCLES_ADMIN_API_KEY is not set: an external authority needs its admin key.")
    return not given


def check_database(name: str, url: str) -> None:
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            check_version(connection.info.server_version)
    except psycopg.Error as exc:
        raise StackError(f"The database of {name} cannot be used: {exc}") from None
