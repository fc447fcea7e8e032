"""The one reader of the authority's ledgers: figures for pages, and what a refusal says.

Asks the admin plane's look-up, one scope at a time: the balances and the list of reservations go through a real
authority's whole store, so they are on no call's and no page's path. Unknown is None, never zero. Must not decide
whether a call is made: the authority does, and its refusal carries neither a scope nor figures.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import django.db
from django.utils import timezone

from billing import admin_client
from billing.client import NOT_ACTIVE, account_of, account_row
from billing.errors import AuthorityUnavailable, BudgetDenied, BudgetError, EmailNotConfirmed, OnHold
from billing.models import Account
from billing.money import UNIT
from billing.subjects import can_be_met, name_of, scopes_of, seat_of
from tenants.models import Tenant

logger = logging.getLogger(__name__)

Get = Callable[[str, dict[str, str]], Awaitable[tuple[int, Any]]]
# How many tokens of output an amount buys, after the call's input.
Affordable = Callable[[int], int]

AMOUNTS = ("allocated", "spent", "reserved", "remaining", "debt")
# The authority's words for "no", by what they become: 402, and 403.
DENIED = frozenset({"BUDGET_EXCEEDED", "OVERDRAFT_LIMIT_EXCEEDED", "DEBT_OUTSTANDING"})
ON_HOLD = frozenset({"BUDGET_FROZEN", "BUDGET_CLOSED", "TENANT_CLOSED", "TENANT_SUSPENDED"})
REFUSALS = DENIED | ON_HOLD


@dataclass(frozen=True, slots=True)
class Ledger:
    """What one scope may spend. `remaining` may be negative, the others never are."""

    scope: str
    unit: str
    status: str
    allocated: int
    spent: int
    reserved: int
    remaining: int
    debt: int
    is_over_limit: bool

    def as_budget(self) -> dict[str, Any]:
        """The `budget` of an API answer."""
        return {
            "scope": self.scope,
            "allocated": self.allocated,
            "spent": self.spent,
            "reserved": self.reserved,
            "remaining": self.remaining,
            "unit": self.unit,
        }

    @property
    def name(self) -> str:
        return name_of(self.scope)

    @property
    def segment(self) -> str:
        """The last part of its path, such as app:chat."""
        return self.scope.rpartition("/")[2]

    @property
    def is_open(self) -> bool:
        """Whether it pays for anything at all; what is over its limit refuses even a call for nothing."""
        return self.status == "ACTIVE" and not self.is_over_limit

    @property
    def is_limit(self) -> bool:
        """Whether it limits anything: one whose limit was taken away is left with a figure that never binds."""
        return self.allocated < admin_client.NO_LIMIT

    def covers(self, needed: int) -> bool:
        return self.is_open and self.remaining >= needed

    def could_cover(self, needed: int) -> bool:
        """Once the calls under way have given back what they hold."""
        return self.is_open and self.remaining + self.reserved >= needed


def parse(body: Any) -> Ledger | None:
    """A ledger as the admin plane answers it; None for anything else."""
    try:
        amounts = {name: body[name]["amount"] for name in AMOUNTS}
        scope, unit, status = body["scope"], body["unit"], body["status"]
    except (KeyError, TypeError):
        return None
    if not all(type(amount) is int for amount in amounts.values()):
        return None
    return Ledger(scope=scope, unit=unit, status=status, is_over_limit=body.get("is_over_limit") is True, **amounts)


# --- reading --------------------------------------------------------------------------------------------------------


def ledgers_of(scopes: Iterable[str]) -> list[Ledger]:
    """The ledgers that these scopes have, in their order. Raises a BudgetError: one that cannot be had may refuse."""
    found = [admin_client.lookup(scope) for scope in scopes]
    return [_read(body) for body in found if body is not None]


async def aledgers_of(scopes: Iterable[str], *, get: Get) -> list[Ledger]:
    """The same on an event loop; `get` asks the admin plane for a path and gives (status, body)."""
    found = []
    for scope in scopes:
        status, body = await get(admin_client.LOOKUP, {"scope": scope, "unit": UNIT})
        if status == 404 and isinstance(body, dict) and body.get("error") == "BUDGET_NOT_FOUND":
            continue
        if status != 200:
            raise AuthorityUnavailable
        found.append(_read(body))
    return found


def _read(body: Any) -> Ledger:
    ledger = parse(body)
    if ledger is None:
        logger.error("The authority's admin plane answers something that is no ledger")
        raise AuthorityUnavailable
    return ledger


def all_ledgers(subject_tenant: str, *, below: str = "") -> list[Ledger]:
    """Every ledger of a tenant, in every unit and state, root first; or only those whose path begins with `below`."""
    return [_read(body) for body in admin_client.budgets(subject_tenant, below=below)]


def unmeetable(ledgers: Iterable[Ledger]) -> list[Ledger]:
    """Those that limit nothing, for no call of ours names their scope or is counted in their unit."""
    return [ledger for ledger in ledgers if ledger.unit != UNIT or not can_be_met(ledger.scope)]


def ensure_ledger(account: Account, subject: Mapping[str, Any], allocated: int) -> Ledger:
    """The ledger of a subject's last scope, made with `allocated` microcents where there is none yet.

    Raises NoCallMeets. A conversation's calls name their conversation only once it is known to have a limit: whoever
    makes one for `workflow=` says so on the conversation afterwards.
    """
    scope = scopes_of(subject)[-1]
    admin_client.ensure_budget(account.subject_tenant, scope, allocated=allocated, overdraft_limit=0)
    (ledger,) = ledgers_of([scope])
    return ledger


# --- what a refusal says --------------------------------------------------------------------------------------------


def denied(
    code: str,
    subject: Mapping[str, Any],
    *,
    needed: int | None,
    affordable: Affordable | None = None,
    waits: bool = False,
) -> BudgetError:
    """The error for a refusal of `subject`, with the figures of the scope that refuses as they stand now."""
    try:
        found = ledgers_of(scopes_of(subject))
    except BudgetError:
        found = None
    return refusal(code, found, needed=needed, affordable=affordable, waits=waits)


async def adenied(
    code: str, subject: Mapping[str, Any], *, needed: int | None, get: Get, affordable: Affordable | None = None
) -> BudgetError:
    """The same on an event loop."""
    try:
        found = await aledgers_of(scopes_of(subject), get=get)
    except BudgetError:
        found = None
    return refusal(code, found, needed=needed, affordable=affordable)


def refusal(
    code: str,
    ledgers: list[Ledger] | None,
    *,
    needed: int | None,
    affordable: Affordable | None = None,
    fits_once_free: bool = False,
    waits: bool = False,
) -> BudgetError:
    """What one of REFUSALS means, by the ledgers of the call's scopes, root first; None where they cannot be had.
    `fits_once_free`: what calls under way hold would pay for a shorter answer, if not for all of it.
    `waits`: the tenant's allowance is not granted yet.

    The ledgers were read after the refusal and may have moved: the code says whether the call is on hold or over a
    limit, they say where, and what is left there. `needed` is None where the call's estimate is not known.
    """
    if code in ON_HOLD:
        return OnHold(_held_scope(code, ledgers or []))
    if not ledgers:
        # The code by itself: over the limit is said; else only that it does not fit, which is true of each reason.
        reason = "does_not_fit" if code == "BUDGET_EXCEEDED" else "over_limit"
        budget = dict.fromkeys(("scope", "allocated", "spent", "reserved", "remaining", "affordable_max_tokens"))
        return BudgetDenied(reason=reason, budget={**budget, "needed": needed, "unit": UNIT})
    refusing = min(ledgers, key=lambda one: one.remaining) if fits_once_free else _refusing(ledgers, needed or 0)
    if refusing.status != "ACTIVE":
        return OnHold(refusing.scope)
    left = room_in(ledgers)
    budget = {
        **refusing.as_budget(),
        "needed": needed,
        # What the whole call can have: another scope may have less than the one that refuses.
        "affordable_max_tokens": affordable(left) if affordable else None,
    }
    over = code != "BUDGET_EXCEEDED" or refusing.is_over_limit
    reason = "over_limit" if over else "held_by_others" if fits_once_free else _reason(refusing, needed)
    if waits and reason == "exhausted" and "/" not in refusing.scope:
        return EmailNotConfirmed(budget=budget)
    denied = BudgetDenied(reason=reason, budget=budget)
    denied.room = left
    return denied


def room_in(ledgers: Iterable[Ledger]) -> int:
    """Microcents that a call under all of these ledgers could still hold."""
    return min((max(ledger.remaining, 0) if ledger.is_open else 0 for ledger in ledgers), default=0)


def worth_waiting_for(ledgers: list[Ledger] | None, *, needed: int) -> str | None:
    """The scope whose held money the call could be paid from; None where waiting cannot help, or nothing is known."""
    if not ledgers or not all(ledger.could_cover(needed) for ledger in ledgers):
        return None
    return _refusing(ledgers, needed).scope


def _held_scope(code: str, ledgers: list[Ledger]) -> str | None:
    """The first that is frozen or closed; the tenant's root where the tenant itself is."""
    if code.startswith("TENANT_"):
        return ledgers[0].scope.partition("/")[0] if ledgers else None
    return next((ledger.scope for ledger in ledgers if ledger.status != "ACTIVE"), None)


def _refusing(ledgers: list[Ledger], needed: int) -> Ledger:
    """The first from the root that no waiting changes; else the first that is only short by what others hold.

    That order, for "held by others" promises that waiting helps. Where none refuses any more, the one with least left:
    what it lacked was given back meanwhile.
    """
    for refuses in (lambda one: not one.could_cover(needed), lambda one: not one.covers(needed)):
        if found := next(filter(refuses, ledgers), None):
            return found
    return min(ledgers, key=lambda one: one.remaining)


def _reason(ledger: Ledger, needed: int | None) -> str:
    once_released = ledger.remaining + ledger.reserved
    if needed is not None and once_released >= needed:
        return "held_by_others"
    return "does_not_fit" if once_released > 0 else "exhausted"


def is_on_hold(subject_tenant: str) -> bool:
    """Whether the tenant itself is suspended or closed. False also where nobody says.

    For after a 401: the key of a closed tenant reads as one that we lost. Its ledgers say nothing of a suspension.
    """
    try:
        return admin_client.tenant_status(subject_tenant) in NOT_ACTIVE
    except BudgetError:
        return False


# --- figures for pages ----------------------------------------------------------------------------------------------


def figures_for(tenant: Tenant) -> Ledger | None:
    """The tenant's own ledger; None where it cannot be had just now. A page must not fail for its figures."""
    try:
        account = account_row(tenant)
        return next(iter(ledgers_of([account.scope])), None) if account else None
    except (BudgetError, django.db.Error):
        return None


def limits_of(subject_tenant: str, *, user_id: int) -> list[Ledger] | None:
    """What bounds one member below the tenant; None where it cannot be had just now."""
    seat = scopes_of({"tenant": subject_tenant, "workspace": seat_of(user_id)})[-1]
    try:
        found = all_ledgers(subject_tenant, below=seat)
    except BudgetError:
        return None
    # What begins like user-1 may be user-12's.
    mine = [one for one in found if one.unit == UNIT and (one.scope == seat or one.scope.startswith(f"{seat}/"))]
    return [one for one in mine if one.is_limit]


def balances_for(tenant: Tenant) -> dict[str, Any]:
    """Every ledger of the tenant: the body of GET /api/budget/. Raises a BudgetError where they cannot be had."""
    account = account_of(tenant)
    # The admin plane reads a suspended tenant's ledgers as well, but nothing can be paid from them.
    if admin_client.tenant_status(account.subject_tenant) != "ACTIVE":
        raise OnHold(account.scope)
    return {
        "tenant": tenant.slug,
        "subject_tenant": account.subject_tenant,
        "balances": [_row(ledger) for ledger in all_ledgers(account.subject_tenant) if ledger.is_limit],
        "as_of": timezone.now().isoformat().replace("+00:00", "Z"),
    }


def _row(ledger: Ledger) -> dict[str, Any]:
    amounts = {name: getattr(ledger, name) for name in AMOUNTS}
    return {"scope": ledger.segment, "scope_path": ledger.scope, "unit": ledger.unit, **amounts}
