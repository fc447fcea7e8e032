"""Billing's errors; tenants.http makes their responses.

ApiError
 └─ BudgetError
     ├─ BudgetDenied             402 budget_exceeded: the authority said no; nothing was reserved or spent
     │   └─ EmailNotConfirmed    the same, `exhausted`, with `confirm_email`: the allowance waits for that
     ├─ OutsideItsLimit          403 forbidden: a key with a limit, and a call that no ledger of it would count
     ├─ OnHold                   403 account_on_hold: frozen, suspended, closed; with the `scope` that is
     ├─ NotProvisioned           503 tenant_not_ready: the account is still being set up
     ├─ NoTenantBound            503 unavailable: code asked for money with nobody to pay (a defect)
     ├─ HouseError               503 unavailable: the house was to pay; people are not told so, operators read `str()`
     │   ├─ NoHouseAccount       its variables are not set, or name a customer
     │   ├─ HouseDenied          its budget said no: a BudgetDenied, with `reason` and `budget` for the operator
     │   └─ HouseOnHold          it is frozen, suspended or closed: an OnHold
     ├─ RateLimited              429 rate_limited: a tenants.http.RateLimited
     │   ├─ TooManyCalls         429 rate_limited, with `limit` and `in_use`: calls under way in this workspace
     │   └─ KeyIsFull            429 rate_limited, with `limit` and `allowed`: what the key may ask for
     ├─ AuthorityUnavailable     503 authority_unavailable: not reached, or its answer is no answer
     └─ AuthorityMisconfigured   503 authority_unavailable: our key, our budget or our unit is wrong (alert)
 ├─ SlugTaken                    409 slug_taken, with `login_url`; the same whoever asks and whatever is there
 ├─ TrialsExhausted              429 rate_limited: a tenants.http.RateLimited
 ├─ IdempotencyConflict          409 idempotency_conflict: the key was used for another body
 ├─ IdempotencyLost              409 idempotency_lost, with `cost`: the call was made, its answer is gone
 ├─ LimitNotSet                  409 limit_not_set: a seat's or a key's limit cannot be changed just now
 └─ StillUnderWay                503 unavailable: an equal request is under way for longer than this one may wait
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from billing.money import usd
from billing.subjects import MEMBERS_WHO_RAISE, name_of, raised_by
from tenants.http import AccountOnHold, ApiError, Forbidden, TenantNotReady
from tenants.http import RateLimited as TooOften


class BudgetError(ApiError):
    """Whatever keeps a call from being paid for. The model was not called."""


class BudgetDenied(BudgetError):
    """The authority said no. Nothing was reserved and nothing was spent.

    `reason`: exhausted | held_by_others | does_not_fit | over_limit; `budget`: the figures of the scope that refuses,
    each null where they cannot be had. `budget_name`: what a sentence calls that scope. `raised_by`: who can raise it,
    null where the scope is not known.
    """

    status = HTTPStatus.PAYMENT_REQUIRED
    code = "budget_exceeded"
    # Microcents that a smaller call could still hold: of all its scopes, and not of the one that refuses alone.
    room: int | None = None

    def __init__(self, *, reason: str, budget: dict[str, Any]) -> None:
        self.reason = reason
        self.budget = budget
        scope = budget.get("scope")
        who = raised_by(scope)
        messages = MESSAGES_TO_MEMBERS if who == list(MEMBERS_WHO_RAISE) else MESSAGES
        super().__init__(
            # Where the input alone is too dear, or nothing is written, a shorter answer is none that helps.
            _sentence(
                messages[reason], scope, less="a shorter answer" if budget.get("affordable_max_tokens") else "less"
            ),
            # Only what others hold comes free by itself.
            retry_after_ms=2_000 if reason == "held_by_others" else None,
            reason=reason,
            budget=budget,
            budget_name=name_of(scope),
            raised_by=who,
        )


class EmailNotConfirmed(BudgetDenied):
    """There is no allowance yet: it is granted once an owner has confirmed their e-mail address."""

    message = (
        "This workspace has no budget yet: it begins once the owner has confirmed their e-mail address, by the link in "
        "the mail that we sent. The workspace's budget page sends it again. Nothing was spent on this request."
    )

    def __init__(self, *, budget: dict[str, Any]) -> None:
        self.reason, self.budget = "exhausted", budget
        name = name_of(budget.get("scope"))
        ApiError.__init__(self, reason=self.reason, budget=budget, budget_name=name, confirm_email=True)


def _sentence(text: str, scope: str | None, *, less: str = "") -> str:
    """The text about the budget at this scope."""
    sentence = text.format(budget=name_of(scope), less=less)
    return sentence[0].upper() + sentence[1:]


MESSAGES = {
    "exhausted": "{budget} is used up. It goes on with a top-up, or when its next period begins. Nothing was spent on "
    "this request.",
    "held_by_others": "The rest of {budget} is held by calls under way. Nothing was spent on this request; try again "
    "in a moment.",
    "does_not_fit": "This request could cost more than {budget} has left, so nothing was spent on it. Ask for "
    "{less}; a top-up helps, too.",
    "over_limit": "More was used than {budget} had, so nothing is started until it is topped up. Nothing was spent on "
    "this request.",
}
# Where it is a limit that the workspace's own people set.
MESSAGES_TO_MEMBERS = {
    "exhausted": "{budget} is used up. An owner or an admin can raise it. Nothing was spent on this request.",
    "held_by_others": MESSAGES["held_by_others"],
    "does_not_fit": "This request could cost more than {budget} has left, so nothing was spent on it. Ask for "
    "{less}, or ask an owner or an admin to raise it.",
    "over_limit": "More was used than {budget} had, so nothing is started until an owner or an admin raises it. "
    "Nothing was spent on this request.",
}


class OutsideItsLimit(BudgetError, Forbidden):
    """The key has a limit, and the call would be paid for without being counted against it. Nothing was reserved."""

    CONVERSATION = (
        "This API key has a limit of its own, and so has this conversation: a call cannot be counted against both. "
        "Nothing was spent. Ask in another conversation, or with a key without a limit."
    )
    # One that was set before there was this feature.
    FEATURE = (
        "This API key has a limit that was set before it could be for {app}, so nothing was spent. An owner or an "
        "admin can set the same limit again: it is for {app} from then on, too."
    )
    APP = (
        "This API key has a limit, and none of it is for {app}, so nothing was spent. An owner or an admin can set the "
        "key's limit again once {app} was used without it, or take the limit away."
    )


class OnHold(BudgetError, AccountOnHold):
    """`scope` says what is on hold: the whole workspace, or a seat, a feature, a conversation; None: not known."""

    def __init__(self, scope: str | None = None) -> None:
        # Below the tenant only a part of the account is on hold, and the owner of the workspace can help.
        part = scope is not None and "/" in scope
        super().__init__(_sentence(PART_ON_HOLD, scope) if part else None, scope=scope)


PART_ON_HOLD = "{budget} is on hold. Nothing was spent; ask this workspace's owner, or support, what to do."


class NotProvisioned(BudgetError, TenantNotReady):
    pass


class NoTenantBound(BudgetError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"
    message = "No workspace is bound to this call, so there is no budget to pay for it. Nothing was spent."

    why = (
        "Bind one with tenants.context.tenant_scope(tenant): commands, threads and the generator of a streaming "
        "response, which runs after its view, have none. Or let the house pay: guarded(tenant=house_subject_tenant)."
    )

    def __init__(self) -> None:
        super().__init__()
        # For the builder who reads the stack; the sentence above is for whoever asked.
        self.add_note(self.why)


class HouseError(BudgetError):
    """The house was to pay, and does not. It may have been asked for in a workspace's request, whose people are told
    neither that there is a house nor what it has left; `str()` and the log say it to the operator.
    """

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"
    message = "This cannot be done just now. Nothing was spent; try again later."

    def __init__(self, why: str) -> None:
        ApiError.__init__(self)
        self.why = why

    def __str__(self) -> str:
        return self.why


class NoHouseAccount(HouseError):
    IS_A_CUSTOMER = (
        "CYCLES_TENANT is the tenant of a customer's account, who would pay for the house. Give the house a tenant of "
        "its own at the authority, with a key and a budget."
    )

    def __init__(self, why: str | None = None) -> None:
        super().__init__(
            why
            or "The house has no account: set CYCLES_TENANT to its tenant at the authority and CYCLES_API_KEY to a "
            "key of that tenant, or name no tenant where a workspace is to pay."
        )


class HouseDenied(HouseError, BudgetDenied):
    def __init__(self, denied: BudgetDenied) -> None:
        super().__init__(f"The house's budget does not pay for this: {denied.reason}, {denied.budget}.")
        self.reason, self.budget = denied.reason, denied.budget


class HouseOnHold(HouseError, OnHold):
    def __init__(self, on_hold: OnHold) -> None:
        super().__init__(f"The house's account is on hold, at {on_hold.extra['scope'] or 'its tenant'}.")


def of_the_house(error: BudgetError) -> BudgetError:
    """The same error where the house was to pay; those that say nothing of anybody stay as they are."""
    if isinstance(error, HouseError):
        return error
    if isinstance(error, BudgetDenied):
        return HouseDenied(error)
    return HouseOnHold(error) if isinstance(error, OnHold) else error


class RateLimited(BudgetError, TooOften):
    """The same answer, of a call."""

    message = "Too many requests just now. Nothing was spent; try again in a moment."


class TooManyCalls(RateLimited):
    """As many calls of one tenant are under way as a process takes, so that no tenant takes it from the others."""

    def __init__(self, *, limit: int, in_use: int) -> None:
        super().__init__(
            f"This workspace has {in_use} answers under way, and {limit} are allowed at once. Nothing was spent; try "
            "again in a moment.",
            limit=limit,
            in_use=in_use,
        )


class KeyIsFull(RateLimited):
    """The key has asked for all that it may just now. `limit` says of what: requests, tokens or concurrent.

    `wait`: after how many seconds it would fit; None: never, for it is larger than all that the key may use at once.
    """

    def __init__(self, limit: str, *, allowed: int, wait: float | None, headers: Mapping[str, str]) -> None:
        words = LIMITS[limit] if wait is not None else TOO_LARGE
        retry_after_ms = None if wait is None else max(1, math.ceil(wait * 1_000))
        super().__init__(words.format(allowed=allowed), retry_after_ms=retry_after_ms, limit=limit, allowed=allowed)
        self.retry_after_ms = retry_after_ms
        self.headers = dict(headers)
        if retry_after_ms is not None:
            # For clients that wait no whole seconds where less will do.
            self.headers["retry-after-ms"] = str(retry_after_ms)


LIMITS = {
    "requests": "This API key may send {allowed} requests a minute, and has sent them. Nothing was spent; try again "
    "as soon as Retry-After says.",
    "tokens": "This API key may use {allowed} tokens a minute, and this request may need more than are left. Nothing "
    "was spent; try again as soon as Retry-After says, or ask for a shorter answer.",
    "concurrent": "This API key may have {allowed} calls under way at once, and has them. Nothing was spent; try again "
    "when one has ended.",
}
TOO_LARGE = (
    "This request may need more than the {allowed} tokens that this API key may use in a minute, so that waiting would "
    "not help. Nothing was spent; send less, or ask for a shorter answer with max_tokens."
)


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
    message = "This workspace address is taken. Choose another, or log in to it."

    def __init__(self, *, login_url: str) -> None:
        self.login_url = login_url
        super().__init__(login_url=login_url)


class TrialsExhausted(TooOften):
    """The allowances of all trials have reached TRIAL_POOL_USD: the operator's to raise, logged where it is raised."""

    message = (
        "No further trial workspace can be made just now. Try again later, or ask whoever runs this site to make room."
    )
    retry_after_ms = 3_600_000


class IdempotencyConflict(ApiError):
    status = HTTPStatus.CONFLICT
    code = "idempotency_conflict"
    message = (
        "This Idempotency-Key was sent with another body before, and belongs to that for 24 hours. Nothing was spent; "
        "send this body under a new key."
    )


class IdempotencyLost(ApiError):
    """The one call of a key was made, and its answer went with the process that made it. It is not made again.

    `cost` is what was charged for it; null where it is not settled yet, which the same request will learn later.
    """

    status = HTTPStatus.CONFLICT
    code = "idempotency_lost"

    def __init__(self, cost: int | None) -> None:
        charged = "what it cost is being settled" if cost is None else f"${usd(cost)} was charged for it"
        super().__init__(
            f"The answer to this Idempotency-Key was lost when our service was interrupted; {charged}. No model is "
            "called again under this key; send a new one to ask anew.",
            cost=None if cost is None else {"microcents": cost, "usd": usd(cost)},
        )


class LimitNotSet(ApiError):
    status = HTTPStatus.CONFLICT
    code = "limit_not_set"

    ON_HOLD = "This limit is on hold at the budget authority, so it was not changed. Ask support to release it."
    BUSY = "Somebody else is changing this limit just now. Look at what it is then, before you set it again."
    TURNING = "A new period is being opened just now, which may set the old limit once more. Set it again in a minute."


class StillUnderWay(ApiError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"
    message = "The first request under this Idempotency-Key is still under way. Send it again in a moment."
    retry_after_ms = 2_000
