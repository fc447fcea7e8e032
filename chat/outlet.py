"""The bytes of one answer that its reader has not taken yet. Belongs to the loop; knows no HTTP.

Owns how much waits for a slow reader, and what is kept for whoever sends the same request again.
"""

from __future__ import annotations

import asyncio

from chat.answer import Answer
from chat.relay import Relay

# For a reader who is slower than the model. Above it the model is not read, so that it waits too.
WAITING_BYTES = 256 * 1024
# A reader who takes nothing for as long is gone, or as good as gone: what is held for him is others' to spend.
SLOW_READER_SECONDS = 60.0
# Of an answer that is told again under its Idempotency-Key; a longer one is not kept.
KEPT_BYTES = 1024 * 1024


class Outlet:
    def __init__(self, *, keeps: bool = False, for_stock_client: bool = False) -> None:
        self._is_for_stock_client = for_stock_client
        self._relay = Relay(for_stock_client=for_stock_client)
        self._waiting: list[bytes] = []
        self._size = 0
        self._kept: bytearray | None = bytearray() if keeps else None
        self._has_room = asyncio.Event()
        self.is_left = False

    def feed(self, data: bytes, answer: Answer) -> bool:
        """Whether there is something new to take. `answer` has just been fed the same."""
        return self._add(self._relay.feed(data, answer))

    def close(self, answer: Answer) -> None:
        self._add(self._relay.close(answer))

    def _add(self, passed: bytes) -> bool:
        if not passed:
            return False
        if self._kept is not None:
            self._kept += passed
            if len(self._kept) > KEPT_BYTES:
                self._kept = None
        if self.is_left:
            return False
        self._waiting.append(passed)
        self._size += len(passed)
        return True

    def take(self) -> bytes:
        """All that waits."""
        waiting, self._waiting, self._size = self._waiting, [], 0
        self._has_room.set()
        return waiting[0] if len(waiting) == 1 else b"".join(waiting)

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    @property
    def is_full(self) -> bool:
        return self._size > WAITING_BYTES

    @property
    def kept(self) -> bytes | None:
        """All that was passed on, where it is kept and not too long for that."""
        return None if self._kept is None else bytes(self._kept)

    def leave(self) -> None:
        """Nobody takes anything any more."""
        self.is_left = True
        self._waiting, self._size = [], 0
        self.wake()

    def wake(self) -> None:
        self._has_room.set()

    async def room(self) -> bool:
        """Wait until the reader has taken what waits, or something ended; False where he did not in time."""
        self._has_room.clear()
        try:
            async with asyncio.timeout(SLOW_READER_SECONDS):
                await self._has_room.wait()
        except TimeoutError:
            return False
        return True

    def begin_anew(self) -> None:
        """Another model answers in the place of one that failed before anything was taken. A reader who left stays so:
        nothing would make room for what waits for him.
        """
        self._relay = Relay(for_stock_client=self._is_for_stock_client)
        self._waiting, self._size = [], 0
        if self._kept is not None:
            self._kept.clear()
