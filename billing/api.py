"""The API about money: sign-up on the bare host, balances on a tenant's."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from django.http import HttpRequest
from django.utils import timezone
from ninja import Router, Schema, Status

from billing import ledgers, periods, provisioning, signing_up
from billing.allowance import waits
from billing.forms import SignUpForm
from billing.models import Account
from tenants.api import Body, failures
from tenants.hosts import site_url, url_for
from tenants.http import Invalid, NotFound, TenantRequest
from tenants.limits import address_of
from tenants.models import Tenant
from tenants.roles import Action
from tenants.users.access import needs

router = Router(tags=["Budget"])
public_router = Router(tags=["Sign-up"])


class Budget(Schema):
    """The tenant's own ledger, in whole microcents."""

    scope: str
    allocated: int
    spent: int
    reserved: int
    remaining: int
    unit: str


class Balance(Schema):
    scope: str
    scope_path: str
    unit: str
    allocated: int
    spent: int
    reserved: int
    remaining: int
    debt: int


class Period(Schema):
    """Instants in UTC. The ledgers start anew at `ends_at`."""

    starts_at: str
    ends_at: str


class Balances(Schema):
    """`period` is null where it is not known, as in the moment between two."""

    tenant: str
    subject_tenant: str
    balances: list[Balance]
    period: Period | None
    as_of: str


class Cost(Schema):
    """`usd` is exact, 2 to 8 places."""

    microcents: int
    usd: str


class Active(Schema):
    """`api_key` is given once; null ever after. `confirm_email` is there where nothing can be bought until the owner
    has followed the link in the mail that we sent them.
    """

    tenant: str
    url: str
    status: Literal["active"]
    api_key: str | None
    confirm_email: bool | None = None


class Pending(Schema):
    status: Literal["pending"]
    status_url: str
    confirm_email: bool | None = None


class StillPending(Schema):
    status: Literal["pending"]
    confirm_email: bool | None = None


class SignUpBody(Body):
    name: str
    slug: str
    email: str
    password: str
    plan: str | None = None


@router.get("/budget/", summary="This workspace's ledgers", response={200: Balances, **failures(401, 403, 503)})
@needs(Action.READ_BUDGET)
def budget(request: TenantRequest) -> dict[str, Any]:
    """Allocated, spent, held and remaining, of each ledger, in whole microcents."""
    return _balances(request.tenant)


@router.get("/budget/{slug}/", summary="The same, by name", response={200: Balances, **failures(401, 403, 404, 503)})
@needs(Action.READ_BUDGET)
def budget_of(request: TenantRequest, slug: str) -> dict[str, Any]:
    """Only this workspace's own name; any other, existing or not, is 404."""
    if slug != request.tenant.slug:
        raise NotFound
    return _balances(request.tenant)


def _balances(tenant: Tenant) -> dict[str, Any]:
    balances = ledgers.balances_for(tenant)
    period = periods.running(tenant, now=timezone.now())
    dates = None if period is None else {"starts_at": _iso(period.starts_at), "ends_at": _iso(period.ends_at)}
    return {**balances, "period": dates}


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


@public_router.post(
    "/signup/",
    summary="Make a workspace",
    response={201: Active, 202: Pending, **failures(400, 409, 413, 415, 429, 503)},
    exclude_unset=True,
)
def sign_up(request: HttpRequest, payload: SignUpBody) -> Status[dict[str, Any]]:
    """201 with the workspace and its first API key (shown once), or 202 while it is still being set up.

    A slug that is taken is 409 with the address of its log-in, `login_url`, also for who has asked for it before: the
    202 of the first time has the address that goes on. Too many sign-ups, of one address or of all, and a site that
    has no room for a further trial, are 429; `retry_after_ms` says when to try again.
    """
    address = address_of(request)
    signing_up.knock(address)
    form = SignUpForm(payload.model_dump())
    if not form.is_valid():
        raise Invalid({field: [str(text) for text in texts] for field, texts in form.errors.items()})
    account = signing_up.ask(**form.cleaned_data, mark=signing_up.new_mark(), address=address)
    if not signing_up.wait_until_ready(account):
        url = site_url(f"/api/signup/{provisioning.status_token(account)}/")
        return Status(202, {"status": "pending", "status_url": url, **_confirm_email(account)})
    return Status(201, _active(account))


@public_router.get(
    "/signup/{token}/",
    summary="How far a workspace is",
    response={200: Active | StillPending, **failures(404)},
    exclude_unset=True,
)
def sign_up_status(request: HttpRequest, token: str) -> dict[str, Any]:
    """Only looks. The API key is in one answer only, within 10 minutes of becoming active."""
    account = provisioning.account_for_status(token)
    if account is None:
        raise NotFound
    if account.status == Account.Status.PENDING:
        return {"status": "pending", **_confirm_email(account)}
    return _active(account)


def _active(account: Account) -> dict[str, Any]:
    return {
        "tenant": account.tenant.slug,
        "url": url_for(account.tenant.slug),
        "status": "active",
        "api_key": provisioning.first_key(account),
        **_confirm_email(account),
    }


def _confirm_email(account: Account) -> dict[str, bool]:
    """Said only where it is so. An account that waits for nothing more is not told of it."""
    return {"confirm_email": True} if waits(account) else {}
