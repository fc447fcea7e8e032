"""How much a key may ask for, and what is left of it: requests and tokens a minute, calls at once. Pure.

Owns the headers that say what is left. What is counted, and where: billing/migrations/0009_rates.sql. Must not know a
clock, a row or a setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from billing.subjects import Key
from tenants.rates import lower

REQUESTS, TOKENS, CONCURRENT = "requests", "tokens", "concurrent"


@dataclass(frozen=True, slots=True)
class Rates:
    """The limits of one key, or of a chain of rotated ones, which count together. None: no limit of that kind."""

    key: int
    requests: int | None = None
    tokens: int | None = None
    concurrent: int | None = None

    def params(self, tokens: int, *, is_let_in: bool) -> dict[str, int | None]:
        """What the statement that counts a call of so many tokens is given."""
        return {
            "rated_key": self.key,
            "most_requests": self.requests,
            "most_tokens": self.tokens,
            "most_concurrent": self.concurrent,
            "wanted": tokens,
            "is_let_in": is_let_in,
        }

    def of(self, limit: str) -> int | None:
        figure: int | None = getattr(self, limit)
        return figure


def rates_of(key: Key | None, most: Mapping[str, int]) -> Rates | None:
    """The key's own figures and the operator's, `most`: of two the lower one holds. None: nothing is limited."""
    if key is None or not (key.rates or most):
        return None
    figures = lower(key.rates, most)
    return Rates(key.id, **figures) if figures else None


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of a key's rates, as the count of one call found it.

    `full`: the limit that refused that call; `wait` then says after how many seconds it would have been let in, None
    where it never will be. A `reset` is after how many seconds nothing is used any more.
    """

    rates: Rates
    full: str | None
    wait: float | None
    requests: int | None = None
    requests_reset: float | None = None
    tokens: int | None = None
    tokens_reset: float | None = None

    def after(self, seconds: float) -> Left:
        """The same so much later, where nothing was counted since."""
        return replace(
            self,
            wait=_less(self.wait, seconds),
            requests_reset=_less(self.requests_reset, seconds),
            tokens_reset=_less(self.tokens_reset, seconds),
        )

    def waiting(self, seconds: float) -> Left:
        return replace(self, wait=seconds)

    def headers(self) -> dict[str, str]:
        """The usual ones, for the limits that the key has."""
        said: dict[str, Any] = {}
        for limit, left, reset in (
            (REQUESTS, self.requests, self.requests_reset),
            (TOKENS, self.tokens, self.tokens_reset),
        ):
            if left is not None and reset is not None:
                said[f"x-ratelimit-limit-{limit}"] = self.rates.of(limit)
                said[f"x-ratelimit-remaining-{limit}"] = left
                said[f"x-ratelimit-reset-{limit}"] = as_duration(reset)
        return {name: str(value) for name, value in said.items()}


def _less(seconds: float | None, by: float) -> float | None:
    return None if seconds is None else max(0.0, seconds - by)


def as_duration(seconds: float) -> str:
    """As OpenAI's headers write it: 0s, 120ms, 1.2s, 1m30s. Rounded up: who waits so long does not come early."""
    ms = math.ceil(seconds * 1_000)
    if 0 < ms < 1_000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    rest = f"{ms / 1_000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
