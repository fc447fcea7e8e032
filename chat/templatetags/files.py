"""What a page says of a file: its tokens and its price. Must not say how money is written: billing's filters do."""

from __future__ import annotations

from django import template

from chat.attachments import price_of, tokens_for
from chat.models import Attachment

register = template.Library()


@register.filter
def counted(number: int) -> str:
    return f"{number:,}"


@register.filter
def file_tokens(attachment: Attachment, model: str) -> int | None:
    """None for an image where what is asked takes none: `{{ file|file_tokens:wishes.model }}`."""
    return tokens_for(attachment, model)


@register.filter
def file_price(attachment: Attachment, model: str) -> int | None:
    """Of what is asked: `{{ file|file_price:wishes.model|usd_short }}`."""
    return price_of(attachment, model)
