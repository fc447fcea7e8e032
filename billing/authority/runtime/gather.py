"""What comes at the same moment goes to the database together: one lock hand-over, one ledger update, one flush.

Owns the queue, not the answers. No timer and no added delay: a lone call starts at the next turn of the loop, and what
comes while a batch is under way makes the next one. What the set-wise function leaves out, and every member of a batch
that failed, asks its one-op function by itself, which finds by its key whatever was stored already.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from billing.authority.database import GATHERED, TOGETHER
from billing.authority.runtime.pool import Answered, Pool, settled

log = logging.getLogger(__name__)

LARGEST = 64


@dataclass(slots=True)
class Member:
    """One waiting call. Its answer is null when it must ask by itself."""

    operation: str
    parameters: Mapping[str, object]
    answer: asyncio.Future[Answered | None]


class Gatherer:
    """Takes the place of `Pool.call` for the operations that can be done together."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting: deque[Member] = deque()
        self._is_busy = False
        self._worker: asyncio.Task[None] | None = None

    async def call(self, operation: str, parameters: Mapping[str, object]) -> Answered:
        if operation not in TOGETHER:
            return await self._pool.call(operation, parameters)
        answer = await (self._queued if self._is_busy else self._first)(operation, parameters)
        return settled(answer) if answer is not None else await self._pool.call(operation, parameters)

    def _queued(self, operation: str, parameters: Mapping[str, object]) -> asyncio.Future[Answered | None]:
        member = Member(operation, parameters, asyncio.get_running_loop().create_future())
        self._waiting.append(member)
        return member.answer

    async def _first(self, operation: str, parameters: Mapping[str, object]) -> Answered | None:
        """By itself, where nobody comes in the same turn of the loop: a task and a future would cost a twentieth."""
        self._is_busy = True
        try:
            await asyncio.sleep(0)
            if not self._waiting:
                return await self._one(operation, parameters)
            answer = self._queued(operation, parameters)
        finally:
            if self._waiting:
                self._worker = asyncio.create_task(self._work())
            else:
                self._is_busy = False
        return await answer

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._serve([self._waiting.popleft() for _ in range(min(LARGEST, len(self._waiting)))])
        finally:
            self._is_busy = False

    async def _one(self, operation: str, parameters: Mapping[str, object]) -> Answered | None:
        try:
            return await self._pool.ask(operation, parameters)
        except Exception as error:
            _note(1, error)
            return None

    async def _serve(self, batch: list[Member]) -> None:
        answers: dict[int, Answered] = {}
        try:
            answers = await self._ask(batch)
        except Exception as error:
            _note(len(batch), error)
        finally:
            for place, member in enumerate(batch):
                if not member.answer.done():  # its caller may be gone
                    member.answer.set_result(answers.get(place))

    async def _ask(self, batch: list[Member]) -> dict[int, Answered]:
        if len(batch) == 1:  # the one-op function does one in less
            return {0: await self._pool.ask(batch[0].operation, batch[0].parameters)}
        rows = await self._pool.rows(GATHERED, {"members": _as_json(batch)})
        return {row[0]: (row[1], row[2], row[3]) for row in rows}


def _note(count: int, error: Exception) -> None:
    """Whatever it was: each member finds out for itself, and its neighbours do not suffer."""
    # Its name only: the text of a database error quotes what the callers sent.
    log.warning("a batch of %d runs singly: %s", count, type(error).__name__)


def _as_json(batch: list[Member]) -> str:
    members = [{"place": place, "operation": m.operation, **m.parameters} for place, m in enumerate(batch)]
    return json.dumps(members, default=_as_bytea)


def _as_bytea(value: object) -> str:
    assert isinstance(value, bytes)
    return "\\x" + value.hex()
