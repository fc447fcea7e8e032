"""A connection to Postgres that the loop watches for as long as it is open.

psycopg has its socket watched anew at each wait, which a statement pays with eight system calls and a timer. Owns
`WatchedConnection`; whatever is not the ordinary wait for an answer is psycopg's own. Must import nobody of ours: the
engine and the embedded authority, who may not know each other, both ask by it.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus
from psycopg.rows import Row
from psycopg.waiting import Ready, Wait

Result = TypeVar("Result")

_READ = int(Wait.R)


class WatchedConnection(psycopg.AsyncConnection[Row]):
    """psycopg's, which waits for less."""

    _watch: _Watch | None = None

    async def wait(
        self,
        gen: PQGen[Result],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109  # psycopg's
    ) -> Result:
        """What `gen` gives in the end, as psycopg's `wait`."""
        if timeout is not None:
            return await super().wait(gen, interval, timeout)
        number = self.pgconn.socket
        try:
            met: int | BaseException = next(gen)
            while met == _READ:
                try:
                    watch = self._watched(number)
                except OSError:  # such as: this process may open no more
                    break
                await watch.readable()
                met = gen.send(Ready.R)
        except StopIteration as ended:
            result: Result = ended.value
            return result
        except psycopg.Error:
            if self.pgconn.status == ConnStatus.BAD:
                self._unwatch()
            raise
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as cut:
            met = cut
        return await super().wait(_GoingOn(gen, met), interval)

    async def close(self) -> None:
        """Ends the session, and the watch over it."""
        self._unwatch()
        await super().close()

    def _watched(self, number: int) -> _Watch:
        watch, loop = self._watch, asyncio.get_running_loop()
        if watch is None or watch.has_ended or watch.number != number or watch.loop is not loop:
            self._unwatch()
            watch = self._watch = _Watch(loop, number)
        return watch

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.end()


class _Watch:
    """Over a connection's socket, under a number of its own.

    libpq closes its number as soon as it sees that the session is over, and the next connection is given the same one:
    a loop that still watched it as the old one's would wake nobody. This number is closed when no loop watches it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        self.loop = loop
        self.number = number
        self.has_ended = False
        self._was_idle = False
        self._waiting: asyncio.Future[None] | None = None
        self._line = socket.socket(fileno=os.dup(number))
        self._state = select.poll()
        self._state.register(self._line, 0)  # of which only its end is told
        loop.add_reader(self._line.fileno(), self._wake)

    async def readable(self) -> None:
        """Until the server has sent something. One waits at a time, for psycopg's lock lets in no more."""
        self._waiting = self.loop.create_future()
        self._was_idle = False
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _wake(self) -> None:
        if self._state.poll(0):
            # uvloop tells of a socket that was reset once and never again, be it before its last words are read or
            # while nobody asks: a statement that waited for another word of it would wait for ever.
            self.end()
        elif self._waiting is not None:
            if not self._waiting.done():
                self._waiting.set_result(None)
        elif self._was_idle:
            # Nobody reads it, so that the loop would call here for ever: the server has ended an idle session, or
            # psycopg waits by itself. The next statement's wait begins another watch.
            self.end()
        else:
            self._was_idle = True  # asyncio's own loop tells once more of what has just been read

    def end(self) -> None:
        """Whoever still waits finds out what became of the session."""
        if self.has_ended:
            return
        self.has_ended = True
        if not self.loop.is_closed():
            self.loop.remove_reader(self._line.fileno())
        self._line.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class _GoingOn(Generator[Any, Any, Result]):
    """A generator that has begun already, for psycopg's `wait` to go on with: at first it gives what it gave last, or
    raises what cut the wait for it short, so that psycopg deals with that.
    """

    def __init__(self, gen: PQGen[Result], met: int | BaseException) -> None:
        self._gen = gen
        self._met: int | BaseException | None = met

    def send(self, value: Any) -> Any:
        met, self._met = self._met, None
        if isinstance(met, BaseException):
            raise met
        return self._gen.send(value) if met is None else met

    def throw(self, *raised: Any) -> Any:
        return self._gen.throw(*raised)
