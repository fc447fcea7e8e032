"""What a customer may buy. Pure.

Caps are kept here and not at the authority: no endpoint of a real one can write them.
"""

from __future__ import annotations

from dataclasses import dataclass

from billing.money import MICROCENTS_PER_USD

LONGEST_NAME = 20  # of the column that keeps an account's


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

    def __post_init__(self) -> None:
        """Said to whoever writes it: later it would be a customer's sign-up that fails, or a month's end."""
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= LONGEST_NAME or not self.name.isprintable():
            raise ValueError(f"Plan {self.name!r}: its name is a printable text of 1 to {LONGEST_NAME} letters.")
        for name in ("allowance", "overdraft", "max_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(
                    f"Plan {self.name!r}: {name} {value!r}: write a whole number, 0 or more. Money is in microcents."
                )


# The operator's own budget: no plan of ours caps it, only the authority's ledgers and caps do.
HOUSE = Plan(name="house", allowance=0, overdraft=0, max_tokens=2**31 - 1)


def by_name(plans: list[Plan]) -> dict[str, Plan]:
    """Refused where one would be taken for another: accounts know their plan by its name alone."""
    names = [plan.name for plan in plans]
    for name in names:
        if name == HOUSE.name or names.count(name) > 1:
            why = "is the house's own" if name == HOUSE.name else "is two plans' here"
            raise ValueError(f"PLANS: the name {name!r} {why}, so that accounts would have another plan: rename it.")
    return {plan.name: plan for plan in plans}


def default_of(plans: dict[str, Plan], name: str) -> str:
    """The plan of a sign-up that names none. Of another than these, a stranger would get what is sold, uncounted."""
    if name not in plans or not plans[name].by_sign_up:
        raise ValueError(
            f"DEFAULT_PLAN is {name!r}: write one of PLANS that says by_sign_up=True, for any stranger gets it. "
            "Where nobody is to sign up by themselves, set TRIAL_POOL_USD=0."
        )
    return name


PLANS = by_name(
    [
        Plan(name="trial", allowance=1 * MICROCENTS_PER_USD, overdraft=0, max_tokens=1_024, by_sign_up=True),
    ]
)
DEFAULT_PLAN = default_of(PLANS, "trial")


def plans_by_sign_up() -> list[Plan]:
    return [plan for plan in PLANS.values() if plan.by_sign_up]


def plan_of(name: str) -> Plan:
    """A payer's plan. The house's is none that a customer can have.

    Raises LookupError where PLANS lacks it: nothing is bought then, for nobody says how much.
    """
    if name == HOUSE.name:
        return HOUSE
    if name not in PLANS:
        raise LookupError(
            f"An account has the plan {name!r}, and PLANS in billing/plans.py lacks it: put it back there for as long "
            "as accounts have it, or give those another (Account.plan)."
        )
    return PLANS[name]
