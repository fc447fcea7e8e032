"""The authority's admin plane: tenants, keys, budgets, funding. Must not know which authority answers.

Every call is safe to repeat where the protocol lets it be; what is not says so.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from django.conf import settings

from billing.errors import AuthorityMisconfigured, AuthorityUnavailable
from billing.money import UNIT
from billing.subjects import NoCallMeets, can_be_met

logger = logging.getLogger(__name__)

# Unset, a key dies after 90 days; "never" cannot be said.
KEY_LIFETIME = timedelta(days=3_650)
# How often a hold may be extended. The authority's own default is 10, which ends an answer of ten minutes.
EXTENSIONS = 100
LOOKUP = "/v1/admin/budgets/lookup"


class Refused(AuthorityMisconfigured):
    """The admin plane said no. `error` is its code, `http_status` its status."""

    def __init__(self, http_status: int, error: str) -> None:
        self.http_status = http_status
        self.error = error
        super().__init__()


@functools.cache
def _http() -> httpx.Client:
    """One for the process: making one reads the machine's certificates, which costs 16 ms, and each page asks."""
    return httpx.Client(trust_env=False)


# Two processes that read one socket would get each other's answers.
os.register_at_fork(after_in_child=_http.cache_clear)


def call(
    method: str,
    path: str,
    *,
    body: dict[str, Any] | None = None,
    params: dict[str, str] | None = None,
    plane: str | None = None,
) -> Any:
    """One call under the admin key: its JSON, or Refused, or AuthorityUnavailable."""
    timeout = httpx.Timeout(settings.CYCLES_READ_TIMEOUT * 2, connect=settings.CYCLES_CONNECT_TIMEOUT)
    try:
        answer = _http().request(
            method,
            f"{plane or settings.CYCLES_ADMIN_URL}{path}",
            json=body,
            params=params,
            headers={"X-Admin-API-Key": settings.CYCLES_ADMIN_API_KEY},
            timeout=timeout,
        )
        content = answer.json() if answer.content else {}
    except (httpx.HTTPError, ValueError) as exc:
        logger.warning("The authority's admin plane cannot be reached: %s %s: %s", method, path, type(exc).__name__)
        raise AuthorityUnavailable from exc
    if answer.status_code >= 500:
        raise AuthorityUnavailable
    if not answer.is_success:
        raise Refused(answer.status_code, str(content.get("error", "")))
    return content


def ensure_tenant(tenant_id: str) -> None:
    """Makes the tenant or finds it. Its name is its id: a repeat is told from a clash by the name alone."""
    body = {"tenant_id": tenant_id, "name": tenant_id, "max_reservation_extensions": EXTENSIONS}
    found = call("POST", "/v1/admin/tenants", body=body)
    if found.get("status") != "ACTIVE":
        logger.error("The authority's tenant %s is %s", tenant_id, found.get("status"))
        raise AuthorityMisconfigured


def tenant_status(tenant_id: str) -> str:
    """ACTIVE, SUSPENDED or CLOSED."""
    return str(call("GET", f"/v1/admin/tenants/{tenant_id}").get("status"))


def set_tenant_status(tenant_id: str, status: str) -> None:
    """ACTIVE and SUSPENDED lead to each other; CLOSED is for good, and ends its keys, budgets and reservations.

    Safe to repeat. A close that was cut short says 500, which is AuthorityUnavailable here: repeated, it goes on.
    """
    found = call("PATCH", f"/v1/admin/tenants/{tenant_id}", body={"status": status})
    if found.get("status") != status:
        logger.error("The authority's tenant %s is %s and not %s", tenant_id, found.get("status"), status)
        raise AuthorityMisconfigured


def create_key(tenant_id: str, *, name: str) -> tuple[str, str]:
    """(key id, secret). Not safe to repeat: each call makes a new key."""
    expires = (datetime.now(UTC) + KEY_LIFETIME).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = call("POST", "/v1/admin/api-keys", body={"tenant_id": tenant_id, "name": name, "expires_at": expires})
    return made["key_id"], made["key_secret"]


def active_key_ids(tenant_id: str, *, name: str) -> list[str]:
    page = call("GET", "/v1/admin/api-keys", params={"tenant_id": tenant_id, "status": "ACTIVE", "limit": "100"})
    return [key["key_id"] for key in page["keys"] if key.get("name") == name]


def revoke_key(key_id: str) -> None:
    """Revokes it; one that is revoked already is fine."""
    try:
        call("DELETE", f"/v1/admin/api-keys/{key_id}")
    except Refused as exc:
        if exc.http_status not in (404, 409):
            raise


def ensure_budget(tenant_id: str, scope: str, *, allocated: int, overdraft_limit: int) -> None:
    """Makes the scope's ledger in USD microcents, or leaves the one that is there as it is.

    Raises NoCallMeets for a scope that no call of ours is charged to.
    """
    if not can_be_met(scope):
        raise NoCallMeets(scope)
    body = {
        "tenant_id": tenant_id,
        "scope": scope,
        "unit": UNIT,
        "allocated": _amount(allocated),
        "overdraft_limit": _amount(overdraft_limit),
    }
    try:
        call("POST", "/v1/admin/budgets", body=body)
    except Refused as exc:
        if exc.error != "DUPLICATE_RESOURCE":
            raise
        call("GET", LOOKUP, params={"scope": scope, "unit": UNIT})


def lookup(scope: str) -> Any | None:
    """The scope's ledger in USD microcents, as it is answered; None where there is none."""
    try:
        return call("GET", LOOKUP, params={"scope": scope, "unit": UNIT})
    except Refused as exc:
        if exc.error != "BUDGET_NOT_FOUND":
            raise
        return None


def budgets(tenant_id: str, *, below: str = "") -> list[Any]:
    """Every ledger of the tenant, in every unit and state, ordered by scope; or only those whose path begins so."""
    # The default order is by utilization, which moves while pages are read.
    params = {"tenant_id": tenant_id, "sort_by": "scope", "sort_dir": "asc", "limit": "100"}
    if below:
        params["scope_prefix"] = below
    found: list[Any] = []
    while True:
        page = call("GET", "/v1/admin/budgets", params=params)
        found += page["ledgers"]
        if not page.get("next_cursor"):
            return found
        params["cursor"] = page["next_cursor"]


def reservations(tenant_id: str) -> Iterator[dict[str, Any]]:
    """Every reservation that the authority still knows of, oldest first, with what its commit said of itself.

    The runtime plane's one list for operators. It goes through a real authority's whole store: on no call's path.
    """
    params = {"tenant": tenant_id, "sort_by": "created_at_ms", "sort_dir": "asc", "limit": "200"}
    params["include"] = "committed_metadata"
    while True:
        page = call("GET", "/v1/reservations", params=params, plane=settings.CYCLES_BASE_URL)
        yield from page["reservations"]
        if not page.get("next_cursor"):
            return
        params["cursor"] = page["next_cursor"]


# --- funding --------------------------------------------------------------------------------------------------------

# What a limit that was taken away has: no authority deletes a ledger. Far above any allowance, so that the tenant's own
# ledger is what binds, and half of what a real authority still adds up exactly (it reckons in doubles).
NO_LIMIT = 2**52

EVENT_OF = {"CREDIT": "budget.funded", "DEBIT": "budget.debited", "RESET_SPENT": "budget.reset_spent"}


@dataclass(frozen=True, slots=True)
class Funded:
    """What a fund operation found at the ledger, and what it left there."""

    previous_allocated: int
    previous_spent: int
    new_allocated: int
    new_spent: int


def fund(
    tenant_id: str, scope: str, operation: str, *, amount: int, key: str, reason: str, spent: int | None = None
) -> Funded:
    """Moves the scope's ledger. The authority remembers a key for a day; past that a repeat would count again.

    RESET changes what is allocated and nothing else, so it lowers below what is spent, too; RESET_SPENT begins anew, at
    `spent`.
    """
    body = {"operation": operation, "amount": _amount(amount), "idempotency_key": key, "reason": reason}
    if spent is not None:
        body["spent"] = _amount(spent)
    params = {"tenant_id": tenant_id, "scope": scope, "unit": UNIT}
    answer = call("POST", "/v1/admin/budgets/fund", body=body, params=params)
    try:
        return Funded(**{name: int(answer[name]["amount"]) for name in Funded.__slots__})
    except (KeyError, TypeError) as exc:
        logger.error("The authority's admin plane answers something that is no funding: %s", operation)
        raise AuthorityUnavailable from exc


def fund_once(
    tenant_id: str, scope: str, operation: str, *, amount: int, key: str, reason: str, asked_since: datetime | None
) -> Funded:
    """The same, applied once however late it is repeated.

    `asked_since` is when it may have been asked for the first time, None where this is the first time. A repeat looks
    at the trail first, for the authority may have forgotten the key. `reason` must be this operation's own.
    """
    if asked_since is not None:
        for event in funding_events(tenant_id, scope, operation, since=asked_since):
            if event.reason == reason:
                return event.funded
    return fund(tenant_id, scope, operation, amount=amount, key=key, reason=reason)


@dataclass(frozen=True, slots=True)
class FundingEvent:
    """One fund operation, as the authority's trail of events tells it."""

    at: str
    reason: str
    funded: Funded


def funding_events(tenant_id: str, scope: str, operation: str, *, since: datetime) -> list[FundingEvent]:
    """What was done to the scope's ledger, oldest first, as far back as the authority keeps its events (90 days).

    A repeated call tells of itself once more, with the figures of the first: the oldest of a reason is the real one.
    """
    params = {"tenant_id": tenant_id, "event_type": EVENT_OF[operation], "scope": scope, "limit": "100"}
    # The two clocks may differ.
    params["from"] = (since - timedelta(days=1)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    found: list[FundingEvent] = []
    while True:
        page = call("GET", "/v1/admin/events", params=params)
        found += [_told(event) for event in page["events"] if event["data"]["unit"] == UNIT]
        if not page.get("next_cursor"):
            return found[::-1]
        params["cursor"] = page["next_cursor"]


def _told(event: dict[str, Any]) -> FundingEvent:
    data = event["data"]
    figures = {
        f"{state}_{name}": int(data[f"{state}_state"][name])
        for state in ("previous", "new")
        for name in ("allocated", "spent")
    }
    return FundingEvent(event["timestamp"], data.get("reason") or "", Funded(**figures))


def _amount(amount: int) -> dict[str, Any]:
    return {"unit": UNIT, "amount": amount}
