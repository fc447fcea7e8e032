"""Reads for the budget page and API. One call to the authority; unknown is None, never zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import django.db
from django.db.models import Sum
from django.utils import timezone

from billing.client import account_of, default_client, failure_of
from billing.errors import AuthorityUnavailable, BudgetError
from billing.money import UNIT
from billing.usage.models import UsageLine
from tenants.models import Tenant


@dataclass(frozen=True, slots=True)
class Figures:
    """A ledger, in microcents. `remaining` may be negative, the others never are."""

    scope: str
    allocated: int
    spent: int
    reserved: int
    remaining: int
    debt: int

    def as_budget(self) -> dict[str, Any]:
        """The `budget` of an API answer."""
        return {
            "scope": self.scope,
            "allocated": self.allocated,
            "spent": self.spent,
            "reserved": self.reserved,
            "remaining": self.remaining,
            "unit": UNIT,
        }


@dataclass(frozen=True, slots=True)
class Bar:
    """Whole percents of the allowance, for the eye: rounded up, for what is little is not nothing."""

    spent_pct: int
    reserved_pct: int


def balances_for(tenant: Tenant) -> dict[str, Any]:
    """Every ledger of the tenant: the body of GET /api/budget/. Raises a BudgetError where they cannot be had."""
    account = account_of(tenant)
    response = default_client().get_balances(tenant=account.subject_tenant, limit="200")
    if not response.is_success or not isinstance(response.body, dict):
        raise failure_of(response, subject_tenant=account.subject_tenant)
    try:
        rows = [_row(row) for row in response.body["balances"]]
    except (KeyError, TypeError):
        raise AuthorityUnavailable from None
    return {
        "tenant": tenant.slug,
        "subject_tenant": account.subject_tenant,
        "balances": rows,
        "as_of": timezone.now().isoformat().replace("+00:00", "Z"),
    }


def _row(row: dict[str, Any]) -> dict[str, Any]:
    amounts = {name: row[name]["amount"] for name in ("allocated", "spent", "reserved", "remaining")}
    debt = (row.get("debt") or {}).get("amount", 0)
    return {
        "scope": row["scope"],
        "scope_path": row["scope_path"],
        "unit": row["remaining"]["unit"],
        **amounts,
        "debt": debt,
    }


def figures_for(tenant: Tenant) -> Figures | None:
    """The tenant's own ledger; None where it cannot be had just now. A paid answer must not fail for its figures."""
    try:
        found = balances_for(tenant)
    except (BudgetError, django.db.Error):
        return None
    path = f"tenant:{found['subject_tenant']}"
    for row in found["balances"]:
        if row["scope_path"] == path and row["unit"] == UNIT:
            return Figures(
                scope=path,
                **{name: row[name] for name in ("allocated", "spent", "reserved", "remaining", "debt")},
            )
    return None


def bar_of(figures: Figures | None) -> Bar | None:
    if figures is None or figures.allocated <= 0:
        return None
    spent = min(100, -(-figures.spent * 100 // figures.allocated))
    held = min(100 - spent, -(-figures.reserved * 100 // figures.allocated))
    return Bar(spent_pct=spent, reserved_pct=held)


def local_total() -> int:
    """Microcents of all settled lines of the current tenant."""
    return UsageLine.objects.aggregate(total=Sum("cost"))["total"] or 0
