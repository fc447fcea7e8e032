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
    """Microcents per million tokens."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. `cached` is a part of the input, `reasoning` a part of the output."""

    tokens_input: int
    tokens_output: int
    cached: int = 0
    reasoning: int = 0


def cost(usage: Usage, price: Price) -> int:
    """Microcents, rounded up once for the call."""
    return -(-(usage.tokens_input * price.input + usage.tokens_output * price.output) // PER)


def estimate(*, tokens_input: int, max_tokens: int, price: Price) -> int:
    """The most the call can be billed, in microcents."""
    return cost(Usage(tokens_input=tokens_input, tokens_output=max_tokens), price)


def affordable_tokens(budget: int, tokens_input: int, price: Price) -> int:
    """How many tokens of output an amount buys once the input is paid; 0 when it does not even buy that."""
    left = budget * PER - tokens_input * price.input
    if left < 0:
        return 0
    return min(left // price.output, UNLIMITED_TOKENS) if price.output else UNLIMITED_TOKENS
