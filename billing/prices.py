"""What tokens cost. Pure: whole microcents, never a float.

Owns the arithmetic of a call's cost. Must not know which models there are nor who pays.
"""

from __future__ import annotations

from dataclasses import dataclass

PER = 1_000_000  # prices are for a million tokens
# More than any budget buys: what a free model's answer may have.
UNLIMITED_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Price:
    """Microcents per million tokens. A part without a price of its own has its whole's: never nothing."""

    input: int
    output: int
    cached_input: int | None = None
    reasoning: int | None = None

    @property
    def of_cached(self) -> int:
        return self.input if self.cached_input is None else self.cached_input

    @property
    def of_reasoning(self) -> int:
        return self.output if self.reasoning is None else self.reasoning

    @property
    def dearest(self) -> Price:
        """The same without parts, each side at the most that a token of it can cost: what is held goes by this."""
        return Price(max(self.input, self.of_cached), max(self.output, self.of_reasoning))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. `cached` is a part of the input, `reasoning` a part of the output."""

    tokens_input: int
    tokens_output: int
    cached: int = 0
    reasoning: int = 0


def cost(usage: Usage, price: Price) -> int:
    """Microcents, rounded up once for the call."""
    # A provider writes the parts: one that is larger than its whole must not turn the rest into a credit.
    cached = _within(usage.cached, usage.tokens_input)
    reasoning = _within(usage.reasoning, usage.tokens_output)
    tokens_input = (usage.tokens_input - cached) * price.input + cached * price.of_cached
    tokens_output = (usage.tokens_output - reasoning) * price.output + reasoning * price.of_reasoning
    return -(-(tokens_input + tokens_output) // PER)


def _within(part: int, whole: int) -> int:
    return max(0, min(part, whole))


def estimate(*, tokens_input: int, max_tokens: int, price: Price) -> int:
    """The most the call can be billed, in microcents, however its tokens fall into parts."""
    return cost(Usage(tokens_input=tokens_input, tokens_output=max_tokens), price.dearest)


def affordable_tokens(budget: int, tokens_input: int, price: Price) -> int:
    """How many tokens of output an amount buys once the input is paid; 0 when it does not even buy that."""
    dearest = price.dearest
    left = budget * PER - tokens_input * dearest.input
    if left < 0:
        return 0
    return min(left // dearest.output, UNLIMITED_TOKENS) if dearest.output else UNLIMITED_TOKENS
