"""The engine's own connections to Postgres: plain SQL, autocommit, one small pool a process.

Owns `Store`. Must not know a table, and never sets a search path: every statement names its schema.
"""

from __future__ import annotations

import asyncio
import re
import select
import time
from collections import deque
from contextlib import suppress

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from billing.asking import AskingConnection, Params, Row
from tenants.connections import own_connection_params
from tenants.http import TenantNotReady

Connection = AskingConnection
Pool = AsyncConnectionPool[Connection]

# Of the database: away, restarting, every connection of the pool taken, or what is wanted locked for too long. Or it
# takes nothing for now: its disk is full, or another server has taken its place.
ONLY_READS = psycopg.errors.ReadOnlySqlTransaction
FAILURES = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, ONLY_READS)

CONNECTIONS = 4
# Of the plane, whose calls are as many as its readers. With four, 32 calls at once were a fifth fewer a second, and
# each took a sixth more of the processor: fewer commits were written together, here and at the authority.
PLANE_CONNECTIONS = 8
# A session that waits for a connection longer is told that the service is busy.
WAIT_SECONDS = 10.0
# A workspace that is being migrated locks its tables for as long as that takes. Whoever waits for one keeps a
# connection from all other workspaces: four who did stopped every call. What the engine locks is free in milliseconds.
LOCK_SECONDS = 0.25
# After which a workspace that was found locked is tried again: many who want it must not wait one after another.
LOCKED_SECONDS = 1.0
# A backend keeps about 100 KB for each tenant that it has met, and gives none back.
LIFE_SECONDS = 900.0
ASIDE_SECONDS = 30.0

_SCHEMA = re.compile(r'"([a-z_][a-z0-9_]*)"\.')  # as `in_schema` and tenants.resolve write it


class SchemaIsGone(TenantNotReady, psycopg.errors.UndefinedTable):
    """A table of a workspace is not there: to who asks it is not ready, to the operator and to code the SQL's error.

    Who asks was let in by rows that may have been kept since before somebody dropped the schema.
    """

    def __init__(self, error: psycopg.errors.UndefinedTable) -> None:
        super().__init__()
        self.why = str(error)


class Store:
    """Statements on connections that are opened at the first of them."""

    def __init__(self, *, size: int = CONNECTIONS) -> None:
        self._size = size
        self._pool: Pool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # the pool's
        self._opening = asyncio.Lock()
        # Left out of the pool for the next statements: to give one back and to take it again costs half as much as a
        # statement, and more where somebody waits for it.
        self._aside: list[Connection] = []
        self._aside_until = 0.0
        self._out = 0  # of the pool: in use, or aside
        self._turns: deque[asyncio.Future[Connection | None]] = deque()
        self._putting: set[asyncio.Task[None]] = set()  # a loop keeps no task that nobody else does
        self._locked: dict[str, float] = {}  # until when a schema is taken for locked

    async def fetch(self, query: str, params: Params = None) -> list[Row]:
        """The rows of one statement. Raises one of FAILURES, SchemaIsGone, or psycopg's error of what is wrong."""
        pool = self._pool or await self._open()
        connection = await self._taken(pool)
        try:
            self._refuse_locked(query)
            try:
                # The text is ours: a tenant's schema is the only part that is put in, and its name is checked.
                return await connection.rows(query, params)
            except psycopg.errors.LockNotAvailable:
                self._note_locked(query)
                raise
            except ONLY_READS:
                # Where the address leads to a server that writes by now, this session would be the last to hear of it.
                connection.pgconn.finish()
                raise
            except psycopg.errors.UndefinedTable as exc:
                if _SCHEMA.search(query):
                    raise SchemaIsGone(exc) from exc
                raise
        finally:
            self._give_back(pool, connection)

    async def _taken(self, pool: Pool) -> Connection:
        while self._aside:
            aside = self._aside.pop()
            try:
                await _refuse_lost(aside)
                return aside
            except psycopg.OperationalError:
                self._put(pool, aside)
        while self._out >= self._size:
            handed_over = await self._turn(pool)
            if handed_over is not None:
                return handed_over
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in one
        cancelled = task.cancelling()
        self._out += 1
        try:
            # Not `pool.connection()`, which would look for a transaction to end: each statement is one of its own.
            connection = await pool.getconn()
        except BaseException:
            self._come_in(pool)
            raise
        # Up to Python 3.11 the pool loses a cancellation that comes with the connection: the reader had left, and the
        # answer was written, and paid for, to its end.
        if task.cancelling() > cancelled:
            self._put(pool, connection)
            raise asyncio.CancelledError
        return connection

    async def _turn(self, pool: Pool) -> Connection | None:
        """A connection whose statement is over, or None where the pool has one for whoever asks it. Who came first is
        next. Raises PoolTimeout.
        """
        turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        clock = turn.get_loop().call_later(WAIT_SECONDS, _too_late, turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It came in the same moment, and is the next one's.
                if (connection := turn.result()) is not None:
                    self._give_back(pool, connection)
                else:
                    self._call_next(None)
            raise
        finally:
            clock.cancel()

    def _call_next(self, connection: Connection | None) -> bool:
        """Whether somebody waits who takes it."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():  # who has left, or was told that it takes too long
                turn.set_result(connection)
                return True
        return False

    def _give_back(self, pool: Pool, connection: Connection) -> None:
        is_usable = connection.pgconn.transaction_status == TransactionStatus.IDLE
        if is_usable and pool is self._pool:
            now = time.monotonic()
            if now < self._aside_until:
                if not self._call_next(connection):
                    self._aside.append(connection)
                return
            # Now and then in any case: the pool knows which are too old.
            self._aside_until = now + ASIDE_SECONDS
            while self._aside:
                self._put(pool, self._aside.pop())
        self._put(pool, connection)

    def _come_in(self, pool: Pool) -> None:
        """One less is out. Whoever waits asks the pool."""
        if pool is self._pool:
            self._out -= 1
            self._call_next(None)

    def _put(self, pool: Pool, connection: Connection) -> None:
        """Into the pool, by a task that nobody cancels: the pool waits in the middle of it where others are at it too,
        and a reader who left just then took the connection along, and the turn of whoever was to have it.
        """
        if not _is_here(self._loop):
            # The statement is thrown away after its loop has ended, and with it all that waited.
            connection.pgconn.finish()
            return
        self._come_in(pool)
        task = asyncio.create_task(pool.putconn(connection))
        self._putting.add(task)
        task.add_done_callback(self._putting.discard)

    def _refuse_locked(self, query: str) -> None:
        """For who has waited for a connection meanwhile, too."""
        if not self._locked:
            return
        now = time.monotonic()
        self._locked = {schema: until for schema, until in self._locked.items() if until > now}
        if (found := _SCHEMA.search(query)) and found[1] in self._locked:
            raise psycopg.errors.LockNotAvailable("this workspace's tables were locked a moment ago")

    def _note_locked(self, query: str) -> None:
        if found := _SCHEMA.search(query):
            self._locked[found[1]] = time.monotonic() + LOCKED_SECONDS

    async def _open(self) -> Pool:
        async with self._opening:
            if self._pool is None:
                pool: Pool = AsyncConnectionPool(
                    connection_class=Connection,
                    kwargs={**own_connection_params(), "autocommit": True},
                    min_size=1,
                    max_size=self._size,
                    timeout=WAIT_SECONDS,
                    max_lifetime=LIFE_SECONDS,
                    configure=_configure,
                    # Those that lie in the pool are asked nothing, while one is out of it.
                    check=_refuse_lost,
                    open=False,
                    # One that has died is made anew at once, not after half a minute's backing off.
                    reconnect_timeout=5.0,
                    name="engine",
                )
                await pool.open()
                self._pool, self._loop = pool, asyncio.get_running_loop()
            return self._pool

    async def close(self) -> None:
        async with self._opening:
            pool, self._pool = self._pool, None
            aside, self._aside, self._out = self._aside, [], 0
            while self._turns:
                if not (turn := self._turns.popleft()).done():
                    turn.set_exception(PoolClosed("this process ends"))
            if pool is not None:
                with suppress(*FAILURES):
                    for connection in aside:
                        self._put(pool, connection)
                    await asyncio.gather(*self._putting)
                    await pool.close(timeout=2.0)


def _too_late(turn: asyncio.Future[Connection | None]) -> None:
    if not turn.done():
        turn.set_exception(PoolTimeout(f"no connection came free in {WAIT_SECONDS} s"))


def _is_here(loop: asyncio.AbstractEventLoop | None) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


async def _refuse_lost(connection: Connection) -> None:
    """Raises OperationalError where the server has ended this idle connection, which only reading from it tells."""
    line = select.poll()
    line.register(connection.pgconn.socket, select.POLLIN)
    while line.poll(0):
        connection.pgconn.consume_input()


async def _configure(connection: Connection) -> None:
    await connection.execute(f"SET lock_timeout = {round(LOCK_SECONDS * 1_000)}")
