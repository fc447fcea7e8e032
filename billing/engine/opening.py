"""Opening a call: the money is held, or waited for, or fitted, or the refusal says which ledger is short and why.

Owns that order. Nothing is written here and no model is called. Must not know what is bought.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from billing.engine import settling
from billing.engine.authority import code_of, held_of, is_denied, is_lost
from billing.engine.call import Call
from billing.engine.order import Order
from billing.engine.recovery import give_back, recover
from billing.engine.settling import Open, Slice
from billing.errors import AuthorityUnavailable, BudgetError
from billing.ledgers import ON_HOLD, Ledger, adenied, aledgers_of, room_in, worth_waiting_for
from billing.ledgers import refusal as refusal_of
from billing.subjects import scopes_of

if TYPE_CHECKING:
    from billing.engine.engine import Engine

# How often the first in line asks again where nothing told it to: another process may have settled.
LOOK_AGAIN_SECONDS = 0.2
JUDGE_AGAIN_SECONDS = 0.5
# The process whose call ends hears of it first, and would always take what comes free for its own callers. A caller of
# another process who has waited for so much longer is told of to all; they then leave it the time to look again.
LONG_SECONDS = 1.0
GIVE_WAY_SECONDS = LOOK_AGAIN_SECONDS + 0.05
# Between reading what remains and reserving it, another may take it.
FIT_ATTEMPTS = 3


async def open_call(engine: Engine, order: Order) -> Call:
    """Hold the order's amount, waiting for what others hold, or less where it can be fitted.

    Raises a BudgetError: denied, on hold, not reached. Then nothing is held, or it is released in the background.
    """
    engine.full_keys.refuse(order)
    # Before the authority is asked: of two that it denies, the first must not come into the line behind the second.
    number = engine.lines.number()
    denied = "BUDGET_EXCEEDED"
    if (line := _line_before(engine, order)) is None:
        call, denied = await _try(engine, order, order.amount)
        if call is None:
            call = await _tightened(engine, order)
        if call is not None:
            return call
        ledgers = await _ledgers(engine, order)
        if ledgers is not None and not may_wait(ledgers, order):
            call, denied, ledgers = await _fitted(engine, order, denied, ledgers)
            if call is not None:
                return call
            if not _may_come_free(ledgers, order):
                raise _refusal(order, denied, ledgers)
        # Behind a seat that is short only its own calls wait, not the whole tenant's.
        line = worth_waiting_for(ledgers, needed=order.amount) or scopes_of(order.subject)[0]
    # From here: an authority that takes its time over a cold key takes it from nobody's wait for money.
    began = time.monotonic()
    deadline = began + engine.wait_seconds
    async with engine.lines.join(line, number) as place, _told_elsewhere(engine, line, began) as tell:
        judge_at = began + JUDGE_AGAIN_SECONDS
        was_woken = True
        while (left := deadline - time.monotonic()) > 0:
            if place.is_first:
                if was_woken and engine.elsewhere.waits_for(line, before=began - LONG_SECONDS):
                    await asyncio.sleep(min(left, GIVE_WAY_SECONDS))
                call = (await _try(engine, order, order.amount))[0] or await _tightened(engine, order)
                if call is not None:
                    return call
                if time.monotonic() > judge_at:
                    judge_at = time.monotonic() + JUDGE_AGAIN_SECONDS
                    tell()
                    ledgers = await _ledgers(engine, order)
                    if ledgers is not None and not may_wait(ledgers, order):
                        # What was held has been spent meanwhile.
                        call, denied, ledgers = await _fitted(engine, order, denied, ledgers)
                        if call is not None:
                            return call
                        if not _may_come_free(ledgers, order):
                            raise _refusal(order, denied, ledgers)
            was_woken = await place.wait(min(left, LOOK_AGAIN_SECONDS) if place.is_first else left)
    call, denied, ledgers = await _fitted(engine, order, denied, await _ledgers(engine, order))
    if call is not None:
        return call
    raise _refusal(order, denied, ledgers)


@asynccontextmanager
async def _told_elsewhere(engine: Engine, line: str, began: float) -> AsyncIterator[Callable[[], None]]:
    """Gives a function that tells the other processes for how long this caller has waited, where that is long. At the
    end they are told that it waits no more.
    """
    is_told = False

    def tell() -> None:
        nonlocal is_told
        if (waited := time.monotonic() - began) >= LONG_SECONDS:
            is_told = True
            engine.tell_of_waiting(line, waited)

    try:
        yield tell
    finally:
        if is_told:
            engine.tell_of_waiting(line, None)


def _line_before(engine: Engine, order: Order) -> str | None:
    """The scope where others wait for money already, here or elsewhere, if there is one."""
    if engine.lines.are_empty and engine.elsewhere.is_nobody:
        return None
    now = time.monotonic()
    for scope in scopes_of(order.subject):
        if not engine.lines.is_empty(scope) or engine.elsewhere.waits_for(scope, before=now - LONG_SECONDS):
            return scope
    return None


def may_wait(ledgers: list[Ledger], order: Order) -> bool:
    """Whether the money may come free by itself: what is short is held by others, and by nothing else refused."""
    if all(ledger.could_cover(order.amount) for ledger in ledgers):
        return True
    return _fits_once_free(ledgers, order)


def _fits_once_free(ledgers: list[Ledger], order: Order) -> bool:
    """Whether nothing is left for a shorter answer either, and what others hold would pay for one."""
    if order.fit is None or not all(ledger.is_open for ledger in ledgers):
        return False
    once_free = min((ledger.remaining + ledger.reserved for ledger in ledgers), default=0)
    return order.fit(room_in(ledgers)) <= 0 < order.fit(once_free)


async def _try(engine: Engine, order: Order, amount: int) -> tuple[Call | None, str]:
    """The call, or the code of a denial. Raises where it is refused for another reason, or nobody answers."""
    part = Slice(1, amount)
    hold = Open(uuid4(), order.payer, order.subject, order.action_kind, order.action_name, [part])
    body = settling.reserve_body(hold, part, ttl_ms=order.ttl_ms, tags=order.tags, grace_ms=order.grace_ms)
    asked_at = time.monotonic()
    asked = engine.spawn(engine.authority.reserve(order.payer, body))
    try:
        response = await asyncio.shield(asked)
    except asyncio.CancelledError:
        # The reader left. What was asked for may be held all the same; others may wait for the answer, too.
        engine.spawn(give_back(engine, hold, part, body, asked))
        raise
    if (held := held_of(response)) is not None:
        part.reservation_id = held.reservation_id
        return engine.began(Call(engine, order, hold, held, asked_at=asked_at)), ""
    if is_denied(response):
        return None, code_of(response)
    if is_lost(response) or response.is_success:
        engine.spawn(recover(engine, hold, part, body, response))
        raise AuthorityUnavailable
    if code_of(response) in ON_HOLD:
        raise await adenied(code_of(response), order.subject, needed=amount, get=engine.look_up)
    raise await engine.authority.refusal(response, order.payer)


async def _tightened(engine: Engine, order: Order) -> Call | None:
    """Count what was only bounded, now that every token counts. Once."""
    tighten, order.tighten = order.tighten, None
    counted = await tighten() if tighten is not None else None
    if counted is None or counted >= order.amount:
        return None
    order.amount = counted
    return (await _try(engine, order, counted))[0]


async def _fitted(
    engine: Engine, order: Order, denied: str, ledgers: list[Ledger] | None
) -> tuple[Call | None, str, list[Ledger] | None]:
    """The call, for as much as there is; else the code of a denial, and the ledgers as they are by then."""
    # Whoever was never the first in the line has not counted yet, and would be refused by a bound far above its need.
    if ledgers and 0 < room_in(ledgers) < order.amount:
        call = await _tightened(engine, order)
        if call is not None:
            return call, "", ledgers
    for _ in range(FIT_ATTEMPTS):
        amount = _fitting(order, ledgers)
        if amount <= 0:
            break
        call, denied = await _try(engine, order, amount)
        if call is not None:
            call.is_fitted = amount < order.amount
            return call, "", ledgers
        ledgers = await _ledgers(engine, order)
    return None, denied, ledgers


def _may_come_free(ledgers: list[Ledger] | None, order: Order) -> bool:
    """Whether others took what was left for a shorter answer while it was asked for: it is waited for as well."""
    return ledgers is not None and (may_wait(ledgers, order) or _fitting(order, ledgers) > 0)


def _refusal(order: Order, denied: str, ledgers: list[Ledger] | None) -> BudgetError:
    return refusal_of(
        denied,
        ledgers,
        needed=order.amount,
        affordable=order.affordable,
        # It was waited for. Called too small, a budget would be topped up, and the request not sent again.
        fits_once_free=ledgers is not None and _fits_once_free(ledgers, order),
        waits=order.payer.waits,
    )


def _fitting(order: Order, ledgers: list[Ledger] | None) -> int:
    if not ledgers:
        return 0
    room = room_in(ledgers)
    # Also of what cannot be made shorter: who stood behind another in the line may not have been asked about yet.
    if room >= order.amount:
        return order.amount
    return 0 if order.fit is None else order.fit(room)


async def _ledgers(engine: Engine, order: Order) -> list[Ledger] | None:
    """None where they cannot be had just now."""
    try:
        return await aledgers_of(scopes_of(order.subject), get=engine.look_up)
    except BudgetError:
        return None
