"""Which models may be called here, at which price, and which are asked in whose place.

Pure but for the settings that it reads. Must not know whose money it is, nor who may call what (chat.allowed).
"""

from __future__ import annotations

from typing import Any

from django.conf import settings

from billing.prices import PER, Price
from chat.errors import ModelNotPriced
from chat.local_model import NAME as EMBEDDED_MODEL
from chat.passed import Kind

# $10 in and $40 out: high for so small a model, so that a demo's budget moves while one watches.
EMBEDDED_PRICE = Price(input=1_000 * PER, output=4_000 * PER)
# What only LLM_MODEL or LLM_PRICES name may be asked anything: their server says what it cannot do.
ANY_KIND = frozenset(Kind)


def callable_models() -> list[str]:
    """The default first. All but an unpriced default can be asked."""
    default = settings.LLM_MODEL
    return [default, *sorted({*settings.LLM_PRICES, *settings.MODELS} - {default})]


def priced_models() -> list[str]:
    """The same without such a default: what can be asked."""
    return [model for model in callable_models() if _price(members_of(model)[0])]


def members_of(model: str) -> list[str]:
    """The models that answer under this name, in the order in which they are asked: of a group several, else itself."""
    members: list[str] = settings.MODELS.get(model, {}).get("fallback", [model])
    return members


def price_for(model: str) -> Price:
    """What the first of its members costs. Raises ModelNotPriced: for what has no price as for what there is not."""
    found = _price(members_of(model)[0])
    if found is None:
        raise ModelNotPriced(model, priced=priced_models())
    return found


def context_for(model: str) -> int | None:
    """Tokens of input and answer together that fit into each of its members; None where the operator has not said."""
    sizes = [settings.MODELS.get(member, {}).get("context") for member in members_of(model)]
    known = [size for size in sizes if size is not None]
    return min(known, default=None) if len(known) == len(sizes) else None


def kinds_for(model: str) -> frozenset[Kind]:
    """What can be asked of it, of a group what can be asked of some member."""
    return frozenset().union(*(_kinds(member) for member in members_of(model)))


def _kinds(model: str) -> frozenset[Kind]:
    entry = settings.MODELS.get(model)
    return ANY_KIND if entry is None else frozenset(Kind[name.upper()] for name in entry["kinds"])


def _price(model: str) -> Price | None:
    sides: dict[str, Any] | None = settings.MODELS.get(model, {}).get("price") or settings.LLM_PRICES.get(model)
    if sides is not None:
        return Price(**sides)
    return EMBEDDED_PRICE if model == settings.LLM_MODEL == EMBEDDED_MODEL else None
