"""Who waits for whom: money that others hold, and a conversation that answers one at a time.

Owns the lines of this process, and what others say of theirs. Must not ask the authority, and promises nothing across
processes: there the hold decides.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import count


class Lines:
    """First come, first served, for each key. Only the first of a line acts; the others wait for their turn."""

    def __init__(self) -> None:
        self._lines: dict[str, list[Place]] = {}
        self._numbers = count()

    def is_empty(self, key: str) -> bool:
        return key not in self._lines

    @property
    def are_empty(self) -> bool:
        return not self._lines

    def number(self) -> int:
        """To be taken as one comes: a line is in the order of these, and not of joining it."""
        return next(self._numbers)

    @asynccontextmanager
    async def join(self, key: str, number: int) -> AsyncIterator[Place]:
        line = self._lines.setdefault(key, [])
        place = Place(line, number)
        insort(line, place, key=lambda one: one.number)
        try:
            yield place
        finally:
            was_first = place.is_first
            line.remove(place)
            if not line:
                del self._lines[key]
            elif was_first:
                line[0].event.set()

    def wake(self, keys: Iterable[str]) -> None:
        """Something of these came free: whoever is first in their lines should look."""
        for key in keys:
            if line := self._lines.get(key):
                line[0].event.set()


class Place:
    """One's place in a line."""

    def __init__(self, line: list[Place], number: int) -> None:
        self.event = asyncio.Event()
        self.number = number
        self._line = line

    @property
    def is_first(self) -> bool:
        return self._line[0] is self

    async def wait(self, seconds: float) -> bool:
        """Until one is woken, or so long. Whether one was woken."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.event.wait()
        was_woken = self.event.is_set()
        self.event.clear()
        return was_woken


class Elsewhere:
    """Who has long waited for money in other processes, as these say from time to time."""

    # What was not said again for so long counts no more: that process may have died.
    TOLD_SECONDS = 1.5

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], tuple[float, float]] = {}  # by process and scope: since when, and until when

    @property
    def is_nobody(self) -> bool:
        return not self._told

    def note(self, process: str, scope: str, waited: float | None) -> None:
        """The first of its line has waited for so many seconds; none: it waits no more."""
        self._told.pop((process, scope), None)
        if waited is not None:
            now = time.monotonic()
            self._told[process, scope] = (now - waited, now + self.TOLD_SECONDS)

    def waits_for(self, scope: str, *, before: float) -> bool:
        """Whether somebody has waited since before that time."""
        if self._told:
            now = time.monotonic()
            self._told = {key: told for key, told in self._told.items() if told[1] > now}
        return any(of == scope and since < before for (_, of), (since, _) in self._told.items())


class Exclusive:
    """One holder a key; the next ones wait in order."""

    def __init__(self) -> None:
        self._held: dict[str, deque[asyncio.Future[None]]] = {}

    async def acquire(self, key: str, seconds: float) -> bool:
        """Whether the key is ours now. Give it back with `release`."""
        if key not in self._held:
            self._held[key] = deque()
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._held[key]
        waiting.append(turn)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except TimeoutError:
            if turn.done() and not turn.cancelled():
                return True  # given to us in the very moment in which we gave up
            with suppress(ValueError):
                waiting.remove(turn)
            return False
        except asyncio.CancelledError:
            # Given to us in the very moment in which we were cancelled: the next one must not wait for ever.
            if turn.done() and not turn.cancelled():
                self.release(key)
            else:
                with suppress(ValueError):
                    waiting.remove(turn)
            raise
        return True

    def release(self, key: str) -> None:
        waiting = self._held[key]
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._held[key]
