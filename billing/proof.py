"""Reads for the budget page: this workspace's own book of what it paid, and how full its budget is."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Sum

from billing.ledgers import Ledger
from billing.usage.models import UsageLine


@dataclass(frozen=True, slots=True)
class Bar:
    """Whole percents of the allowance, for the eye: rounded up, for what is little is not nothing."""

    spent_pct: int
    reserved_pct: int


def bar_of(figures: Ledger | None) -> Bar | None:
    if figures is None or figures.allocated <= 0:
        return None
    spent = min(100, -(-figures.spent * 100 // figures.allocated))
    held = min(100 - spent, -(-figures.reserved * 100 // figures.allocated))
    return Bar(spent_pct=spent, reserved_pct=held)


def local_total() -> int:
    """Microcents that the customer was charged by all settled lines of the current tenant.

    Without `overrun`: what a model reported above its hold is the operator's loss and in nobody's ledger.
    """
    return UsageLine.objects.aggregate(total=Sum("cost"))["total"] or 0
