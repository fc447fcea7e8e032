"""What a call costs, and the most that it can cost. Whole microcents, never a float.

Pure but for `_configured`, the one function that reads the settings. Must not know whose money it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings

from chat.errors import ModelNotPriced
from chat.local_model import NAME as EMBEDDED_MODEL

PER = 1_000_000  # prices are for a million tokens
# More than any budget buys: what a free model's answer may have.
UNLIMITED_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Price:
    """Microcents per million tokens."""

    input: int
    output: int


# $10 in and $40 out: high for so small a model, so that a demo's budget moves while one watches.
EMBEDDED_PRICE = Price(input=1_000 * PER, output=4_000 * PER)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call used. `counted`: by us, on the safe side, for the provider did not say."""

    tokens_input: int
    tokens_output: int
    counted: bool = False


def cost(usage: Usage, price: Price) -> int:
    """Microcents, rounded up once for the call."""
    return -(-(usage.tokens_input * price.input + usage.tokens_output * price.output) // PER)


def estimate(*, tokens_input: int, max_tokens: int, price: Price) -> int:
    """The most the call can be billed."""
    return cost(Usage(tokens_input=tokens_input, tokens_output=max_tokens), price)


def affordable_tokens(budget: int, tokens_input: int, price: Price) -> int:
    """How many tokens of output an amount buys once the input is paid; 0 when it does not even buy that."""
    left = budget * PER - tokens_input * price.input
    if left < 0:
        return 0
    return min(left // price.output, UNLIMITED_TOKENS) if price.output else UNLIMITED_TOKENS


def callable_models() -> list[str]:
    """The default first. All but an unpriced default can be asked."""
    default, prices = _configured()
    return [default, *sorted(model for model in prices if model != default)]


def price_for(model: str) -> Price:
    """Raises ModelNotPriced: for a model that may not be called as well as for one without a price."""
    found = _price(model)
    if found is None:
        raise ModelNotPriced(model, priced=[name for name in callable_models() if _price(name)])
    return found


def _price(model: str) -> Price | None:
    default, prices = _configured()
    if model in prices:
        return prices[model]
    return EMBEDDED_PRICE if model == default == EMBEDDED_MODEL else None


def _configured() -> tuple[str, dict[str, Price]]:
    """The default model, and the prices that the operator has set."""
    prices = {model: Price(input=p["input"], output=p["output"]) for model, p in settings.LLM_PRICES.items()}
    return settings.LLM_MODEL, prices
