"""GET /v1/models: what this key can ask, and what it costs. Asks nobody.

Owns the list's shape. Which models there are is chat.pricing's to say, and who may call them the workspace's.
"""

from __future__ import annotations

from typing import Any

from billing.money import usd
from billing.prices import Price
from chat.errors import ModelNotPriced
from chat.pricing import callable_models, price_for
from tenants.http import NotFound
from tenants.resolve import Asker


class NoSuchModel(NotFound):
    code = "model_not_found"
    message = "There is no such model here for this key. GET /v1/models lists those that there are."


def models_for(asker: Asker) -> dict[str, Any]:
    return {"object": "list", "data": [_entry(name, price) for name, price in _askable(asker)]}


def model_for(asker: Asker, name: str) -> dict[str, Any]:
    """Raises NoSuchModel."""
    for askable, price in _askable(asker):
        if askable == name:
            return _entry(name, price)
    raise NoSuchModel(model=name[:200])


def _askable(asker: Asker) -> list[tuple[str, Price]]:
    """Those with a price that both the workspace and the key may call."""
    found = []
    for name in callable_models():
        if any(names is not None and name not in names for names in (asker.tenant.allowed_models, asker.key_models)):
            continue
        try:
            found.append((name, price_for(name)))
        except ModelNotPriced:
            continue
    return found


def _entry(name: str, price: Price) -> dict[str, Any]:
    """As OpenAI's clients read it. `created` is a fact that nobody knows here. Prices: USD per million tokens."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "workspace",
        "pricing": {"input": usd(price.input), "output": usd(price.output), "unit": "USD per million tokens"},
    }
