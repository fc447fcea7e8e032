"""Reads for the budget page: the authority's book and the workspace's own of one moment, and how full its budget is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Sum

from billing import periods
from billing.ledgers import Ledger, figures_for
from billing.models import Account, BudgetPeriod
from billing.usage.models import UsageLine


@dataclass(frozen=True, slots=True)
class Bar:
    """Whole percents of the allowance, for the eye: rounded up, for what is little is not nothing.

    Where nothing is allocated the bar is full: an empty one would look as if all of the money were left.
    """

    spent_pct: int
    reserved_pct: int


def bar_of(figures: Ledger | None) -> Bar | None:
    if figures is None:
        return None
    if figures.allocated <= 0:
        return Bar(spent_pct=100, reserved_pct=0)
    spent = min(100, -(-figures.spent * 100 // figures.allocated))
    held = min(100 - spent, -(-figures.reserved * 100 // figures.allocated))
    return Bar(spent_pct=spent, reserved_pct=held)


def local_total() -> int:
    """Microcents that the customer was charged by all settled lines of the current tenant.

    Without `overrun`: what a model reported above its hold is the operator's loss and in nobody's ledger.
    """
    return UsageLine.objects.aggregate(total=Sum("cost"))["total"] or 0


@dataclass(frozen=True, slots=True)
class Books:
    """What the authority and this workspace say of one moment. `charged` are the lines of this period.

    The authority has what was spent since its last reset, the lines what was charged ever: less what was spent in the
    closed periods, which is the authority's own word, they are the same. So the sum is exact for a call, too, that is
    committed before a reset and written down after it.
    """

    figures: Ledger | None
    period: BudgetPeriod | None
    has_ended: bool  # the period is over by our clock
    is_turning: bool  # the next one is asked for: whose figures these are is not known
    charged: int

    @property
    def difference(self) -> int | None:
        """None where the two cannot be compared now."""
        if self.figures is None or self.is_turning:
            return None
        return self.figures.spent - self.charged


def books_of(account: Account, *, now: datetime) -> Books:
    """Both books of the current tenant, whose account is given; read once more where a period ended under them."""
    for _ in range(2):
        period = periods.current(account)
        figures = figures_for(account.tenant)
        charged = local_total() - periods.spent_before(account)
        is_turning = periods.is_turning(account)  # after the figures: before them it would miss one that begins here
        if periods.current(account) == period:
            break
    has_ended = period is not None and period.ends_at <= now
    return Books(figures, period, has_ended=has_ended, is_turning=is_turning, charged=charged)
