"""What a customer may buy. Pure.

Caps are kept here and not at the authority: no endpoint of a real one can write them.
"""

from __future__ import annotations

from dataclasses import dataclass

from billing.money import MICROCENTS_PER_USD


@dataclass(frozen=True, slots=True)
class Plan:
    """allowance and overdraft in microcents a period; max_tokens is the most one call may ask for.

    `fits`: a call that the budget covers only in part gets a shorter answer; without it, it is refused.
    `by_sign_up`: any stranger may choose it, and pays nothing; all such workspaces together share TRIAL_POOL_USD.
    """

    name: str
    allowance: int
    overdraft: int
    max_tokens: int
    fits: bool = True
    by_sign_up: bool = False


PLANS = {
    plan.name: plan
    for plan in [
        Plan(name="trial", allowance=1 * MICROCENTS_PER_USD, overdraft=0, max_tokens=1_024, by_sign_up=True),
    ]
}
DEFAULT_PLAN = "trial"
# The operator's own budget: no plan of ours caps it, only the authority's ledgers and caps do.
HOUSE = Plan(name="house", allowance=0, overdraft=0, max_tokens=2**31 - 1)


def plans_by_sign_up() -> list[Plan]:
    return [plan for plan in PLANS.values() if plan.by_sign_up]


def plan_of(name: str) -> Plan:
    """A payer's plan. The house's is none that a customer can have."""
    return HOUSE if name == HOUSE.name else PLANS[name]
