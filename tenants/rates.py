"""What the rates of an API key are called, and which figure holds where the operator names one too. Pure.

Must not count: billing does.
"""

from __future__ import annotations

from collections.abc import Mapping

# Requests and tokens a minute, calls at once.
RATES = ("requests", "tokens", "concurrent")
MOST = 1_000_000_000
_WORDS = {
    "requests": ("request a minute", "requests a minute"),
    "tokens": ("token a minute", "tokens a minute"),
    "concurrent": ("call at once", "calls at once"),
}


def lower(own: Mapping[str, int] | None, most: Mapping[str, int]) -> dict[str, int]:
    """The figures that hold for a key: of its own and the operator's the lower ones. What is missing has no limit."""
    figures = {rate: [given[rate] for given in (own or {}, most) if given.get(rate) is not None] for rate in RATES}
    return {rate: min(both) for rate, both in figures.items() if both}


def in_words(rates: Mapping[str, int]) -> list[str]:
    """For people: ["60 requests a minute", "1 call at once"]."""
    return [f"{rates[rate]:,} {_WORDS[rate][rates[rate] != 1]}" for rate in RATES if rate in rates]
