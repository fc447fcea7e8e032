"""A reserve whose answer was lost: it may hold money that nobody knows of.

Owns giving that money back: the same bytes again until an answer comes, then a release. The caller has had its error
long before. Must not grant anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from runcycles.response import CyclesResponse

from billing.engine.authority import held_of, is_lost, pause_after, was_not_sent
from billing.engine.settling import Open, Slice
from billing.subjects import scopes_of

if TYPE_CHECKING:
    from billing.engine.engine import Engine

logger = logging.getLogger(__name__)

# For as long as the hold can last; then the authority frees it itself.
RECOVER_SECONDS = 75.0
# After a broken connection. A time-out has a pause of its own.
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)


async def recover(engine: Engine, hold: Open, part: Slice, body: dict[str, Any], response: CyclesResponse) -> None:
    """Release what `body` holds. `response`: what came of it so far; where that says nothing, `body` is repeated."""
    until = time.monotonic() + RECOVER_SECONDS
    attempts = 0
    while True:
        if held := held_of(response):
            response = await _release(engine, hold, part, held.reservation_id)
            is_over = _is_known(response)
        else:
            is_over = _is_known(response) and not response.is_success  # refused: nothing is held under this key
        if is_over:
            return
        await engine.pause(pause_after(response, PAUSES[min(attempts, len(PAUSES) - 1)]))
        attempts += 1
        if time.monotonic() >= until or engine.is_closing:
            break
        response = await engine.authority.reserve(hold.payer, body)
    logger.error(
        "A lost reservation may hold money until it expires: hold=%s", part.key(hold.id), extra=hold.payer.in_logs
    )


async def give_back(
    engine: Engine, hold: Open, part: Slice, body: dict[str, Any], asked: Awaitable[CyclesResponse]
) -> None:
    """The same for whoever left before the answer came: it is waited for, so that nothing need be repeated."""
    response = await asked
    if not was_not_sent(response):
        await recover(engine, hold, part, body, response)


def _is_known(response: CyclesResponse) -> bool:
    return not is_lost(response) and not was_not_sent(response)


async def _release(engine: Engine, hold: Open, part: Slice, reservation_id: str) -> CyclesResponse:
    body = {"idempotency_key": part.key(hold.id), "reason": "its answer was lost"}
    response = await engine.authority.release(hold.payer, reservation_id, body)
    engine.lines.wake(scopes_of(hold.subject))
    return response
