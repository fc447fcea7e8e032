"""Template filters for money. The only place where microcents become words or a bar; unknown is a dash, never zero."""

from collections.abc import Iterable
from typing import Any

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

from billing.ledgers import Ledger
from billing.money import usd, usd_for_the_eye
from billing.proof import Bar, bar_of

register = template.Library()


@register.filter(name="usd")
def usd_filter(amount: int | None) -> str:
    """$ exact: `{{ line.cost|usd }}` → $0.0000015."""
    return "—" if amount is None else _signed(usd(amount))


@register.filter(name="usd_short")
def usd_short_filter(amount: int | None) -> str:
    """$ for the eye: `{{ figures.remaining|usd_short }}` → $0.98."""
    return "—" if amount is None else _signed(usd_for_the_eye(amount))


@register.filter(name="usd_at_most")
def usd_at_most_filter(amount: int | None) -> str:
    """The same, rounded up: `at most {{ price|usd_at_most }}`."""
    return "—" if amount is None else _signed(usd_for_the_eye(amount, at_most=True))


@register.simple_tag
def places(*amounts: int | str | None) -> int:
    """How many decimals the longest of these has: `{% places one.cost other.cost as decimals %}`.

    What is unknown has none: None, and the empty text that a template makes of a missing object.
    """
    return max((len(usd(amount).partition(".")[2]) for amount in amounts if isinstance(amount, int)), default=2)


@register.simple_tag
def places_in(rows: Iterable[Any], name: str) -> int:
    """The same of a column: `{% places_in lines "cost" as decimals %}`."""
    return places(*(getattr(row, name) for row in rows))


@register.filter
def usd_lined(amount: int | None, decimals: int) -> SafeString:
    """$ exact, as wide behind its point as the longest of its column: the points then stand under each other."""
    whole, point, rest = usd_filter(amount).partition(".")
    return format_html('{}<span class="places places--{}">{}{}</span>', whole, decimals, point, rest)


@register.filter(name="bar")
def bar_filter(figures: Ledger | None) -> Bar | None:
    """How full a budget is: `{% with bar=budget|bar %}`."""
    return bar_of(figures)


def _signed(text: str) -> str:
    return f"−${text[1:]}" if text.startswith("-") else f"${text}"
