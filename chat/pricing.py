"""Which models may be called here, and at which price.

Pure but for `_configured`, the one function that reads the settings. Must not know whose money it is.
"""

from __future__ import annotations

from django.conf import settings

from billing.prices import PER, Price
from chat.errors import ModelNotPriced
from chat.local_model import NAME as EMBEDDED_MODEL

# $10 in and $40 out: high for so small a model, so that a demo's budget moves while one watches.
EMBEDDED_PRICE = Price(input=1_000 * PER, output=4_000 * PER)


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
    prices = {model: Price(**sides) for model, sides in settings.LLM_PRICES.items()}
    return settings.LLM_MODEL, prices
