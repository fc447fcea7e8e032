"""The sweep: calls whose process died are settled by what their rows say.

Owns which rows it takes and when it tries them again. The settling itself is the engine's, the same for a living
process. Safe to run twice at once: the authority takes the same bytes once, and one DELETE decides who writes the line.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from django.conf import settings

from billing.engine.authority import Payer
from billing.engine.engine import SILENT_SECONDS, Engine
from billing.engine.loop import here, run
from billing.engine.payers import house, unsealed
from billing.engine.settling import Final, Open, settle_at_the_authority, slices_of, write_down
from billing.engine.statements import ABANDONED, FORGET_HOLD, FORGET_RATES, FORGET_THE_DEAD
from billing.engine.store import FAILURES
from billing.errors import AuthorityMisconfigured
from billing.outcomes import Outcome
from billing.prices import Usage
from billing.subjects import scopes_of

logger = logging.getLogger(__name__)

# After an outage of the database living processes look dead until they have written again.
STEADY_SECONDS = 10.0
MOST_AT_ONCE = 200
SIDE_BY_SIDE = 8
LONGEST_PAUSE_SECONDS = 300.0

_SCHEMA_IS_GONE = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)


@dataclass(slots=True)
class Swept:
    """What one sweep did. `waiting`: not to be settled now, tried again later."""

    settled: int = 0
    waiting: int = 0


@dataclass(slots=True)
class _Memory:
    """Of this process: since when the database answers, and which rows are to be left alone until when."""

    steady_since: float | None = None
    again: dict[UUID, tuple[float, float]] = field(default_factory=dict)  # next try, and the pause before it


_memory = _Memory()


def sweep(*, at_once: bool = False) -> Swept:
    """Settle what dead processes left. For the timer of the jobs process; `at_once` for a person at a terminal."""
    return run(_sweep(at_once=at_once))


async def _sweep(*, at_once: bool) -> Swept:
    engine = here()
    now = time.monotonic()
    # A suspended tenant's may wait for weeks: filling what is looked at, they would keep all others from their turn.
    later = [] if at_once else [hold for hold, (next_try, _) in _memory.again.items() if next_try > now]
    wanted = {"silent": SILENT_SECONDS, "most": MOST_AT_ONCE, "house": settings.CYCLES_TENANT, "later": later}
    try:
        rows = await engine.store.fetch(ABANDONED, wanted)
        await engine.store.fetch(FORGET_THE_DEAD)
        await engine.store.fetch(FORGET_RATES)
    except FAILURES:
        _memory.steady_since = None
        raise
    if _memory.steady_since is None:
        _memory.steady_since = now
    if not at_once and now - _memory.steady_since < STEADY_SECONDS:
        return Swept(waiting=len(rows) + len(later))
    return await _settle_all(engine, rows, len(rows) + len(later))


async def _settle_all(engine: Engine, rows: list[tuple[Any, ...]], found: int) -> Swept:
    places = asyncio.Semaphore(SIDE_BY_SIDE)

    async def one(row: tuple[Any, ...]) -> bool:
        async with places:
            return await _settle(engine, row)

    done = await asyncio.gather(*(one(row) for row in rows))
    return Swept(settled=sum(done), waiting=found - sum(done))


async def _settle(engine: Engine, row: tuple[Any, ...]) -> bool:
    """Whether the row is gone now, by us or by another."""
    hold_id: UUID = row[0]
    try:
        hold, final = _read(row)
        settled = await settle_at_the_authority(engine.authority, hold, final)
        if settled.is_landed:
            await write_down(engine.store, hold, settled)
            engine.lines.wake(scopes_of(hold.subject))
            _memory.again.pop(hold_id, None)
            logger.info(
                "swept tenant=%s hold=%s actual=%d outcome=%s",
                hold.payer.slug,
                hold_id,
                settled.final.cost,
                settled.final.outcome,
                extra=hold.payer.in_logs,
            )
            return True
    except _SCHEMA_IS_GONE:
        logger.error("A call's workspace is gone, so it has no line: hold=%s", hold_id)
        await engine.store.fetch(FORGET_HOLD, [hold_id])
        return True
    except (*FAILURES, AuthorityMisconfigured) as exc:
        logger.warning("Not swept yet: hold=%s: %s", hold_id, type(exc).__name__)
    except Exception:  # one odd row must not keep the others from being settled
        logger.exception("A hold could not be swept: hold=%s", hold_id)
    _, pause = _memory.again.get(hold_id, (0.0, 2.5))
    pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
    _memory.again[hold_id] = (time.monotonic() + pause, pause)
    return False


def _read(row: tuple[Any, ...]) -> tuple[Open, Final]:
    (
        hold_id,
        reservation_id,
        subject,
        kind,
        name,
        model,
        estimate,
        slices,
        used,
        overrun,
        tokens_input,
        tokens_output,
        cached,
        reasoning,
        outcome,
        is_final,
        created_at,
        account_id,
        subject_tenant,
        plan,
        sealed_key,
        tenant_id,
        slug,
        schema,
    ) = row
    if account_id is None:
        payer = house()
    else:
        payer = Payer(
            account_id=account_id,
            tenant_id=tenant_id,
            slug=slug,
            schema=schema,
            subject_tenant=subject_tenant,
            plan=plan,
            key=unsealed(sealed_key),
        )
    hold = Open(hold_id, payer, subject, kind, name, slices_of(estimate, reservation_id, slices), created_at)
    usage = None
    if tokens_input is not None:
        usage = Usage(tokens_input, tokens_output or 0, cached=cached or 0, reasoning=reasoning or 0)
    final = Final(used, Outcome(outcome) if is_final else Outcome.SWEPT, usage, model, overrun)
    return hold, final.within(hold.held)
