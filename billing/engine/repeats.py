"""The same request again: one call of a model for each key of a seat and route, and its answer for whoever repeats it.

Owns who may make the call (`Claim`), who waits for it, and what is known when it is over. A claim is taken in one
statement, and the statement that writes the call's hold holds it to that: of two processes that believe to have it, one
calls a model. Must not know what is bought, nor how an answer is shown.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID, uuid4

from billing.engine.engine import SILENT_SECONDS
from billing.engine.order import refuse_unless_text, refuse_unless_whole
from billing.engine.settling import Keep, Settled
from billing.engine.statements import (
    ANSWERED,
    CALLED_AGAIN,
    CLAIM,
    GIVE_BACK,
    GIVEN_BACK,
    LOOK,
    TAKE_OVER,
    in_schema,
)
from billing.engine.store import FAILURES, SchemaIsGone
from billing.errors import IdempotencyConflict, IdempotencyLost, RateLimited, StillUnderWay
from tenants.http import Invalid, Unavailable

if TYPE_CHECKING:
    from billing.engine.engine import Engine

logger = logging.getLogger(__name__)

KEPT_SECONDS = 24 * 3600.0
LOOK_AGAIN_SECONDS = 0.1
# What a dead process left is settled by the sweep within this, or is not to be had just now.
SWEPT_SECONDS = 30.0
# Of one key in one process. A client that repeats faster than it is answered repeats a mistake.
MOST_WAITING = 20
TOO_MANY = "Too many repeats are waiting for answers under way. Send one of each request, and wait for it."
# Between claim and hold are a conversation's turn, held money, and the authority. A claim that has no hold by then is
# one whose owner lost it: its connection broke, for example, before it heard that it had it.
STALE_AFTER_SECONDS = 60.0
# For about as long: a migration, or a database that is away, may last. Whoever repeats the request waits for this.
GIVE_BACK_PAUSES = (0.2, 1.0, *(5.0,) * 12)

MOST_LETTERS = 255
WHAT_A_KEY_IS = f"Send one key of 1 to {MOST_LETTERS} printable ASCII characters, without a comma."


def is_key(key: object) -> bool:
    if not isinstance(key, str) or not 1 <= len(key) <= MOST_LETTERS:
        return False
    # Two headers of one name reach us as one, with a comma between them.
    return key.isascii() and key.isprintable() and "," not in key


@dataclass(frozen=True, slots=True)
class Request:
    """One request as its key names it, for one member of a tenant. `fingerprint` is its body's.

    Raises Invalid for a key that is none, which is the client's to mend, and ValueError for the rest.
    """

    schema: str
    user_id: int
    route: str
    key: str
    fingerprint: str

    def __post_init__(self) -> None:
        # Said here: the columns would refuse it, and whoever asked would read that something went wrong on our side.
        if not is_key(self.key):
            raise Invalid({"Idempotency-Key": [WHAT_A_KEY_IS]})
        refuse_unless_whole("user_id", self.user_id)
        refuse_unless_text("route", self.route, most=40)
        refuse_unless_text("fingerprint", self.fingerprint, most=64)

    @property
    def params(self) -> dict[str, Any]:
        return {"user": self.user_id, "route": self.route, "key": self.key, "fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True)
class Told:
    """What a request was answered: the status, and whatever its route needs to say the same again."""

    status: int
    answer: dict[str, Any]


class Claim:
    """The right to make a request's one call. Give it to the call's order; give it back if none is made.

    `tell` says what the settled call is answered, None where it failed. Where that cost nothing, the key is free again.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self.request = request
        self.attempt = uuid4()
        self.id = 0
        self.is_dispatched = False
        self.tell: Callable[[Settled], Told | None] | None = None
        self.told: Told | None = None  # once it is written, or about to be
        self._is_kept = False
        self._written: dict[str, Any] | None = None
        self._engine = engine
        self._asking: asyncio.Task[Any] | None = None

    @property
    def params(self) -> dict[str, Any]:
        return {"claim": self.id, "attempt": self.attempt}

    async def ask(self, statement: str, **params: Any) -> bool:
        """Whether the claim is ours by this statement."""
        params |= {**self.request.params, "attempt": self.attempt, "process": self._engine.process_id}
        try:
            # Not this request's to cancel: a claim that nobody knows of would keep all repeats waiting.
            self._asking = asyncio.create_task(self._engine.store.fetch(self._in_schema(statement), params))
            rows = await asyncio.shield(self._asking)
        except BaseException as exc:
            self.give_back()
            if isinstance(exc, FAILURES):
                raise Unavailable from exc
            raise
        if rows:
            self.id = rows[0][0]
        return bool(rows)

    def give_back(self) -> None:
        """Nothing was bought: the key may be used again. Once a model may have been called, settling decides that."""
        if not self.is_dispatched:
            self._engine.spawn(self._give_back())

    async def _give_back(self) -> None:
        if self._asking is not None:
            with suppress(Exception):
                await self._asking
        params = {**self.request.params, "attempt": self.attempt}
        for pause in (*GIVE_BACK_PAUSES, None):
            try:
                await self._engine.store.fetch(self._in_schema(GIVE_BACK), params)
                return
            except SchemaIsGone:
                return  # and the claim with it
            except FAILURES:
                if pause is None:
                    raise
                await self._engine.pause(pause)

    def kept_for_another(self) -> None:
        """The call came to nothing, and is settled so; another is made in its place, or the claim is given back."""
        self.is_dispatched, self._is_kept = False, True

    def dispatched(self) -> None:
        self.is_dispatched, self._is_kept = True, False

    def keep(self, settled: Settled) -> Keep | None:
        """What is written with the call's line; before it, where that waits for the authority: a repeat need not."""
        if self._is_kept:
            return Keep(CALLED_AGAIN, self.params)
        if (written := self._tell(settled)) is not None:
            return Keep(ANSWERED, {**self.params, **written})
        # Charged and without an answer, it stays as it is: whoever asks again is told that it was lost.
        return Keep(GIVEN_BACK, self.params) if settled.final.cost == 0 else None

    def _tell(self, settled: Settled) -> dict[str, Any] | None:
        """Once: what was told early is not told otherwise later."""
        if self._written is None and self.tell is not None:
            try:
                told = self.tell(settled)
                self._written = None if told is None else _as_written(told)
                self.told = told
            except Exception:  # whatever is wrong with the words for it, the call is settled
                logger.exception("A paid answer cannot be told again: route=%s", self.request.route)
        return self._written

    def _in_schema(self, statement: str) -> str:
        return in_schema(statement, self.request.schema)


def _as_written(told: Told) -> dict[str, Any]:
    if not isinstance(told, Told) or not isinstance(told.status, int) or not 100 <= told.status <= 599:
        raise TypeError(f"tell gave {told!r}: write Told(200, {{…}}), with a status of HTTP and an answer of JSON.")
    # ASCII alone: what Postgres cannot store is escaped.
    return {"told_status": told.status, "told": json.dumps(told.answer)}


async def claim_or_told(
    engine: Engine, request: Request, *, seconds: float | None = None, most_of_workspace: int | None = None
) -> Claim | Told:
    """The claim to make the request's call, or its answer where the call was made, waited for while it is under way.

    Raises IdempotencyConflict (the key belongs to another body), IdempotencyLost (the call was made, its answer is
    gone), RateLimited (too many wait already, for this key or of this workspace), Unavailable, or StillUnderWay after
    so many seconds.
    """
    try:
        await engine.register()  # a claim of nobody's is taken for a dead process's
    except FAILURES as exc:
        raise Unavailable from exc
    while True:
        ours = Claim(engine, request)
        if await ours.ask(CLAIM, kept=KEPT_SECONDS):
            return ours
        seen = await _look(engine, request)
        if seen is not None and seen.fingerprint == request.fingerprint and seen.is_under_way:
            seen = await _once_over(engine, request, seconds, most_of_workspace)
        if seen is None:
            continue
        if seen.fingerprint != request.fingerprint:
            raise IdempotencyConflict
        if seen.status is not None:
            return Told(seen.status, json.loads(seen.answer))
        if not seen.is_free:
            raise IdempotencyLost(seen.cost)
        if await ours.ask(TAKE_OVER, id=seen.id, seen=seen.attempt, hold=seen.hold):
            return ours


class _Seen(NamedTuple):
    """A row as LOOK reads it."""

    id: int
    fingerprint: str
    attempt: UUID
    status: int | None
    answer: str
    hold: UUID | None
    is_stale: bool
    is_alive: bool  # whoever claimed it
    has_hold: bool
    cost: int | None  # of its line

    @property
    def is_under_way(self) -> bool:
        if self.status is not None:
            return False
        return self.has_hold if self.hold is not None else self.is_alive and not self.is_stale

    @property
    def is_free(self) -> bool:
        """No model was called for it, and whoever claimed it will not: dispatching, it would find the claim gone."""
        if self.status is not None or self.is_under_way:
            return False
        return self.hold is None or self.cost is None


async def _look(engine: Engine, request: Request) -> _Seen | None:
    stale = STALE_AFTER_SECONDS + 2 * engine.wait_seconds
    params = {**request.params, "silent": SILENT_SECONDS, "stale": stale}
    try:
        rows = await engine.store.fetch(in_schema(LOOK, request.schema), params)
    except FAILURES as exc:
        raise Unavailable from exc
    return _Seen(*rows[0]) if rows else None


@dataclass(slots=True)
class Watch:
    """One look-out for all in this process who wait for the same request."""

    looking: asyncio.Task[_Seen | None]
    waiting: int = 0


async def _once_over(
    engine: Engine, request: Request, seconds: float | None, most_of_workspace: int | None
) -> _Seen | None:
    """The row once it is no longer under way, or as it stands where no sweep settles it in time."""
    if most_of_workspace is not None and _waiting_of(engine, request.schema) >= most_of_workspace:
        raise RateLimited(TOO_MANY)
    name = (request.schema, request.user_id, request.route, request.key)
    watch = engine.watches.get(name)
    if watch is None or watch.looking.done():
        watch = engine.watches[name] = Watch(asyncio.create_task(_watch(engine, request)))
    if watch.waiting >= MOST_WAITING:
        raise RateLimited(TOO_MANY)
    watch.waiting += 1
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(watch.looking)
    except TimeoutError:
        raise StillUnderWay from None
    finally:
        watch.waiting -= 1
        if not watch.waiting:
            watch.looking.cancel()
            if engine.watches.get(name) is watch:
                del engine.watches[name]


def _waiting_of(engine: Engine, schema: str) -> int:
    return sum(watch.waiting for (waits_in, *_), watch in engine.watches.items() if waits_in == schema)


async def _watch(engine: Engine, request: Request) -> _Seen | None:
    # A process that ends says so to whoever waits in it: what they wait for may be another's, which goes on.
    end = asyncio.Event()
    engine.add_cut(end.set)
    try:
        return await _seen_over(engine, request, end)
    finally:
        engine.remove_cut(end.set)


async def _seen_over(engine: Engine, request: Request, end: asyncio.Event) -> _Seen | None:
    loop = asyncio.get_running_loop()
    sweep_until = None  # since when its process is dead
    while True:
        seen = await _look(engine, request)
        if seen is None or not seen.is_under_way:
            return seen
        if seen.is_alive:
            sweep_until = None
        elif sweep_until is None:
            sweep_until = loop.time() + SWEPT_SECONDS
        elif loop.time() > sweep_until:
            return seen
        if end.is_set():
            raise Unavailable
        await engine.pause(LOOK_AGAIN_SECONDS)
