"""A system check for deployments: whether the model that is asked by default can be asked."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Warning, register

from chat.errors import ModelNotPriced
from chat.pricing import price_for


@register(deploy=True)
def default_has_a_price(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    try:
        price_for(settings.LLM_MODEL)
    except ModelNotPriced:
        return [
            Warning(
                f"LLM_MODEL is {settings.LLM_MODEL!r}, without a price: calls that name no other are refused.",
                hint="Write its price into LLM_PRICES, or name a model that MODELS or LLM_PRICES has.",
                id="chat.W001",
            )
        ]
    return []
