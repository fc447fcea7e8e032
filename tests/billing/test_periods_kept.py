"""Periods, whatever happens: random calls, top-ups, holds, clocks and kills, held against a model that is told nothing.

The model knows what was charged, what was bought, and at which fund operation the authority began a period; from that
alone it says what the ledger must have.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from billing import periods
from billing.keys import unseal
from billing.proof import books_of
from billing.topups import top_up
from tests.support.authority import RuntimeCaller
from tests.support.cast import Workspace
from tests.support.factories import UsageLineFactory, WorkspaceFactory
from tests.support.money import forget_keys
from tests.support.periods import Killed, Steps, killed, periods_of

ALLOWANCE = 100_000_000


@dataclass
class Model:
    """What is true. `pool` are the top-ups that are unspent; below zero where more was given than there was."""

    pool: int = 0
    spent: int = 0
    over: list[int] = field(default_factory=list)
    resets: set[str] = field(default_factory=set)

    def begin_period(self, key: str) -> None:
        if key not in self.resets:
            self.resets.add(key)
            self.over.append(self.spent)
            self.pool -= max(0, self.spent - ALLOWANCE)
            self.spent = 0


class World:
    """One workspace, its calls, and the clock by which it is rolled over."""

    def __init__(self, authority, monkeypatch) -> None:
        self.workspace: Workspace = WorkspaceFactory()  # type: ignore[assignment]  # factory-boy: what it makes
        account = self.workspace.account
        self.app = RuntimeCaller(authority.runtime_url, account.subject_tenant, unseal(account.sealed_key))
        assert account.activated_at
        self.now = account.activated_at
        self.model, self.bought = Model(), 0
        self.held: list[tuple[str, int]] = []  # reservations, and what each holds
        self.steps = Steps(monkeypatch, told=self._told)

    def _told(self, body, answer) -> None:
        """The authority has just begun a period, or has just said again that it did."""
        if body["operation"] == "RESET_SPENT":
            self.model.begin_period(body["idempotency_key"])

    def open(self, amount: int) -> None:
        answer = self.app.reserve(amount)
        if answer.status_code == 200:
            self.held.append((answer.json()["reservation_id"], amount))

    def settle(self, share: int) -> None:
        if not self.held:
            return
        reservation, amount = self.held.pop(0)
        charged = amount * share // 4
        assert self.app.commit(reservation, charged).status_code == 200
        self.model.spent += charged
        with self.workspace.scope():
            UsageLineFactory(hold=uuid.uuid4(), cost=charged, created_at=timezone.now())

    def call(self, amount: int) -> None:
        self.open(amount)
        self.held = self.held[-1:] + self.held[:-1]
        self.settle(4)

    def buy(self, amount: int) -> None:
        self.bought += 1
        top_up(self.workspace.account, amount=amount, key=str(self.bought))
        self.model.pool += amount

    def roll(self, *, months: int = 0, place: int = -1, act: str = "", amount: int = 0) -> None:
        """Let time pass and roll over; at one place on the way something else happens."""
        self.now = periods.months_after(self.now, months)
        acts = {"kill": killed, "call": lambda: self.call(amount), "buy": lambda: self.buy(amount), "roll": self._roll}
        self.steps.begin({place: acts[act]} if act else {})
        with suppress(Killed):
            self._roll()
        self.steps.begin({})

    def _roll(self) -> None:
        assert periods.roll_over(self.workspace.account, now=self.now).problem is None

    def forget(self) -> None:
        forget_keys(self.workspace)

    def check(self) -> None:
        """Nothing is under way in the roller: it has been run to its end."""
        rows = periods_of(self.workspace)
        ledger, model = self.workspace.ledger(), self.model
        owed = sum(-row.correction for row in rows if row.correction and row.corrected_at is None)
        assert ledger["allocated"] - owed == ALLOWANCE + model.pool
        assert owed >= 0  # nothing is left to be credited
        assert ledger["spent"] == model.spent
        assert [row.spent for row in rows] == [*model.over, None]
        assert len(model.resets) == len(rows) - 1
        assert rows[-1].starts_at <= self.now < rows[-1].ends_at
        with self.workspace.scope():
            assert books_of(self.workspace.account, now=self.now).difference == 0


amounts = st.integers(1, 150_000_000)
between = st.one_of(
    st.tuples(st.just("open"), amounts),
    st.tuples(st.just("settle"), st.integers(0, 4)),
    st.tuples(st.just("call"), amounts),
    st.tuples(st.just("buy"), amounts),
)
# 2 is before the reset, 3 after it, 6 and 7 are those of a correction: where money could be made or lost.
ends = st.fixed_dictionaries(
    {
        "months": st.sampled_from([0, 1, 1, 1, 3]),
        "place": st.sampled_from([*range(10), 3, 3, 7, 7]),
        "act": st.sampled_from(["", "kill", "kill", "call", "buy", "roll"]),
        "amount": amounts,
    }
)
turns = st.tuples(st.lists(between, max_size=4), ends, st.booleans())


@pytest.mark.slow
@settings(
    max_examples=8,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # making a failure shorter takes minutes: add Phase.shrink where one is to be read
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(happens=st.lists(turns, min_size=3, max_size=8))
def test_whatever_happens_no_money_is_made_or_lost_and_each_period_begins_once(app, authority, happens):
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(authority, monkeypatch)
        for acts, end, is_late in happens:
            for name, value in acts:
                getattr(world, name)(value)
            world.roll(**end)
            if is_late:
                world.forget()
            world.roll()
            world.check()
        world.roll(months=1)
        world.check()
