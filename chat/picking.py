"""The models among which a person chooses, each with its price, its size and whether it takes pictures in words.

Owns what a picker shows. What may be called is chat.allowed's to say, and a call asks it again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from django.conf import settings

from billing.prices import Price
from billing.templatetags.money import usd_short_filter
from chat.allowed import allowed_of
from chat.image_models import tokens_beside_name
from chat.passed import Kind
from chat.pricing import context_for, kinds_for, price_for, priced_models
from chat.wishes import Wishes, of_workspace
from tenants.models import Tenant

GONE = "cannot be called here now"


@dataclass(frozen=True, slots=True)
class Choice:
    name: str
    facts: str
    is_chosen: bool = False
    # None where it cannot be called.
    price: Price | None = None
    # What an image adds to a message at most; None where it takes none.
    image_tokens: int | None = None

    @property
    def label(self) -> str:
        return f"{self.name} · {self.facts}"


def holds_for(tenant: Tenant, own: Wishes) -> Wishes:
    """What holds where a conversation asks for this: its own, then the workspace's, then the operator's."""
    return own.over(workspace_of(tenant))


def workspace_of(tenant: Tenant) -> Wishes:
    return of_workspace(tenant.chat_settings).over(default())


def default() -> Wishes:
    """The operator's."""
    return Wishes(model=settings.LLM_MODEL)


def choices(allowed: Collection[str] | None, chosen: str) -> list[Choice]:
    """Those that may be called. What is chosen is among them in any case: nobody's model is changed silently."""
    names = [name for name in allowed_of(priced_models(), allowed) if Kind.CHAT in kinds_for(name)]
    gone = [Choice(chosen, GONE, is_chosen=True)] if chosen and chosen not in names else []
    return [*gone, *(_choice(name, name == chosen) for name in names)]


def _choice(name: str, is_chosen: bool) -> Choice:
    return Choice(name, facts_of(name), is_chosen, price_for(name), tokens_beside_name(name))


def facts_of(name: str) -> str:
    """Of a group, its first member's price, and the size that fits into each."""
    price, context = price_for(name), context_for(name)
    cost = f"{usd_short_filter(price.input)} in, {usd_short_filter(price.output)} out per million tokens"
    size = "" if context is None else f", reads {context:,} tokens"
    return f"{cost}{size}{'' if tokens_beside_name(name) is None else ', takes pictures'}"
