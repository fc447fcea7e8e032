"""What is bought, what pays for it, and what came of it: the words that all who buy an answer share.

Owns those shapes. Nothing is asked, held or settled here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from billing.engine.authority import Payer
from billing.engine.rules import Habit
from billing.engine.settling import Final, Keep, Settled
from billing.outcomes import Outcome
from billing.prices import Price, Usage, estimate
from chat.breaker import Upstream
from chat.dialect import Dialect, Sent


@dataclass(slots=True)
class Terms:
    """What is bought: the model at its price, at most so many tokens, and what its input is and can be.

    `bound` is never less than the input's tokens and is what is held; `likely` is what is charged when nobody reports;
    `size` is the input in bytes, as the habit's ratio counts them.
    """

    model: str
    # What its habit is learned under.
    app: str
    price: Price
    dialect: Dialect
    habit: Habit
    upstream: Upstream
    max_tokens: int
    bound: int
    likely: int
    size: int
    # How many answers are asked for, each of at most `max_tokens`.
    n: int = 1
    # More may be billed than its stream shows, which is known from its report alone.
    hides: bool = False

    @property
    def most_output(self) -> int:
        """Tokens of all answers together."""
        return self.max_tokens * self.n

    @property
    def is_read_to_its_end(self) -> bool:
        """Also where nobody reads any more. Of an answer of one word whose reader left with it, a thousand tokens of
        thoughts were billed by the provider, and one was charged. Thoughts that the stream shows may be a summary.
        """
        return self.hides or self.dialect.bills_after_cut

    def amount(self, output: int) -> int:
        return estimate(tokens_input=self.bound, max_tokens=output, price=self.price)

    def meter(self) -> dict[str, int]:
        """What a reader reckons by what was used so far: microcents of the input, and of 1,000 bytes of words."""
        per_kilobyte = round(1_000 * self.habit.output_ratio)
        return {
            "input": estimate(tokens_input=self.likely, max_tokens=0, price=self.price),
            "per_kilobyte": estimate(tokens_input=0, max_tokens=per_kilobyte, price=self.price),
        }

    def likely_cost(self) -> int:
        """Of the longest answer that these terms allow, by what its input probably is."""
        return estimate(tokens_input=self.likely, max_tokens=self.most_output, price=self.price)


@dataclass(frozen=True, slots=True)
class Completion:
    """A bought answer. `text` are the model's words; `shown` says why where there are none."""

    text: str
    shown: str
    model: str
    finish_reason: str
    usage: Usage
    cost: int
    outcome: Outcome
    budget: dict[str, Any] | None
    # As they were passed on: the bytes of an answer in one piece, or of a stream where they are kept.
    passed: bytes | None = field(default=None, repr=False)


KeepFor = Callable[[Completion], Keep | None]


class Paying(Protocol):
    """What pays for an answer: a call of the engine, or a part of a hold that pays for more."""

    on_lapse: Callable[[], None] | None

    @property
    def id(self) -> UUID: ...
    @property
    def payer(self) -> Payer: ...
    @property
    def pays(self) -> bool: ...
    @property
    def held(self) -> int: ...
    @property
    def is_fitted(self) -> bool: ...
    def note(self, used: int, *, tokens_input: int | None, tokens_output: int | None) -> None: ...
    async def grow(self, amount: int) -> bool: ...
    def settle(self, final: Final, *, keep: Keep | None = None) -> asyncio.Task[Settled]: ...
    def give_way(self, final: Final) -> asyncio.Task[Settled]: ...


P = TypeVar("P", bound=Paying)


@dataclass(slots=True)
class Bought(Generic[P]):
    """An answer that is paid for and can be asked for now. `held_output`: the tokens of it that are held."""

    call: P
    sent: Sent
    terms: Terms
    held_output: int
    keep: KeepFor | None = None


class Others(Protocol[P]):
    """Models that may answer in the place of one that failed and billed nothing."""

    async def next(self) -> Bought[P] | None:
        """The next one, paid for; None where none is left. Raises what refuses it."""

    def gave_up(self) -> None:
        """None of them is asked."""


def as_settled(completion: Completion, settled: Settled) -> Completion:
    """The completion with what stands at the authority."""
    final = settled.final
    return replace(
        completion,
        usage=final.usage or completion.usage,
        cost=final.cost,
        outcome=final.outcome,
        budget=settled.budget,
    )
