"""Template filters for money. The only place where microcents become words or a bar; unknown is a dash, never zero."""

from django import template

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


@register.filter(name="bar")
def bar_filter(figures: Ledger | None) -> Bar | None:
    """How full a budget is: `{% with bar=budget|bar %}`."""
    return bar_of(figures)


def _signed(text: str) -> str:
    return f"−${text[1:]}" if text.startswith("-") else f"${text}"
