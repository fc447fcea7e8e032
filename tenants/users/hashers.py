"""How passwords are hashed: as Django does, on one thread of the process that gives way to all others; and on one that
does not, for sign-ups.

Owns those threads and how many may wait for them. A hash is a third of a second of work: on the threads of requests a
burst of log-ins takes every core from the neighbours' pages. Named in PASSWORD_HASHERS, so that nothing hashes past it.
The threads know no tenant and no database.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

from django.contrib.auth.hashers import PBKDF2PasswordHasher

from tenants.http import RateLimited

T = TypeVar("T")

# Each that waits holds one of web's threads (16 by default).
WAITING = 4
WAIT_SECONDS = 2.0
# A tenth of a core where others want all of it. The lowest priority of all would leave nobody's log-in an end there.
NICER = 10


class HashingBusy(RateLimited):
    """So many passwords are being checked that this one was not looked at."""

    message = "Many people are logging in just now. Try again in a moment."
    retry_after_ms = 2_000


class OneAtATime:
    """Does one piece of work after another on a thread of its own, of low priority unless told otherwise."""

    def __init__(self, *, waiting: int, seconds: float, gives_way: bool = True) -> None:
        self._places = threading.BoundedSemaphore(1 + waiting)
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hashing", initializer=_give_way if gives_way else None)

    def is_full(self) -> bool:
        if self._places.acquire(blocking=False):
            self._places.release()
            return False
        return True

    def do(self, work: Callable[[], T]) -> T:
        """What `work` returns. Raises HashingBusy where too many wait, or it was not begun in time."""
        if not self._places.acquire(blocking=False):
            raise HashingBusy
        try:
            done: Future[T] = self._thread.submit(work)
        except BaseException:
            self._places.release()
            raise
        # Not when this thread stops waiting: the work may go on without it.
        done.add_done_callback(lambda _: self._places.release())
        with suppress(TimeoutError):
            return done.result(self._seconds)
        if done.cancel():
            raise HashingBusy
        return done.result()  # it has begun, and is worth waiting for


def _give_way() -> None:
    """Linux has priorities for threads. Elsewhere the process has one, and would take the whole of it down."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICER))


def _begin() -> None:
    global _hashing, _ahead
    _hashing = OneAtATime(waiting=WAITING, seconds=WAIT_SECONDS)
    _ahead = OneAtATime(waiting=WAITING, seconds=WAIT_SECONDS, gives_way=False)


_hashing: OneAtATime
_ahead: OneAtATime
_goes_ahead: ContextVar[bool] = ContextVar("goes_ahead", default=False)
_begin()
# A thread does not live on in a forked process, and whoever handed it work there would wait for ever.
os.register_at_fork(after_in_child=_begin)


@contextmanager
def going_ahead() -> Iterator[None]:
    """Hash on a thread that does not give way, for what is counted and limited before: sign-ups.

    On a busy machine the other thread takes four times as long, and of a sign-up nothing takes longer than the hash.
    """
    before = _goes_ahead.set(True)
    try:
        yield
    finally:
        _goes_ahead.reset(before)


def refuse_if_full() -> None:
    """Raises HashingBusy where a password would not be looked at anyway, for whoever has work to do before."""
    if _thread().is_full():
        raise HashingBusy


def _thread() -> OneAtATime:
    return _ahead if _goes_ahead.get() else _hashing


class InTurn(PBKDF2PasswordHasher):
    """Django's own, under its own name: what is stored stays good, in either direction."""

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        return _thread().do(partial(super().encode, password, salt, iterations))
