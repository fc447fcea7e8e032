"""What is asked of the engine: one call, who pays for it, and how much to hold at first.

Owns `Order`. Must not know what is bought.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from billing.engine.authority import TTL_MS, Payer

__all__ = ["TTL_MS", "Order"]


@dataclass(slots=True)
class Order:
    """What is asked for. `amount` is held at first; `least` is charged if the process dies with the model at work.

    `fit` turns what remains into a smaller amount that still makes a call, 0 where there is none. `tighten` counts
    anew what `amount` only bounds, once, when money is short; None where it cannot. `numbered_by` is an SQL
    expression that ends the busy key: what a call makes gets its number with the hold, which spares a statement.
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
    tags: list[str] | None = None
    grace_ms: int | None = None
    ttl_ms: int = TTL_MS
    wait_seconds: float | None = None
    fit: Callable[[int], int] | None = None
    tighten: Callable[[], Awaitable[int | None]] | None = None
    affordable: Callable[[int], int] | None = None
