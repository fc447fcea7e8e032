"""Which engine serves the code that runs now, and the loop thread of a process that is not asynchronous.

Owns `here` (the engine of the running loop) and `run` (for plain functions: the engine's loop on a thread of its own,
started at the first use in each process, for a fork takes no threads along). Must not know what is bought.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import os
import signal
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextvars import Context
from types import FrameType
from typing import Any, TypeVar

from django.db import connections

from billing.asking import Params, Row
from billing.engine.engine import Engine
from billing.engine.store import FAILURES

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Of a process that ends: what is under way is cut and settled within this.
DRAIN_SECONDS = 5.0

_engines: dict[asyncio.AbstractEventLoop, Engine] = {}
_lock = threading.Lock()
_thread: LoopThread | None = None


def here() -> Engine:
    """The engine of the running event loop, made at the first use."""
    loop = asyncio.get_running_loop()
    engine = _engines.get(loop)
    if engine is None:
        engine = _engines[loop] = Engine("plane" if _thread is None or _thread.loop is not loop else "loop")
    return engine


async def fetch(query: str, params: Params = None) -> list[Row]:
    """Plain SQL on the running loop's engine: schema-qualified, one statement, no transaction."""
    return await here().store.fetch(query, params)


def has_engine() -> bool:
    """Whether the running loop has an engine of its own: the plane's, or the loop thread's."""
    loop = asyncio.get_running_loop()
    return loop in _engines or (_thread is not None and _thread.loop is loop)


async def on_engine(work: Coroutine[Any, Any, T]) -> T:
    """`work` on the running loop's engine, else on this process's. A loop of asyncio.run, or of one async view under
    web, ends before its calls are settled, and an engine of its own would leave its connections behind.
    """
    if has_engine():
        return await work
    return await asyncio.wrap_future(loop_thread().submit(work))


async def close_here(seconds: float = DRAIN_SECONDS) -> None:
    """End the running loop's engine: what is under way is cut, settled, and written."""
    engine = _engines.pop(asyncio.get_running_loop(), None)
    if engine is not None:
        await engine.drain(seconds)


# --- the plane ------------------------------------------------------------------------------------------------------

# Of the ten seconds that a plane has once it is told to stop: streams go on, then are cut, then settle.
GRACE_SECONDS = 7.0
# New objects that are still there, before the collector looks among them.
COLLECT_AFTER = 20_000


async def start_plane() -> None:
    """Before the plane's first request: its own row and connections, and an ear for the end.

    Servers tell an application of the end only once every answer is over, which an endless one never is.
    """
    engine = here()
    _rarely_collect()
    try:
        await engine.register()
    except FAILURES:
        logger.warning("The plane starts without its database")
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

    def told(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(loop.call_later, GRACE_SECONDS, engine.cut_all)
        if callable(before):
            before(number, frame)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, told)


def _rarely_collect() -> None:
    """What is loaded by now stays, so that the collector need not walk it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, 20, 50)


async def stop_plane() -> None:
    """After its last answer: what is still settling is settled, or left to the sweep."""
    await close_here(seconds=2.0)


# --- a thread for code that is not asynchronous -----------------------------------------------------------------------


class LoopThread:
    """An event loop on a thread of its own, for one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin `work`, with nothing of the caller's context: what the engine keeps open would keep its tenant bound,
        and its reservation alive.
        """
        return Context().run(asyncio.run_coroutine_threadsafe, work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.submit(work).result()

    def stop(self) -> None:
        self.run(close_here())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5.0)
        self.loop.close()


def loop_thread() -> LoopThread:
    global _thread
    with _lock:
        if _thread is None or _thread.pid != os.getpid():
            _thread = LoopThread()
        return _thread


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, done on this process's engine. For plain functions; blocks the calling thread."""
    try:
        refuse_on_loop()
    except RuntimeError:
        work.close()
        raise
    return loop_thread().run(work)


class NotHere(RuntimeError):
    """A paid call where none can be made. No model was reached, so that an outer hold is not charged for it."""

    reached = False


def refuse_on_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise NotHere("This would stop the event loop that it is called on: await chat.calls.acomplete instead.")


def refuse_in_transaction() -> None:
    """Before money is asked for: a rollback could not take a paid call back."""
    connection = connections["default"]
    if connection.in_atomic_block or (connection.connection is not None and not connection.autocommit):
        raise NotHere(
            "A call cannot be paid for inside a transaction: end it first. A test of one takes the fixtures of "
            "tests/conftest.py, and neither TestCase nor django_db."
        )


def cut_all() -> None:
    """End every answer under way on this process's loop thread, from any thread: each is settled by what came."""
    if _thread is not None and _thread.pid == os.getpid():
        for engine in list(_engines.values()):
            _thread.loop.call_soon_threadsafe(engine.cut_all)


def stop() -> None:
    """End this process's loop thread, if it has one: at exit, and before a test's database goes."""
    global _thread
    with _lock:
        thread, _thread = _thread, None
    if thread is not None and thread.pid == os.getpid():
        thread.stop()


atexit.register(stop)
