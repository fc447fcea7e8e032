"""Budgets at the edge: refusals become answers, and marked views are asked about before they work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from django.http import HttpRequest, HttpResponse, HttpResponseBase

from billing.allowance import waits
from billing.client import AuthorityRefusal, account_of, is_of_the_house, translate
from billing.errors import BudgetError, OnHold, of_the_house
from billing.ledgers import REFUSALS, denied, is_on_hold
from billing.models import Account
from billing.preflight import decide
from billing.subjects import scopes_of
from tenants.http import error_response
from tenants.middleware import as_api_error
from tenants.resolve import Asker
from tenants.users.actions import mark_of
from tenants.users.auth import caller

Needs = Callable[[HttpRequest], int | None]
View = TypeVar("View", bound=Callable[..., Any])
GetResponse = Callable[[HttpRequest], HttpResponseBase]


class BudgetErrorMiddleware:
    """A refusal that a plain `@cycles` function raised becomes the same answer as ours."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if not isinstance(exception, AuthorityRefusal):
            return None
        return error_response(request, _meaning_of(exception, _account(request)))


def _meaning_of(refused: AuthorityRefusal, account: Account | None) -> BudgetError:
    """Which levels its subject named is not known here, so the figures are the tenant's own."""
    if is_of_the_house(refused):
        return of_the_house(translate(refused))
    code = refused.error_code or refused.reason_code or ""
    subject_tenant = account.subject_tenant if account else None
    if code in REFUSALS and account is not None:
        return denied(code, {"tenant": subject_tenant}, needed=None, waits=waits(account))
    if refused.status == 401 and subject_tenant is not None and is_on_hold(subject_tenant):
        return OnHold(scopes_of({"tenant": subject_tenant})[0])
    return translate(refused, subject_tenant=subject_tenant)


def _account(request: HttpRequest) -> Account | None:
    tenant = getattr(request, "tenant", None)
    try:
        return account_of(tenant) if tenant else None
    except BudgetError:
        return None


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a marked view will ask money for. `needs` reads it off the request: microcents, or None not to ask."""

    app: str
    action_kind: str
    action_name: str
    needs: Needs


def preflighted(*, app: str, action_kind: str, action_name: str, needs: Needs) -> Callable[[View], View]:
    """Marks a view, or an operation of ninja below its `@router.post`, for PreflightMiddleware."""

    def mark(view: View) -> View:
        view.preflight = Preflight(app, action_kind, action_name, needs)  # type: ignore[attr-defined]
        return view

    return mark


class PreflightMiddleware:
    """Asks `decide()` before a marked view does its work; fails closed.

    On for views that work before they reserve (/api/summarize/ prepares its text), so that an empty budget costs
    nothing. Off where a view reserves at once: it would be a second round trip that proves nothing, for a decide
    holds no money, and only the reserve is the guard. It asks for what the view will reserve, so that it refuses
    nothing that the budget covers; a request that the view will refuse for itself is not asked about.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponseBase | None:
        marked: Preflight | None = mark_of(view, request.method, "preflight")
        tenant = getattr(request, "tenant", None)
        if marked is None or tenant is None:
            return None
        try:
            # First who asks: a stranger must not learn how another's budget stands.
            caller(request)  # type: ignore[arg-type]
            asker: Asker = request.asker  # type: ignore[attr-defined]
            needed = marked.needs(request)
            if needed is None:
                return None
            decide(
                tenant,
                user_id=asker.user_id,
                key_id=asker.spends_as,
                app=marked.app,
                action_kind=marked.action_kind,
                action_name=marked.action_name,
                estimate=needed,
            )
        except Exception as exc:  # what is raised here, no middleware's process_exception gets to see
            error = as_api_error(exc)
            if error is None:
                raise
            return error_response(request, error)
        return None
