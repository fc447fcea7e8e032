"""The embedded Postgres of one STATE_DIR, shared by everything that uses it at the same time.

Owns its address and the locks that say who uses it. Must do nothing when DATABASE_URL names a server.

    python -m config.stack.postgres run -- CMD…    the server is up while CMD runs
    python -m config.stack.postgres url            its address; starts nothing
    python -m config.stack.postgres stop           stops it unless somebody uses it
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.parse import quote

from config.database import embedded_database, owner_database_url
from config.env import state_dir
from config.stack import StackError, processes
from config.stack.places import make_state, places_for
from config.stack.roles import OWNER, SERVING
from config.stack.server import DATABASE, PORT, Server


def embedded_database_url(state_dir: Path, role: str = OWNER) -> str:
    """The address of the server of `state_dir`. Computes only."""
    return f"postgresql://{role}@:{PORT}/{DATABASE}?host={quote(str(places_for(state_dir).sockets), safe='')}"


def serving_embedded_url(state_dir: Path) -> str:
    """The same for web and plane."""
    return embedded_database_url(state_dir, SERVING)


class SharedPostgres:
    """The server is up from `acquire` to `release`; the last holder of a STATE_DIR stops it.

    Holding is a shared flock: it ends with its process, however that ends, so no count can go wrong. Who
    wants to stop the server needs the lock exclusively; who starts it holds it shared, and a second lock
    lets only one start at a time.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state = state_dir
        self._lock: IO[str] | None = None
        self._pid = 0
        self._seen: processes.Process | None = None

    def __enter__(self) -> str:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def acquire(self) -> str:
        make_state(self._state)
        self._lock = _open_lock(self._state / "postgres.lock")
        self._pid = os.getpid()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # waits while somebody stops the server
            with _open_lock(self._state / "postgres-start.lock") as starting:
                fcntl.flock(starting, fcntl.LOCK_EX)
                # Only now: the winner of a cold race has made what decides the places.
                Server(places_for(self._state)).ensure_up()
        except BaseException:
            self.release()
            raise
        return embedded_database_url(self._state)

    def is_up(self) -> bool:
        """Whether its processes are there; asks the server nothing."""
        if self._seen is None or not processes.lives(self._seen):
            self._seen = next(iter(processes.postgres_on(places_for(self._state).data)), None)
        return self._seen is not None

    def release(self) -> None:
        """Let go; the last one out stops the server. Safe to repeat, and does nothing in a forked child."""
        lock, self._lock = self._lock, None
        if lock is None or self._pid != os.getpid():
            return
        with lock:
            if _take(lock):
                Server(places_for(self._state)).stop()


@contextmanager
def unused(state_dir: Path) -> Iterator[None]:
    """The server is stopped and stays so inside; refused while somebody holds it."""
    make_state(state_dir)
    with _open_lock(state_dir / "postgres.lock") as lock:
        if not _take(lock):
            raise StackError("Postgres is in use by `make run`, a test run or a command; it stops with the last.")
        Server(places_for(state_dir)).stop()
        yield


_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _forget_locks_in_child() -> None:
    # A forked worker shares its parent's lock; one that outlived the parent would keep the server up for
    # ever. Closing its copy does not unlock the parent's.
    for lock in _held:
        lock.close()


os.register_at_fork(after_in_child=_forget_locks_in_child)


def _open_lock(path: Path) -> IO[str]:
    try:
        lock = path.open("a")
    except OSError as exc:
        raise StackError(f"{path} cannot be opened ({exc.strerror}): does STATE_DIR belong to someone else?") from None
    _held.add(lock)
    return lock


def _take(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(arguments: list[str]) -> int:
    match arguments:
        case ["run", "--", *command] if command:
            return _run(command)
        case ["url"]:
            print(owner_database_url())
            return 0
        case ["stop"]:
            with unused(state_dir()):
                return 0
    print("usage: python -m config.stack.postgres run -- CMD… | url | stop", file=sys.stderr)
    return 2


def _run(command: list[str]) -> int:
    if not embedded_database():
        return _call(command)
    with SharedPostgres(state_dir()):
        return _call(command)


def _call(command: list[str]) -> int:
    """Run it to its end. A Ctrl-C reaches it from the terminal, a TERM is handed on: it ends first."""
    children: list[subprocess.Popen[bytes]] = []
    told: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for child in children:
            child.send_signal(number)

    # Before there is a child: a TERM in between would end us and not it.
    signal.signal(signal.SIGTERM, hand_on)
    child = subprocess.Popen(command)
    children.append(child)
    if told:
        child.send_signal(told[0])
    # Not before: what is ignored stays ignored in the command.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StackError as error:
        sys.exit(str(error))
