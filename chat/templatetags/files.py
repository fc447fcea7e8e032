"""What a page says of a file: its tokens and its price. Must not say how money is written: billing's filters do."""

from __future__ import annotations

from collections.abc import Iterable

from django import template

from chat.attachments import price_of, tokens_for
from chat.models import Attachment

register = template.Library()


@register.filter
def counted(number: int) -> str:
    return f"{number:,}"


@register.filter
def file_tokens(attachment: Attachment, model: str) -> int | None:
    """None for an image where what is asked takes none: `{{ file|file_tokens:chosen_model }}`."""
    return tokens_for(attachment, model)


@register.filter
def tokens_price(tokens: int | None, model: str) -> int | None:
    """Of what is asked: `{{ tokens|tokens_price:chosen_model|usd_short }}`."""
    return price_of(tokens, model)


@register.filter
def all_tokens(files: Iterable[Attachment], model: str) -> int:
    """Of all files of the message at most, but for images that the model does not take."""
    return sum(tokens_for(file, model) or 0 for file in files)
