"""`manage.py reconcile`: it agrees where the books do, and says the cause of each difference."""

import uuid
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from billing.guard import reserve
from billing.keys import unseal
from billing.models import BudgetPeriod, Hold
from billing.periods import roll_over
from billing.reconcile import Books, Line, Reserved, Row, differences
from billing.settlement import sweep
from billing.usage.models import UsageLine
from tests.support.authority import AuthorityProbe, RuntimeCaller
from tests.support.money import eventually, is_settled, reservations_of
from tests.support.periods import age

pytestmark = pytest.mark.usefixtures("patient")


def reconcile(workspace):
    """(exit code, what it said)."""
    out = StringIO()
    try:
        call_command("reconcile", workspace.slug, stdout=out)
    except SystemExit as exc:
        return exc.code, out.getvalue()
    return 0, out.getvalue()


@pytest.fixture
def runtime(workspace, authority):
    account = workspace.account
    return RuntimeCaller(authority.runtime_url, account.subject_tenant, unseal(account.sealed_key))


@pytest.fixture
def operator(authority):
    probe = AuthorityProbe(authority)
    yield probe
    probe.close()


@pytest.fixture
def hold(workspace):
    """A call under way, of $0.00005; settled at the end of the test."""
    hold = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000)
    hold.dispatch(lambda: None)
    hold.record(cost=3_000)
    yield hold
    hold.settle()


def test_a_workspace_that_bought_nothing_agrees(workspace):
    code, said = reconcile(workspace)
    assert (code, f"{workspace.slug}: spent $0.00 by the ledger, $0.00 by 0 lines" in said) == (0, True), said


@pytest.mark.on_standin
def test_calls_of_every_end_agree(workspace, upstream):
    api = workspace.api()
    api.chat("hello")
    upstream.status = 503
    api.chat("hello")
    upstream.reset()
    upstream.tokens, upstream.delay_between = ["word "] * 100, 0.02
    response = api.chat("hello", stream=True)
    next(iter(response.streaming_content))
    response.close()
    upstream.reset()
    upstream.usage = {"prompt_tokens": 10, "completion_tokens": 10**6, "total_tokens": 10**6 + 10}
    api.chat("hello", max_tokens=9)
    assert eventually(lambda: is_settled(workspace))
    code, said = reconcile(workspace)
    assert (code, "they agree" in said) == (0, True), said


def test_a_call_under_way_is_no_difference(workspace, hold):
    code, said = reconcile(workspace)
    assert (code, "1 under way" in said) == (0, True), said


def test_a_row_of_a_silent_process_is_the_sweeps(workspace, hold):
    Hold.objects.filter(pk=hold.id).update(process=uuid.uuid4())
    code, said = reconcile(workspace)
    assert (code, "A row of a silent process" in said) == (1, True), said
    sweep(at_once=True)
    assert reconcile(workspace)[0] == 0


def test_a_commit_without_a_line_is_said(workspace, hold):
    hold.settle()
    with workspace.scope():
        UsageLine.objects.filter(hold=hold.id).delete()
    code, said = reconcile(workspace)
    assert (code, "A commit without a line: $0.00003" in said) == (1, True), said


def test_a_line_without_a_commit_is_said(workspace, hold, runtime):
    hold.settle()
    with workspace.scope():
        UsageLine.objects.filter(hold=hold.id).update(cost=4_000)
    code, said = reconcile(workspace)
    assert (code, "the line says $0.00004, the authority $0.00003" in said) == (1, True), said


def test_an_active_reservation_without_a_row_is_said_to_free_itself(workspace, runtime):
    runtime.hold(1_000)
    code, said = reconcile(workspace)
    assert (code, "An active reservation without a row: $0.00001" in said) == (1, True), said


def test_an_event_without_a_line_is_said(workspace, runtime):
    assert runtime.event(700).status_code == 201
    code, said = reconcile(workspace)
    assert (code, "$0.000007 more than commits and lines" in said) == (1, True), said


def test_a_plain_cycles_commit_is_told_from_one_of_ours(workspace, runtime):
    runtime.commit(runtime.hold(1_000), 400)
    code, said = reconcile(workspace)
    assert (code, "A plain @cycles writes none" in said) == (1, True), said


def test_a_late_call_is_no_difference(workspace, lossy):
    lossy.refuse["/extend"] = 1_000
    hold = reserve(
        workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000, ttl_ms=3_000, grace_period_ms=0
    )
    hold.dispatch(lambda: None)
    hold.record(cost=3_000)
    assert eventually(lambda: reservations_of(workspace)[0]["status"] == "EXPIRED", 30)
    hold.settle()
    assert eventually(lambda: workspace.lines())
    code, said = reconcile(workspace)
    assert (code, "1 expired" in said) == (0, True), said


def test_a_spent_that_was_reset_by_hand_is_named(workspace, hold, operator):
    hold.settle()
    operator.fund(workspace.account.subject_tenant, "RESET_SPENT", 100_000_000)
    code, said = reconcile(workspace)
    assert (code, "its spent was reset by hand, not by a period: $0.00003 at 20" in said) == (1, True), said


def test_periods_that_are_over_count_as_spent(workspace, hold):
    hold.settle()
    assert eventually(lambda: is_settled(workspace))
    age(workspace, days=64)
    code, said = reconcile(workspace)
    assert (code, "they agree" in said) == (0, True), said
    roll_over(workspace.account, now=timezone.now())
    code, said = reconcile(workspace)
    assert (code, "spent $0.00003 by the ledger, $0.00003 by 1 lines" in said) == (0, True), said
    BudgetPeriod.objects.filter(account=workspace.account, number=2).update(opened_at=None)
    BudgetPeriod.objects.filter(account=workspace.account, number=0).update(spent=0)
    code, said = reconcile(workspace)
    assert (code, "its answer is not written down yet: manage.py roll_budgets" in said) == (1, True), said


def test_a_ledger_that_no_call_meets_is_said(workspace, operator):
    tenant = workspace.account.subject_tenant
    operator.create_budget(tenant, 100, scope=f"tenant:{tenant}/app:summarize")
    code, said = reconcile(workspace)
    assert (code, "limits nothing" in said) == (1, True), said


def test_a_ledger_over_its_limit_is_said_and_a_credit_of_nothing_clears_it(workspace, runtime, operator):
    answer = runtime.event(200_000_000, overage_policy="ALLOW_IF_AVAILABLE")
    assert answer.status_code == 201, answer.text
    code, said = reconcile(workspace)
    assert (code, "is over its limit" in said) == (1, True), said
    operator.fund(workspace.account.subject_tenant, "CREDIT", 0)
    assert "is over its limit" not in reconcile(workspace)[1]


def test_slices_are_added_up(app):
    """Pure: three slices of one call, of which the last was not used."""
    hold = uuid.uuid4()
    slices = [
        Reserved("a", "COMMITTED", 5, 5, hold, 1, is_ours=True),
        Reserved("b", "COMMITTED", 5, 2, hold, 2, is_ours=True),
        Reserved("c", "RELEASED", 5, 0, hold, 3, is_ours=False),
    ]
    books = Books(None, reservations=slices, lines=[Line(hold, 7)])
    assert differences(books) == ["The tenant has no ledger of its own at the authority."]
    books.lines = [Line(hold, 8)]
    assert "A line and its commits differ" in differences(books)[0]
    books.lines, books.rows = [], [Row(hold, is_final=True, is_silent=False)]
    assert "waits for the authority" in differences(books)[0]


def test_more_reservations_than_a_page_has_are_read(workspace, runtime):
    for _ in range(203):
        runtime.hold(1)
    _, said = reconcile(workspace)
    assert "203 active" in said
    assert said.count("An active reservation without a row") == 203


def test_an_unknown_tenant_is_an_error(app):
    with pytest.raises(CommandError, match="nobody"):
        call_command("reconcile", "nobody")


def test_an_authority_that_is_away_is_no_agreement(workspace, settings):
    settings.CYCLES_ADMIN_URL = settings.CYCLES_BASE_URL = "http://127.0.0.1:9"
    code, said = reconcile(workspace)
    assert (code, "gives no figures" in said) == (1, True), said


def test_a_workspace_whose_rows_are_gone_is_said_and_stops_no_others(workspace):
    with connection.cursor() as cursor:
        cursor.execute(f'DROP TABLE "{workspace.tenant.schema_name}".usage_usageline')
    code, said = reconcile(workspace)
    assert (code, said.count("\n")) == (1, 1)
    assert f"{workspace.slug}: its rows cannot be read" in said
