"""Keys that were found full a moment ago: their calls are refused here, before the authority is asked to hold money.

Owns what one process remembers of that, and the refusal. Must not count: the database does, for all processes together
(billing/migrations/0009_rates.sql), with the statement that writes a call's hold.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from billing.engine.order import Order
from billing.errors import KeyIsFull
from billing.rates import CONCURRENT, REQUESTS, TOKENS, Left, Rates

if TYPE_CHECKING:
    from billing.engine.call import Call

# When a call of the key's may have ended nobody can know.
CONCURRENT_WAIT_SECONDS = 1.0
# How long a key is taken for full whose calls end, and are corrected, in other processes too.
NOT_TOLD_SECONDS = 0.25
MOST_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class _Full:
    left: Left
    tokens: int  # of the call that was refused: a smaller one may fit
    since: float
    until: float


class FullKeys:
    """By account and key. A process that forgets them asks the database once more, and nothing else."""

    def __init__(self) -> None:
        self._full: dict[tuple[int | None, int], _Full] = {}

    def refuse(self, order: Order) -> None:
        """Raises KeyIsFull where that is known already. What is not known is found out when the call is counted."""
        rates = order.rates
        if rates is None or order.is_let_in:
            return
        if rates.tokens is not None and order.tokens > rates.tokens:
            raise KeyIsFull(TOKENS, allowed=rates.tokens, wait=None, headers={})
        if (full := self._full.get(_name_of(order, rates))) is None:
            return
        now = time.monotonic()
        if now >= full.until or full.left.rates != rates:
            del self._full[_name_of(order, rates)]
        elif full.left.full != TOKENS or order.tokens >= full.tokens:
            raise _refusal(full.left.after(now - full.since))

    def full(self, order: Order, left: Left) -> KeyIsFull:
        """Remember it, and the refusal of the call that found it so."""
        if left.wait is None:
            left = left.waiting(CONCURRENT_WAIT_SECONDS)
        assert order.rates is not None
        assert left.wait is not None
        now = time.monotonic()
        known_for = left.wait if left.full == REQUESTS else min(left.wait, NOT_TOLD_SECONDS)
        if len(self._full) >= MOST_REMEMBERED:
            self._full.clear()
        self._full[_name_of(order, order.rates)] = _Full(left, order.tokens, now, now + known_for)
        return _refusal(left)

    def ended(self, call: Call) -> None:
        """A call of a key is over: there is room for the next one, and its tokens are known."""
        rates = call.order.rates
        # One that was refused ends too, and has made no room.
        if rates is None or not call.is_dispatched:
            return
        full = self._full.get(_name_of(call.order, rates))
        if full is not None and full.left.full != REQUESTS:
            del self._full[_name_of(call.order, rates)]


def _name_of(order: Order, rates: Rates) -> tuple[int | None, int]:
    return order.payer.account_id, rates.key


def _refusal(left: Left) -> KeyIsFull:
    limit = left.full or CONCURRENT
    return KeyIsFull(limit, allowed=left.rates.of(limit) or 0, wait=left.wait, headers=left.headers())
