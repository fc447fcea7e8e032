"""What a page says of the titles that a model writes: whether they are on, and what one costs."""

from __future__ import annotations

from dataclasses import dataclass

from django import template
from django.conf import settings

from billing.engine.rules import USUAL_INPUT_RATIO, likely_tokens
from billing.prices import estimate
from chat.errors import ModelNotPriced
from chat.history import prompt_bytes
from chat.pricing import price_for
from chat.titles import MOST_TOKENS, READ_CHARS, is_on, messages_for
from tenants.models import Tenant

register = template.Library()


@dataclass(frozen=True, slots=True)
class Titles:
    """`about`: microcents for one of a long first answer; None where the default model has no price."""

    is_on: bool
    about: int | None
    model: str


@register.simple_tag
def titles_of(tenant: Tenant) -> Titles:
    model = settings.LLM_MODEL
    longest = messages_for("a" * READ_CHARS, "a" * READ_CHARS)
    tokens = likely_tokens(prompt_bytes(longest), USUAL_INPUT_RATIO)
    try:
        about = estimate(tokens_input=tokens, max_tokens=MOST_TOKENS, price=price_for(model))
    except ModelNotPriced:
        about = None
    return Titles(is_on(tenant.chat_settings), about, model)
