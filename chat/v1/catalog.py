"""GET /v1/models: what this key can ask, and what it costs. Asks nobody.

Owns the list's shape. Which models there are is chat.pricing's to say, and who may call them the workspace's.
"""

from __future__ import annotations

from typing import Any

from billing.money import usd
from chat.allowed import allowed_of
from chat.pricing import context_for, kinds_for, price_for, priced_models
from tenants.http import NotFound
from tenants.resolve import Asker


class NoSuchModel(NotFound):
    code = "model_not_found"
    message = "There is no such model here for this key. GET /v1/models lists those that there are."


def models_for(asker: Asker) -> dict[str, Any]:
    return {"object": "list", "data": [_entry(name) for name in _askable(asker)]}


def model_for(asker: Asker, name: str) -> dict[str, Any]:
    """Raises NoSuchModel."""
    if name not in _askable(asker):
        raise NoSuchModel(model=name[:200])
    return _entry(name)


def _askable(asker: Asker) -> list[str]:
    """Those with a price that both the workspace and the key may call."""
    return allowed_of(priced_models(), asker.tenant.allowed_models, asker.key_models)


def _entry(name: str) -> dict[str, Any]:
    """As OpenAI's clients read it. `created` is a fact that nobody knows here. Of a group: what its first one costs."""
    price = price_for(name)
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "workspace",
        "context_length": context_for(name),
        "kinds": sorted(kind.value for kind in kinds_for(name)),
        "pricing": {"input": usd(price.input), "output": usd(price.output), "unit": "USD per million tokens"},
    }
