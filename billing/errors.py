"""Billing's errors; tenants.http makes their responses.

ApiError
 └─ BudgetError
     ├─ BudgetDenied             402 budget_exceeded: the authority said no; nothing was reserved or spent
     ├─ OnHold                   403 account_on_hold: frozen, suspended, closed
     ├─ NotProvisioned           503 tenant_not_ready: the account is still being set up
     ├─ NoTenantBound            503 unavailable: code asked for money with nobody to pay (a defect)
     ├─ RateLimited              429 rate_limited
     ├─ AuthorityUnavailable     503 authority_unavailable: not reached, or its answer is no answer
     └─ AuthorityMisconfigured   503 authority_unavailable: our key, our budget or our unit is wrong (alert)
 └─ SlugTaken                    409 slug_taken
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from tenants.http import AccountOnHold, ApiError, TenantNotReady


class BudgetError(ApiError):
    """Whatever keeps a call from being paid for. The model was not called."""


class BudgetDenied(BudgetError):
    """The authority said no. Nothing was reserved and nothing was spent.

    `reason`: exhausted | held_by_others | does_not_fit; `budget`: the figures, each null where they cannot be had.
    """

    status = HTTPStatus.PAYMENT_REQUIRED
    code = "budget_exceeded"

    def __init__(self, *, reason: str, budget: dict[str, Any]) -> None:
        self.reason = reason
        self.budget = budget
        super().__init__(MESSAGES[reason], reason=reason, budget=budget)


MESSAGES = {
    "exhausted": "This workspace's budget is used up. Top it up to go on; nothing was spent on this request.",
    "held_by_others": "The rest of this workspace's budget is held by calls under way. Try again in a moment.",
    "does_not_fit": "This request could cost more than the budget has left. Ask for a shorter answer, or top up.",
}


class OnHold(BudgetError, AccountOnHold):
    pass


class NotProvisioned(BudgetError, TenantNotReady):
    pass


class NoTenantBound(BudgetError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"
    message = "No workspace is bound to this call, so there is no budget to pay for it. Nothing was spent."


class RateLimited(BudgetError):
    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "rate_limited"
    message = "Too many requests just now. Nothing was spent; try again in a moment."
    retry_after_ms = 1_000


class AuthorityUnavailable(BudgetError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "authority_unavailable"
    message = "The budget cannot be checked right now, so nothing was started and nothing was spent. Try again soon."
    retry_after_ms = 2_000


class AuthorityMisconfigured(AuthorityUnavailable):
    """Ours to mend, not the customer's: logged as an error where it is raised."""


class SlugTaken(ApiError):
    status = HTTPStatus.CONFLICT
    code = "slug_taken"
    message = "This workspace name is taken. Choose another."
