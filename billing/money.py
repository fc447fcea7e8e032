"""Money: whole microcents in, exact decimal strings out.

Owns how an amount is written for people. Pure: no models, no settings. Must never compute with floats, nor round a
figure that is summed afterwards.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal

MICROCENTS_PER_USD = 100_000_000
UNIT = "USD_MICROCENTS"


def usd(microcents: int) -> str:
    """Exact dollars, 2 to 8 places: 150 → "0.0000015", 100000000 → "1.00"."""
    sign = "-" if microcents < 0 else ""
    whole, fraction = divmod(abs(microcents), MICROCENTS_PER_USD)
    places = f"{fraction:08d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{places}"


def usd_for_the_eye(microcents: int, *, at_most: bool = False) -> str:
    """Dollars as a person scans them: thousands grouped, cents above a dollar, up to 6 places below a cent.

    `at_most`: never less than the amount, for what is said to be the most.
    """
    dollars = Decimal(microcents) / MICROCENTS_PER_USD
    size = abs(dollars)
    places = 2 if size >= 1 or not microcents else 4 if size >= Decimal("0.01") else 6
    rounding = ROUND_CEILING if at_most else ROUND_HALF_EVEN
    return f"{dollars.quantize(Decimal(1).scaleb(-places), rounding=rounding):,}"


def microcents(dollars: str | Decimal) -> int:
    """Exact microcents of a decimal text; ValueError where it is no whole number of them."""
    amount = Decimal(dollars) * MICROCENTS_PER_USD
    if not amount.is_finite() or amount != amount.to_integral_value():
        raise ValueError(f"{dollars} has more than 8 decimals.")
    return int(amount)
