"""What is asked of the engine: one call, who pays for it, and how much to hold at first.

Owns `Order`. Must not know what is bought.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from billing.engine.authority import TTL_MS, Payer
from billing.rates import Rates

if TYPE_CHECKING:
    from billing.engine.repeats import Claim

__all__ = ["TTL_MS", "Order", "refuse_unless_text", "refuse_unless_whole"]

MOST = 2**63 - 1  # of a bigint, and of the authority
MOST_TTL_MS = 86_400_000


def refuse_unless_whole(name: str, value: object, *, most: int = MOST) -> None:
    """Raises ValueError: money and counts are whole and never negative. A float, a Decimal or True is none of ours."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} {value!r}: write a whole number, 0 or more. Money is in microcents.")


def refuse_unless_text(name: str, value: object, *, most: int) -> None:
    if not isinstance(value, str) or not 1 <= len(value.strip()) <= len(value) <= most or not value.isprintable():
        raise ValueError(f"{name} {value!r}: write a printable text of 1 to {most} letters.")


@dataclass(slots=True)
class Order:
    """What is asked for. `amount` is held at first; `least` is charged if the process dies with the model at work.

    `fit` turns what remains into a smaller amount that still makes a call, 0 where there is none. `tighten` counts
    anew what `amount` only bounds, once, when money is short; None where it cannot. `numbered_by` is an SQL
    expression that ends the busy key: what a call makes gets its number with the hold, which spares a statement; so
    do further numbers, an SQL expression of an array that `Call.numbers` gives back.
    With a `claim` the call is dispatched only while the claim is its own, and its answer is written with its line.
    With `rates` it is dispatched only while its key has room: `tokens` are counted for it then, and at its end those
    that it used. `is_let_in`: it is another try of a request that was counted already.
    """

    payer: Payer
    subject: dict[str, Any]
    action_kind: str
    action_name: str
    amount: int
    user_id: int | None = None
    model: str = ""
    least: int = 0
    tokens_input: int | None = None
    busy_key: str | None = None
    numbered_by: str = ""
    numbers: str = ""
    tags: list[str] | None = None
    grace_ms: int | None = None
    ttl_ms: int = TTL_MS
    fit: Callable[[int], int] | None = None
    tighten: Callable[[], Awaitable[int | None]] | None = None
    affordable: Callable[[int], int] | None = None
    claim: Claim | None = None
    rates: Rates | None = None
    tokens: int = 0
    is_let_in: bool = False

    def __post_init__(self) -> None:
        if self.claim is not None:
            self._refuse_unless_for_it(self.claim)
        # The authority would refuse it in words that sound like an outage, to a person who can do nothing about it.
        refuse_unless_whole("estimate", self.amount)
        refuse_unless_whole("least", self.least)
        refuse_unless_text("action_kind", self.action_kind, most=64)
        refuse_unless_text("action_name", self.action_name, most=256)
        refuse_unless_whole("ttl_ms", self.ttl_ms, most=MOST_TTL_MS)
        if self.grace_ms is not None:
            refuse_unless_whole("grace_period_ms", self.grace_ms, most=60_000)
        if self.tags is not None:
            if not isinstance(self.tags, list) or len(self.tags) > 10:
                raise ValueError(f"action_tags {self.tags!r}: write a list of at most 10.")
            for tag in self.tags:
                refuse_unless_text("action_tags", tag, most=64)

    def _refuse_unless_for_it(self, claim: Claim) -> None:
        """Raises ValueError: the claim's row stands beside the line of the call that it is for, and says one cost."""
        if self.payer.is_house or claim.request.schema != self.payer.schema:
            raise ValueError("claim: its request is a workspace's own, and only that workspace pays for its call.")
        if claim.is_dispatched:
            raise ValueError("claim: its one call has been made. Buy all that a request needs under one hold.")
