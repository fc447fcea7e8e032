"""Short ways for tests of periods: let time pass, see what the authority was asked for, stop a roll-over anywhere."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.db.models import F

from billing import admin_client
from billing.models import Account, BudgetPeriod
from billing.periods import months_after
from tests.support.cast import Workspace


def age(workspace: Workspace, **past: float) -> None:
    """As if the workspace had signed up so much earlier."""
    account = workspace.account
    Account.objects.filter(pk=account.pk).update(activated_at=F("activated_at") - timedelta(**past))
    account.refresh_from_db()
    assert account.activated_at
    for period in periods_of(workspace):
        bounds = [months_after(account.activated_at, period.number + n) for n in (0, 1)]
        BudgetPeriod.objects.filter(pk=period.pk).update(starts_at=bounds[0], ends_at=bounds[1])


def periods_of(workspace: Workspace) -> list[BudgetPeriod]:
    return list(BudgetPeriod.objects.filter(account=workspace.account).order_by("number"))


def resets_of(workspace: Workspace, scope: str = "") -> list[str]:
    """The reasons of the ledger's resets, oldest first. One that was asked for twice is there twice."""
    account = workspace.account
    told = admin_client.funding_events(
        account.subject_tenant, scope or account.scope, "RESET_SPENT", since=account.created_at - timedelta(days=2)
    )
    return [event.reason for event in told]


class Killed(BaseException):
    """The process ends here."""


def killed() -> None:
    raise Killed


class Steps:
    """Acts between the steps of a roll-over: before and after each call of the authority's admin plane, counted from 0.

    At most one row is written between two calls, so that these are all the places where a kill can matter.
    """

    def __init__(self, monkeypatch: Any, *, told: Callable[[Any, Any], object] | None = None) -> None:
        self._call = admin_client.call
        self._told = told  # of each fund operation: how it was asked for, and what was answered
        self.acts: dict[int, Callable[[], object]] = {}
        self.place = 0
        monkeypatch.setattr(admin_client, "call", self._between)

    def begin(self, acts: dict[int, Callable[[], object]]) -> None:
        self.acts, self.place = dict(acts), 0

    def _pass(self) -> None:
        act = self.acts.pop(self.place, None)
        self.place += 1
        if act is not None:
            acts, self.acts = self.acts, {}  # what it does itself is not counted
            place = self.place
            try:
                act()
            finally:
                self.acts, self.place = acts, place

    def _between(self, method: str, path: str, **given: Any) -> Any:
        self._pass()
        answer = self._call(method, path, **given)
        if self._told and path.endswith("/fund"):
            self._told(given["body"], answer)
        self._pass()
        return answer
