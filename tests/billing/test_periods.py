"""Periods: each budget starts anew once a month, with its allowance and what is left of its top-ups."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from django.utils.html import strip_tags

from billing import admin_client, periods
from billing.guard import reserve
from billing.keys import unseal
from billing.models import Account, BudgetPeriod
from billing.tasks import roll_budgets
from billing.topups import top_up
from chat.models import Conversation
from tenants.threads import TenantExecutor
from tests.support.authority import AuthorityProbe, RuntimeCaller, authority_variables
from tests.support.factories import WorkspaceFactory
from tests.support.money import eventually, forget_keys, fund_path, is_settled
from tests.support.periods import Killed, Steps, age, killed, periods_of, resets_of
from tests.support.web import ROOT

pytestmark = pytest.mark.usefixtures("app", "patient")

ALLOWANCE = 100_000_000


@pytest.fixture
def operator(authority):
    probe = AuthorityProbe(authority)
    yield probe
    probe.close()


@pytest.fixture
def runtime(workspace, authority):
    account = workspace.account
    return RuntimeCaller(authority.runtime_url, account.subject_tenant, unseal(account.sealed_key))


def spend(runtime, amount):
    assert runtime.commit(runtime.hold(amount), amount).status_code == 200


def call(workspace, cost, *, estimate=None):
    """A call under way that will have used `cost`."""
    held = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=estimate or cost)
    held.dispatch(lambda: None)
    held.record(cost=cost)
    return held


def roll(workspace):
    rolled = periods.roll_over(workspace.account, now=timezone.now())
    assert rolled.problem is None
    return rolled.opened


def figures(workspace):
    ledger = workspace.ledger()
    return ledger["allocated"], ledger["spent"], ledger["reserved"]


# --- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("months", "day"),
    [
        (0, "2027-01-31"),
        (1, "2027-02-28"),
        (2, "2027-03-31"),
        (11, "2027-12-31"),
        (12, "2028-01-31"),
        (13, "2028-02-29"),
    ],
)
def test_a_month_ends_on_the_day_of_the_sign_up_or_on_its_last(months, day):
    anchor = datetime(2027, 1, 31, 23, 59, 59, 7, tzinfo=UTC)
    assert periods.months_after(anchor, months) == datetime.fromisoformat(f"{day}T23:59:59.000007+00:00")


def test_the_first_period_begins_with_the_account_and_nothing_is_asked_before_it_ends(workspace):
    (first,) = periods_of(workspace)
    assert first.starts_at == workspace.account.activated_at
    assert (first.number, first.allowance, first.closed_at) == (0, ALLOWANCE, None)
    age(workspace, days=27)
    assert workspace.account not in periods.due(timezone.now())
    assert (roll(workspace), resets_of(workspace)) == ([], [])
    pending = WorkspaceFactory(provisioned=False)
    assert periods_of(pending) == []
    assert pending.account not in periods.due(timezone.now())


# --- what it has then -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topped_up", "spent", "carried"),
    [
        (0, 30_000_000, 0),
        (50_000_000, 120_000_000, 30_000_000),
    ],
)
def test_it_starts_anew_with_its_allowance_and_its_unspent_top_ups(
    workspace, globex, runtime, topped_up, spent, carried
):
    eventually(lambda: is_settled(globex))  # of another test's calls
    neighbours = globex.ledger(), periods_of(globex)
    if topped_up:
        top_up(workspace.account, amount=topped_up, key="k")
    if spent:
        spend(runtime, spent)
    age(workspace, days=32)
    (opened,) = roll(workspace)
    assert figures(workspace) == (ALLOWANCE + carried, 0, 0)
    first, second = periods_of(workspace)
    assert (first.spent, second.number, second.carried) == (spent, 1, carried)
    assert (second.starts_at, second.pk) == (first.ends_at, opened.pk)
    assert roll(workspace) == []
    assert len(resets_of(workspace)) == 1
    assert (globex.ledger(), periods_of(globex)) == neighbours


def test_after_three_months_away_each_period_has_one_reset_of_its_own(workspace, runtime):
    spend(runtime, 70_000_000)
    age(workspace, days=95)
    opened = roll(workspace)
    assert [period.number for period in opened] == [1, 2, 3]
    assert [period.spent for period in periods_of(workspace)] == [70_000_000, 0, 0, None]
    assert len(set(resets_of(workspace))) == len(resets_of(workspace)) == 3
    assert periods_of(workspace)[3].ends_at > timezone.now()


def test_an_account_from_before_periods_gets_those_it_missed(workspace, runtime):
    BudgetPeriod.objects.filter(account=workspace.account).delete()
    spend(runtime, 1_000)
    age(workspace, days=64)
    assert workspace.account in periods.due(timezone.now())
    assert [period.number for period in roll(workspace)] == [1, 2]
    assert [period.spent for period in periods_of(workspace)] == [1_000, 0, None]
    assert periods_of(workspace)[2].ends_at == periods.months_after(workspace.account.activated_at, 3)


# --- with calls under way -------------------------------------------------------------------------------------------


def test_a_call_belongs_to_the_period_in_which_it_is_committed(workspace):
    call(workspace, 10_000).settle()
    held = call(workspace, 3_000, estimate=5_000)
    assert eventually(lambda: workspace.ledger()["spent"] == 10_000)
    age(workspace, days=32)
    roll(workspace)
    assert figures(workspace) == (ALLOWANCE, 0, 5_000)
    held.settle()
    assert eventually(lambda: is_settled(workspace))
    assert figures(workspace) == (ALLOWANCE, 3_000, 0)
    assert periods_of(workspace)[0].spent == 10_000


def test_top_up_money_that_is_held_over_the_end_is_still_there(workspace, runtime):
    top_up(workspace.account, amount=50_000_000, key="k")
    spend(runtime, 90_000_000)
    hold = runtime.hold(40_000_000)
    age(workspace, days=32)
    roll(workspace)
    assert figures(workspace) == (150_000_000, 0, 40_000_000)
    assert periods_of(workspace)[1].asked == 120_000_000  # what was held counted as spent in the look before
    runtime.release(hold)
    assert workspace.ledger()["remaining"] == 150_000_000


def test_what_is_spent_between_the_look_and_the_reset_is_taken_back(workspace, runtime, monkeypatch):
    top_up(workspace.account, amount=50_000_000, key="k")
    steps = Steps(monkeypatch)
    age(workspace, days=32)
    steps.begin({2: lambda: spend(runtime, 140_000_000)})
    roll(workspace)
    assert periods_of(workspace)[1].asked == 150_000_000
    assert figures(workspace) == (110_000_000, 0, 0)


def test_what_cannot_be_taken_back_stays_owed_until_it_can(workspace, runtime, monkeypatch):
    top_up(workspace.account, amount=50_000_000, key="k")
    steps = Steps(monkeypatch)
    age(workspace, days=32)
    # All is spent before the reset, and all that the reset gave before the debit.
    steps.begin({2: lambda: spend(runtime, 150_000_000), 4: lambda: spend(runtime, 150_000_000)})
    roll(workspace)
    assert figures(workspace) == (150_000_000, 150_000_000, 0)
    assert workspace.account in periods.due(timezone.now())
    age(workspace, days=31)
    roll(workspace)
    assert figures(workspace) == (ALLOWANCE - 50_000_000, 0, 0)
    assert workspace.account not in periods.due(timezone.now())


# --- killed, twice, late --------------------------------------------------------------------------------------------


def test_killed_at_any_step_it_goes_on_and_resets_once(workspace, runtime, operator, monkeypatch):
    """One month for each place where it can be killed. The trail alone knows what was done: the keys are forgotten."""
    seat = f"{workspace.account.scope}/workspace:user-1"
    operator.create_budget(workspace.account.subject_tenant, 10_000_000, scope=seat)
    steps = Steps(monkeypatch)
    for place in range(100):
        top_up(workspace.account, amount=10_000_000, key=f"month-{place}")
        held = runtime.hold(ALLOWANCE + 4_000_000)
        spend(RuntimeSeat(runtime), 2_000_000)
        age(workspace, days=31)
        steps.begin({place: killed})
        with suppress(Killed):
            periods.roll_over(workspace.account, now=timezone.now())
            break
        forget_keys(workspace)
        roll(workspace)
        expected = ALLOWANCE + 10_000_000 * (place + 1)
        assert figures(workspace) == (expected, 0, ALLOWANCE + 4_000_000), place
        assert operator.figures(seat)["spent"] == 0, place
        assert periods_of(workspace)[place].spent == 2_000_000, place
        assert len(set(resets_of(workspace))) == place + 1
        runtime.release(held)
    assert place > 10


class RuntimeSeat:
    """Calls of the seat user-1."""

    def __init__(self, runtime):
        self._runtime = runtime
        self.commit = runtime.commit

    def hold(self, amount):
        return self._runtime.hold(amount, workspace="user-1")


@pytest.mark.on_standin
def test_two_schedulers_at_once_reset_each_period_once(workspace, runtime):
    top_up(workspace.account, amount=50_000_000, key="k")
    spend(runtime, 120_000_000)
    age(workspace, days=95)

    def run(_):
        return periods.roll_over(workspace.account, now=timezone.now()).problem

    with TenantExecutor(4) as pool:
        assert set(pool.map(run, range(8))) == {None}
    assert len(set(resets_of(workspace))) == 3
    assert [period.spent for period in periods_of(workspace)] == [120_000_000, 0, 0, None]
    assert figures(workspace) == (130_000_000, 0, 0)


def test_an_answer_that_was_lost_a_day_ago_is_found_in_the_trail(workspace, runtime, lossy_admin):
    spend(runtime, 60_000_000)
    age(workspace, days=32)
    lossy_admin.lose[fund_path(workspace)] = 1
    assert periods.roll_over(workspace.account, now=timezone.now()).problem
    assert [period.opened_at is None for period in periods_of(workspace)] == [False, True]
    spend(runtime, 5_000_000)  # in the new period, as the authority has it
    forget_keys(workspace)
    roll(workspace)
    assert figures(workspace) == (ALLOWANCE, 5_000_000, 0)
    assert periods_of(workspace)[0].spent == 60_000_000


def test_a_ledger_that_is_frozen_after_its_answer_was_lost_has_begun_its_period(
    workspace, runtime, operator, lossy_admin
):
    spend(runtime, 60_000_000)
    age(workspace, days=32)
    lossy_admin.lose[fund_path(workspace)] = 1
    assert periods.roll_over(workspace.account, now=timezone.now()).problem
    operator.freeze(workspace.account.scope)
    assert len(roll(workspace)) == 1
    assert [period.spent for period in periods_of(workspace)] == [60_000_000, None]


def test_a_host_whose_clock_is_ahead_opens_no_period_too_early(workspace, monkeypatch):
    ahead = timezone.now() + timedelta(days=95)
    monkeypatch.setattr(timezone, "now", lambda: ahead)
    roll_budgets.func(timestamp=0)
    rolled_by_command()
    assert len(periods_of(workspace)) == 1


# --- who cannot be rolled over --------------------------------------------------------------------------------------


def test_a_frozen_ledger_waits_is_told_once_and_stops_nobody(workspace, operator, caplog):
    other = WorkspaceFactory()
    for one in (workspace, other):
        age(one, days=64)
    operator.freeze(workspace.account.scope)
    for _ in range(2):
        roll_budgets.func(timestamp=0)
    assert len(periods_of(other)) == 3
    assert len(periods_of(workspace)) == 1
    assert [record for record in caplog.records if f"account={workspace.account.pk}:" in record.message][1:] == []
    operator.freeze(workspace.account.scope, frozen=False)
    roll_budgets.func(timestamp=0)
    assert len(set(resets_of(workspace))) == len(periods_of(workspace)) - 1 == 2


def test_a_closed_account_is_left_out_and_a_suspended_one_rolls_on(workspace, operator):
    age(workspace, days=32)
    Account.objects.filter(pk=workspace.account.pk).update(status=Account.Status.CLOSED)
    assert workspace.account not in periods.due(timezone.now())
    Account.objects.filter(pk=workspace.account.pk).update(status=Account.Status.FROZEN)
    operator.change_tenant(workspace.account.subject_tenant, status="SUSPENDED")
    assert len(roll(workspace)) == 1


# --- limits below the tenant ----------------------------------------------------------------------------------------


def test_limits_of_seats_features_and_keys_start_anew_and_conversations_do_not(workspace, runtime, operator):
    tenant, seat = workspace.account.subject_tenant, f"{workspace.account.scope}/workspace:user-1"
    scopes = [seat, f"{seat}/app:chat", f"{seat}/app:chat/agent:key-1", f"{seat}/app:chat/workflow:conversation-1"]
    for scope in scopes:
        operator.create_budget(tenant, 1_000, scope=scope)
    frozen = f"{workspace.account.scope}/workspace:user-2"
    operator.create_budget(tenant, 1_000, scope=frozen)
    subject = {"tenant": tenant, "workspace": "user-1", "app": "chat", "workflow": "conversation-1"}
    held = runtime.post("/v1/reservations", {**runtime.request_body(400), "subject": subject}).json()["reservation_id"]
    runtime.commit(held, 400)
    operator.freeze(frozen)
    age(workspace, days=32)
    roll(workspace)
    found = {scope.rpartition("/")[2]: operator.figures(scope) for scope in scopes}
    assert {name: (one["allocated"], one["spent"]) for name, one in found.items()} == {
        "workspace:user-1": (1_000, 0),
        "app:chat": (1_000, 0),
        "agent:key-1": (1_000, 0),
        "workflow:conversation-1": (1_000, 400),
    }
    assert [len(resets_of(workspace, scope)) for scope in [*scopes, frozen]] == [1, 1, 1, 0, 0]
    assert workspace.account not in periods.due(timezone.now())


# --- what is shown --------------------------------------------------------------------------------------------------


def page(workspace):
    return workspace.client(workspace.owner).get("/budget/").content.decode()


@pytest.mark.on_standin
def test_the_page_says_when_the_next_period_comes_and_its_books_agree_after_a_reset(workspace):
    call(workspace, 10_000).settle()
    held = call(workspace, 3_000)
    assert eventually(lambda: workspace.ledger()["spent"] == 10_000)
    top_up(workspace.account, amount=50_000_000, key="k")
    age(workspace, days=32)
    before = page(workspace)
    assert "The next one is being opened" in before
    assert "They differ" not in before
    roll(workspace)
    held.settle()
    assert eventually(lambda: is_settled(workspace) and len(workspace.lines()) == 2)
    shown = page(workspace)
    (first, second) = periods_of(workspace)
    assert "They agree to the last microcent." in shown
    assert f"{second.ends_at:%-d %B %Y, %H:%M} UTC" in shown
    assert "$0.50 of top-ups came over" in shown
    assert f"{first.starts_at:%-d %b %Y}" in shown
    assert "$0.0001" in strip_tags(shown)  # spent in the first


def test_an_exhausted_budget_says_when_it_starts_anew(workspace, runtime):
    spend(runtime, ALLOWANCE)
    (first,) = periods_of(workspace)
    shown = page(workspace)
    assert "This budget is used up until it starts anew." in shown
    assert f"{first.ends_at:%-d %B %Y, %H:%M} UTC" in shown


def test_a_frozen_ledgers_period_ends_without_a_next_one_and_its_books_are_compared(workspace, operator):
    call(workspace, 10_000).settle()
    assert eventually(lambda: is_settled(workspace) and len(workspace.lines()) == 1)
    operator.freeze(workspace.account.scope)
    age(workspace, days=64)
    assert "is frozen" in periods.roll_over(workspace.account, now=timezone.now()).problem
    shown = " ".join(page(workspace).split())
    assert "The next one is opened once this account is released." in shown
    assert "being opened" not in shown
    assert "They agree to the last microcent." in shown


def test_nothing_is_compared_once_a_host_whose_clock_is_ahead_has_asked_for_the_next(workspace, runtime, lossy_admin):
    spend(runtime, 5_000)
    lossy_admin.lose[fund_path(workspace)] = 1
    assert periods.roll_over(workspace.account, now=timezone.now() + timedelta(days=32)).problem
    shown = page(workspace)
    assert "Not compared: the next period is being opened." in shown
    assert "They differ" not in shown
    # What was asked for is gone on with, whatever the clock says now: the authority may have done it.
    assert workspace.account in periods.due(timezone.now())
    assert len(roll(workspace)) == 1
    assert [period.spent for period in periods_of(workspace)] == [5_000, None]


def test_figures_that_are_not_known_are_not_said_to_be_the_old_ones(workspace, settings):
    age(workspace, days=32)
    settings.CYCLES_ADMIN_URL = "http://127.0.0.1:9"
    shown = " ".join(page(workspace).split())
    assert "The next one is opened once the authority answers." in shown
    assert "those of the old one" not in shown


def test_only_a_budget_that_starts_anew_is_said_to(workspace, operator, upstream):
    with workspace.scope():
        conversation = Conversation.objects.create(owner=workspace.owner, title="q", has_limit=True)
    owner, tenant = workspace.owner.pk, workspace.account.subject_tenant
    scope = f"tenant:{tenant}/workspace:user-{owner}/app:chat/workflow:conversation-{conversation.pk}"
    operator.create_budget(tenant, 0, scope=scope)
    browser = workspace.client(workspace.owner)
    renews = re.compile(r'data-chat="refusal-renews"[^>]*?( hidden)?>')
    refused = browser.post("/", {"prompt": "hello", "conversation_id": conversation.pk}).content.decode()
    assert "This conversation&#x27;s budget is used up" in refused
    assert renews.search(refused)[1] == " hidden"
    workspace.leave(0)
    refused = browser.post("/", {"prompt": "hello"}).content.decode()
    assert "This workspace&#x27;s budget is used up" in refused
    assert renews.search(refused)[1] is None


def test_the_api_names_the_period_and_in_the_moment_between_two_none(workspace):
    api = workspace.api()
    (first,) = periods_of(workspace)
    period = api.get("/api/budget/").json()["period"]
    assert datetime.fromisoformat(period["starts_at"]) == first.starts_at
    assert datetime.fromisoformat(period["ends_at"]) == first.ends_at
    age(workspace, days=32)
    assert api.get("/api/budget/").json()["period"] is None


# --- the command ----------------------------------------------------------------------------------------------------


def rolled_by_command(*args):
    """(exit code, what it said)."""
    out = StringIO()
    try:
        call_command("roll_budgets", *args, stdout=out)
    except SystemExit as exc:
        return exc.code, out.getvalue()
    return 0, out.getvalue()


def test_the_command_rolls_what_is_due_and_says_what_is_not(workspace, operator):
    (first,) = periods_of(workspace)
    assert rolled_by_command(workspace.slug) == (
        0,
        f"{workspace.slug}: its period ends on {first.ends_at:%Y-%m-%d at %H:%M} UTC.\n",
    )
    age(workspace, days=64)
    operator.freeze(workspace.account.scope)
    code, said = rolled_by_command(workspace.slug)
    assert (code, f"{workspace.slug}: not rolled over: the ledger is frozen" in said) == (1, True), said
    operator.freeze(workspace.account.scope, frozen=False)
    code, said = rolled_by_command(workspace.slug)
    assert (code, said.count(f"{workspace.slug}: ")) == (0, 2), said
    with pytest.raises(CommandError, match="nobody"):
        rolled_by_command("nobody")


@pytest.mark.slow
def test_two_processes_at_once_reset_once(workspace, runtime, database_url, authority):
    spend(runtime, 1_000)
    age(workspace, days=32)
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "DATABASE_URL": database_url,
        **authority_variables(authority),
    }
    command = [sys.executable, "manage.py", "roll_budgets", workspace.slug]
    both = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(2)]
    assert [process.wait(180) for process in both] == [0, 0]
    assert len(set(resets_of(workspace))) == 1
    assert [period.spent for period in periods_of(workspace)] == [1_000, None]


def test_an_authority_that_is_away_leaves_all_as_it_is(workspace, settings):
    age(workspace, days=32)
    settings.CYCLES_ADMIN_URL = "http://127.0.0.1:9"
    assert periods.roll_over(workspace.account, now=timezone.now()).problem
    assert len(periods_of(workspace)) == 1
    with pytest.raises(admin_client.AuthorityUnavailable):
        admin_client.lookup(workspace.account.scope)
