"""The plane's few connections: opened when first needed, replaced after a failure. Knows SQL calls, no operation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg

from billing.asking import AskingConnection, Row
from billing.authority.database import STATEMENTS, TRY_AGAIN, refused_by
from billing.authority.errors import from_database

Answered = tuple[int, str | None, str]  # status, tenant, body
ATTEMPTS = 5


class Caller(Protocol):
    """Whoever runs an operation: the pool one by one, the gatherer several together."""

    async def call(self, operation: str, parameters: Mapping[str, object]) -> Answered: ...


@dataclass(slots=True)
class Slot:
    """A place for one connection. `generation` tells whether it was opened before the last failure."""

    connection: AskingConnection | None = None
    generation: int = 0

    async def drop(self) -> None:
        if self.connection is not None:
            connection, self.connection = self.connection, None
            await connection.close()


class Pool:
    """At most `size` connections in autocommit. After one fails all are opened anew: when Postgres restarted, the
    idle ones are dead too, and each would fail one more request before it was found out."""

    def __init__(self, settings: dict[str, Any], size: int) -> None:
        self._settings = settings
        self._size = size
        self._generation = 0
        self._free: asyncio.LifoQueue[Slot] = asyncio.LifoQueue()
        for _ in range(size):
            self._free.put_nowait(Slot())

    async def close(self) -> None:
        for _ in range(self._size):
            await (await self._free.get()).drop()

    async def call(self, operation: str, parameters: Mapping[str, object]) -> Answered:
        """Run one operation; give (status, tenant, body) or raise the Refusal it answered."""
        return settled(await self.ask(operation, parameters))

    async def ask(self, operation: str, parameters: Mapping[str, object]) -> Answered:
        """Run one operation; give its answer, a refusal's too."""
        statement = STATEMENTS[operation]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                status, tenant, body = (await self.rows(statement, parameters))[0]
                return status, tenant, body
            except TRY_AGAIN:
                if attempt == ATTEMPTS:
                    raise
            except psycopg.DataError as error:
                raise refused_by(error) from error
        raise AssertionError("unreachable")

    async def rows(self, statement: str, parameters: Mapping[str, object] | None = None) -> list[Row]:
        slot = await self._free.get()
        try:
            connection = slot.connection
            if connection is None or connection.closed or slot.generation != self._generation:
                await slot.drop()
                slot.generation = self._generation
                connection = await AskingConnection.connect(**self._settings, autocommit=True)
                slot.connection = connection
            return await connection.rows(statement, parameters)  # the text is ours, never a caller's
        except (psycopg.OperationalError, asyncio.CancelledError):
            # Cancelled means cut in the middle of an answer: the connection may still hold the rest of it.
            if slot.connection is not None and slot.connection.broken:
                self._generation += 1
            await slot.drop()
            raise
        finally:
            self._free.put_nowait(slot)


def settled(answer: Answered) -> Answered:
    """A success as it is; a refusal raised."""
    status, tenant, body = answer
    if status < 400:
        return answer
    refusal = from_database(status, json.loads(body))
    if tenant is not None:
        refusal.headers = {"x-cycles-tenant": tenant}
    raise refusal
