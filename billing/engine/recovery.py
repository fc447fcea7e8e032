"""A reserve whose answer was lost: it may hold money that nobody knows of.

Owns giving that money back: the same bytes again until an answer comes, then a release. The caller has had its error
long before. Must not grant anything.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from billing.engine.authority import held_of, is_lost, was_not_sent
from billing.engine.settling import Open, Slice
from billing.subjects import scopes_of

if TYPE_CHECKING:
    from billing.engine.engine import Engine

logger = logging.getLogger(__name__)

# For as long as the hold can last; then the authority frees it itself.
RECOVER_SECONDS = 75.0
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)


async def recover(engine: Engine, hold: Open, part: Slice, body: dict[str, Any]) -> None:
    """Repeat `body` until its answer is known, and release what it held."""
    until = time.monotonic() + RECOVER_SECONDS
    attempts = 0
    while time.monotonic() < until and not engine.is_closing:
        await engine.pause(PAUSES[min(attempts, len(PAUSES) - 1)])
        attempts += 1
        response = await engine.authority.reserve(hold.payer, body)
        if held := held_of(response):
            if await _release(engine, hold, part, held.reservation_id):
                return
        elif not is_lost(response) and not was_not_sent(response):
            return  # refused: nothing is held under this key
    logger.error("A lost reservation may hold money until it expires: hold=%s", part.key(hold.id))


async def _release(engine: Engine, hold: Open, part: Slice, reservation_id: str) -> bool:
    body = {"idempotency_key": part.key(hold.id), "reason": "its answer was lost"}
    response = await engine.authority.release(hold.payer, reservation_id, body)
    engine.lines.wake(scopes_of(hold.subject))
    return not is_lost(response) and not was_not_sent(response)
