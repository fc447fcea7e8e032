"""A request of /v1 bought, and its answer handed to whoever waits for it: for the first time, or again.

Owns the call under an Idempotency-Key, and which form an answer has. Must not know HTTP's bytes (chat.v1.app has
them), and holds no rule of money: chat.buying does.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from billing.engine.call import Call
from billing.engine.loop import here
from billing.engine.payers import payer_for
from billing.engine.repeats import Claim, Told, claim_or_told
from billing.engine.settling import Settled
from billing.errors import BudgetDenied
from billing.repeats import request_of
from chat.buying import Wanted, begin
from chat.outlet import KEPT_BYTES
from chat.passed import Passed
from chat.repeats import REPLAYED
from chat.sse import comment
from chat.standing import Standing, key_of
from chat.streams import KEEP_ALIVE_SECONDS, Answering
from chat.v1 import relaying
from chat.v1.refusals import error_chunk, refusal
from chat.v1.ways_out import tell_ways_out
from tenants.http import ApiError

logger = logging.getLogger(__name__)

APP = "api"
EVENTS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(slots=True)
class Outgoing:
    """What is to be sent: a whole body, or the parts of a stream. `leave` where the reader goes."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    parts: AsyncIterator[bytes] | None = None
    answering: Answering[Call] | None = None
    waiting: asyncio.Task[Any] | None = None

    def leave(self) -> None:
        if self.answering is not None:
            self.answering.leave()
        if self.waiting is not None:
            _give_up(self.waiting)


async def answer(standing: Standing, passed: Passed, key: str | None) -> Outgoing:
    """Raises the ApiError that refuses it, or that it failed with before its first byte."""
    if key is None:
        return await _outgoing(standing, await bought(standing, passed), passed)
    return await _once(standing, passed, key)


async def bought(standing: Standing, passed: Passed, claim: Claim | None = None) -> Answering[Call]:
    """The answer under way. The caller must leave it or read it to its end."""
    engine, asker = here(), standing.asker
    tenant = asker.tenant
    payer = await payer_for(
        engine, tenant_id=tenant.pk, slug=tenant.slug, schema=tenant.schema_name, account=asker.beside
    )
    wanted = _wanted(standing, passed, claim)
    try:
        return await begin(engine, payer, wanted)
    except BudgetDenied as exc:
        tell_ways_out(exc, engine, payer, wanted)
        raise


def _wanted(standing: Standing, passed: Passed, claim: Claim | None = None) -> Wanted:
    return Wanted(
        passed=passed,
        model=passed.model,
        max_tokens=passed.max_tokens,
        app=APP,
        user_id=standing.asker.user_id,
        key=key_of(standing.asker),
        claim=claim,
        standing=standing,
    )


async def _outgoing(standing: Standing, answering: Answering[Call], passed: Passed) -> Outgoing:
    try:
        if not passed.is_stream:
            body, headers = await relaying.whole(answering)
            return Outgoing(200, {"content-type": "application/json", **headers}, body, answering=answering)
        await answering.begun()
    except BaseException as exc:
        answering.leave()
        if isinstance(exc, BudgetDenied):  # a group's next model
            tell_ways_out(exc, here(), answering.call.payer, _wanted(standing, passed))
        raise
    headers = {**EVENTS, **relaying.headers(answering, None)}
    return Outgoing(200, headers, parts=relaying.stream(answering, passed), answering=answering)


# --- under an Idempotency-Key ---------------------------------------------------------------------------------------


async def _once(standing: Standing, passed: Passed, key: str) -> Outgoing:
    """Bought once for each key and body; told again to whoever repeats it, and waited for while it is under way."""
    named = request_of(standing.asker, f"v1/{passed.kind}", key, passed.body)
    finding = asyncio.create_task(claim_or_told(here(), named))
    try:
        await asyncio.wait({finding}, timeout=KEEP_ALIVE_SECONDS if passed.is_stream else None)
    except asyncio.CancelledError:
        _give_up(finding)
        raise
    if not finding.done():
        # Whoever it waits for takes its time: this reader must see that the line lives.
        return Outgoing(200, EVENTS, parts=_late(standing, passed, finding), waiting=finding)
    return await _found(standing, passed, finding.result())


async def _found(standing: Standing, passed: Passed, found: Claim | Told) -> Outgoing:
    if isinstance(found, Told):
        said = found.answer
        return Outgoing(found.status, {**said["headers"], **REPLAYED}, said["body"].encode("latin1"))
    try:
        answering = await bought(standing, passed, found)
    except BaseException:
        found.give_back()
        raise
    found.tell = functools.partial(_told_of, answering, passed)
    return await _outgoing(standing, answering, passed)


def _give_up(finding: asyncio.Task[Claim | Told]) -> None:
    """A claim that came in the very moment in which its reader left is given back, for its repeats would wait."""

    def give_back(done: asyncio.Task[Claim | Told]) -> None:
        if not done.cancelled() and done.exception() is None and isinstance(found := done.result(), Claim):
            found.give_back()

    finding.add_done_callback(give_back)
    finding.cancel()


async def _late(standing: Standing, passed: Passed, finding: asyncio.Task[Claim | Told]) -> AsyncIterator[bytes]:
    outgoing: Outgoing | None = None
    try:
        yield comment("waiting")
        while not (await asyncio.wait({finding}, timeout=KEEP_ALIVE_SECONDS))[0]:
            yield comment("waiting")
        outgoing = await _found(standing, passed, finding.result())
        if outgoing.parts is not None:
            async for part in outgoing.parts:
                yield part
        else:
            is_events = outgoing.headers["content-type"].startswith("text/event-stream")
            yield outgoing.body if is_events else b"data: " + outgoing.body + b"\n\n" + relaying.DONE
    except ApiError as exc:
        yield error_chunk(exc) + relaying.DONE
    except Exception:
        logger.exception("A repeat broke on our side")
        yield error_chunk(ApiError()) + relaying.DONE
    finally:
        if outgoing is not None:
            outgoing.leave()
        _give_up(finding)


def _told_of(answering: Answering[Call], passed: Passed, settled: Settled) -> Told | None:
    """What a repeat is told, to the byte; None where nothing was bought, or where more came than is kept."""
    completion, failure = answering.as_settled(settled), answering.failure
    # As `Answering.begun` has it: what passed before the first word, such as its role, is a refusal's, too.
    has_begun = passed.is_stream and answering.said.has_begun
    if failure is not None and not has_begun:
        if not settled.final.cost:
            return None
        status, headers, body = refusal(failure)
        return _as_told(status, {"content-type": "application/json", **headers}, relaying.as_json(body))
    if completion.passed is None or len(completion.passed) > KEPT_BYTES:
        return None
    # Not what was left of the key's rates: whoever repeats it may have another key, and asks at another time.
    headers = relaying.headers_of_money(answering, completion)
    if passed.is_stream:
        return _as_told(
            200, {**EVENTS, **headers}, relaying.told_again(completion.passed, answering, completion, passed)
        )
    return _as_told(200, {"content-type": "application/json", **headers}, completion.passed)


def _as_told(status: int, headers: dict[str, str], body: bytes) -> Told:
    # A letter for each byte: what came need not be UTF-8, and is told again to the byte.
    return Told(status, {"headers": headers, "body": body.decode("latin1")})
