"""The engine of a process: its connections, the calls under way, and the timers that keep them held.

Owns `Engine`. One for each event loop: the plane's own, or the loop thread of a process that is not asynchronous.
Must not know what is bought.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from uuid import uuid4

from django.conf import settings

from billing.engine.authority import Authority
from billing.engine.call import Call
from billing.engine.full_keys import FullKeys
from billing.engine.habits import Habits
from billing.engine.http import Http
from billing.engine.statements import FORGET_PROCESS, REGISTER, TELL
from billing.engine.store import CONNECTIONS, FAILURES, PLANE_CONNECTIONS, SchemaIsGone, Store
from billing.engine.waiting import Elsewhere, Exclusive, Lines
from billing.errors import TooManyCalls
from tenants.kept import hear

logger = logging.getLogger(__name__)

T = TypeVar("T")

HEARTBEAT_SECONDS = 5.0
# A process that has been silent for so long is taken for dead.
SILENT_SECONDS = 15.0
KEEPERS = 4
# An extension that failed is tried again so soon, and what lapses is noticed.
WATCH_SECONDS = 1.0
EXTENDED_AT_ONCE = 50
# On which processes tell each other who waits for money: "<process> <seconds, or -> <scope>".
CHANNEL = "billing_waits"


class Engine:
    """What the paid calls of one event loop share."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.process_id = uuid4()
        self.store = Store(size=PLANE_CONNECTIONS if kind == "plane" else CONNECTIONS)
        # A connection that no call can take. Behind a crowd of them a process would seem dead, and be swept alive.
        self._own_store = Store(size=1)
        self.authority = Authority()
        self.habits = Habits(self._own_store)
        self.lines = Lines()
        self.elsewhere = Elsewhere()
        self._stop_hearing: Callable[[], None] | None = None
        self.exclusive = Exclusive()
        self.full_keys = FullKeys()
        self.under_way: Counter[str] = Counter()
        self._opening: Counter[str] = Counter()
        self._calls: set[Call] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = asyncio.Event()
        self._registering: asyncio.Task[None] | None = None
        self._timers: list[asyncio.Task[None]] = []
        # When the last sign of life was written. What was held before `doubted_at` may have been settled since, by a
        # sweep that took this process for dead.
        self._beaten_at = math.inf
        self.doubted_at = -math.inf
        # Connections to models, by whoever opens them; closed with ours.
        self.models: dict[Any, Http] = {}
        # Requests that wait for the answer of an equal one, by whoever watches it for them.
        self.watches: dict[Any, Any] = {}
        # What is kept of answers, each on a thread: so many at once.
        self.keepers = asyncio.Semaphore(KEEPERS)
        # What else must end when the process does: answers under way, each by its own cut.
        self._cuts: set[Callable[[], None]] = set()

    @property
    def wait_seconds(self) -> float:
        return float(settings.BUDGET_WAIT_SECONDS)

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that belongs to the engine, not to whoever asked for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # An error that nobody waits for must not be lost.
        if task.cancelled() or (exc := task.exception()) is None:
            return
        # What has a status is told to whoever asked. But what could not be written is, too, where a schema is gone.
        if isinstance(exc, SchemaIsGone) or not getattr(exc, "status", None):
            logger.error("A task of the engine failed", exc_info=exc)

    async def pause(self, seconds: float) -> None:
        """Sleep, but not while the process ends."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def look_up(self, path: str, params: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """A read of the authority's admin plane; (0, {}) where nobody answers."""
        response = await self.authority.admin("GET", path, params=params)
        return max(0, response.status), response.body or {}

    # --- calls under way ---

    @contextmanager
    def place_for(self, tenant: str) -> Iterator[None]:
        """A place among the tenant's calls for one that is being opened, or waits for money. Raises TooManyCalls."""
        in_use = self.under_way[tenant] + self._opening[tenant]
        if in_use >= settings.TENANT_STREAMS_MAX:
            raise TooManyCalls(limit=settings.TENANT_STREAMS_MAX, in_use=in_use)
        self._opening[tenant] += 1
        try:
            yield
        finally:
            self._opening[tenant] -= 1
            if not self._opening[tenant]:
                del self._opening[tenant]

    def began(self, call: Call) -> Call:
        self._calls.add(call)
        self.under_way[call.payer.subject_tenant] += 1
        self._start_timers()
        return call

    def ended(self, call: Call) -> None:
        if call in self._calls:
            self._calls.discard(call)
            self.full_keys.ended(call)
            tenant = call.payer.subject_tenant
            self.under_way[tenant] -= 1
            if not self.under_way[tenant]:
                del self.under_way[tenant]

    def add_cut(self, cut: Callable[[], None]) -> None:
        self._cuts.add(cut)
        if self.is_closing:
            cut()

    def remove_cut(self, cut: Callable[[], None]) -> None:
        self._cuts.discard(cut)

    def cut_all(self) -> None:
        """End every answer under way: each reader gets its last event, each call is settled by what came."""
        for cut in list(self._cuts):
            cut()

    # --- who waits for money in other processes ---

    def tell_of_waiting(self, scope: str, waited: float | None) -> None:
        """Tell them of the first in the scope's line: for how long it has waited, or that it waits no more."""
        self.spawn(self._tell(f"{self.process_id} {'-' if waited is None else round(waited, 2)} {scope}"))

    async def _tell(self, payload: str) -> None:
        with suppress(*FAILURES):  # nobody gives way then, as nobody did before
            await self.store.fetch(TELL, [CHANNEL, payload])

    def _hear(self) -> Callable[[], None]:
        loop = asyncio.get_running_loop()

        def told(payload: str) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._note_elsewhere, payload)

        return hear(CHANNEL, told)

    def _note_elsewhere(self, payload: str) -> None:
        process, waited, scope = payload.split(" ", 2)
        if process != str(self.process_id):
            self.elsewhere.note(process, scope, None if waited == "-" else float(waited))

    # --- the process's own row, and its timers ---

    async def register(self) -> None:
        """Make the process known before its first hold: a hold of nobody's is taken for a dead process's."""
        self._start_timers()
        if self._registering is None or (self._registering.done() and self._registering.exception() is not None):
            self._registering = self.spawn(self._register())
        if not self._registering.done():
            await asyncio.shield(self._registering)

    async def _register(self) -> None:
        await self._say_that_it_lives()
        # A plane that nobody has asked yet lives as well: silent, its first call would be swept under it.
        self._start_timers()
        if self._stop_hearing is None:
            self._stop_hearing = self._hear()
        with suppress(*FAILURES):
            await self.habits.exchange()

    def _start_timers(self) -> None:
        """Each with a task of its own: an authority that hangs must not keep the heart from beating."""
        if not self._timers:
            loop = asyncio.get_running_loop()
            acts = (
                (self._beat, HEARTBEAT_SECONDS),
                (self._extend_all, WATCH_SECONDS),
                (self._watch, WATCH_SECONDS),
            )
            self._timers = [loop.create_task(self._every(seconds, act)) for act, seconds in acts]

    async def _every(self, seconds: float, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while not self.is_closing:
            began = time.monotonic()
            try:
                await act()
            except FAILURES:
                logger.warning("The database is away: no sign of life could be written")
            except Exception:  # the timers of all calls must go on
                logger.exception("A timer of the engine failed")
            await self.pause(max(0.5, seconds - (time.monotonic() - began)))

    async def _beat(self) -> None:
        if self._registering is not None:
            await self._say_that_it_lives()
            await self.habits.exchange()

    async def _say_that_it_lives(self) -> None:
        await self._own_store.fetch(REGISTER, [self.process_id, self.kind])
        before, self._beaten_at = self._beaten_at, time.monotonic()
        if self._beaten_at - before > SILENT_SECONDS:
            self.doubted_at = self._beaten_at

    async def _watch(self) -> None:
        for call in list(self._calls):
            call.watch_lease()

    async def _extend_all(self) -> None:
        """Side by side, but not all at once: thousands of streams that began together are due together."""
        now = time.monotonic()
        # Where only this process is cut off from the database, or was stopped, the sweep has its calls. The authority
        # says so: their models would write on for a minute, paid by nobody.
        if now - self._beaten_at > SILENT_SECONDS and now - self.doubted_at > HEARTBEAT_SECONDS:
            self.doubted_at = now
        due = [call for call in self._calls if call.is_due]
        for at in range(0, len(due), EXTENDED_AT_ONCE):
            await asyncio.gather(*(call.extend() for call in due[at : at + EXTENDED_AT_ONCE]), return_exceptions=True)

    # --- the end ---

    async def drain(self, seconds: float) -> None:
        """Cut what is under way, let it settle for so long, then hand the rest to the sweep and close."""
        self.cut_all()
        deadline = time.monotonic() + seconds
        while self._tasks and time.monotonic() < deadline:
            await asyncio.wait(list(self._tasks), timeout=deadline - time.monotonic())
        self._closing.set()
        if self._stop_hearing is not None:
            self._stop_hearing()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=1.0)
        for timer in self._timers:
            timer.cancel()
        if self._registering is not None:
            with suppress(Exception):
                await self.habits.exchange()
                # What is left over is a dead process's from now on.
                await self._own_store.fetch(FORGET_PROCESS, [self.process_id])
        for task in list(self._tasks):
            task.cancel()
        for http in self.models.values():
            http.close()
        self.authority.close()
        await self._own_store.close()
        await self.store.close()
