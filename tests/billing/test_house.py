"""The house's account: code outside any tenant buys from it where it says so, and no tenant's money is ever touched."""

import json
import os
import signal
import subprocess
import sys
import uuid
from contextlib import nullcontext
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import RequestFactory
from django.utils import timezone
from runcycles import cycles
from runcycles.exceptions import BudgetExceededError

from billing import admin_client, settlement
from billing.client import KeyRing, _find_key, current_subject_tenant, default_client, house_subject_tenant
from billing.errors import BudgetDenied, HouseDenied, HouseOnHold, NoHouseAccount, NoTenantBound, OnHold
from billing.guard import current_reservation, get_context, guarded, reserve
from billing.ledgers import ledgers_of
from billing.middleware import BudgetErrorMiddleware
from billing.models import Hold, HouseLine, Process
from billing.money import UNIT
from billing.preflight import decide
from billing.repeats import Request, once
from billing.settlement import sweep
from billing.subjects import scopes_of
from chat.calls import complete, stream
from tenants.http import error_response
from tests.support.authority import AuthorityProbe, authority_variables
from tests.support.money import eventually, is_settled
from tests.support.web import ROOT

pytestmark = pytest.mark.usefixtures("app", "patient")

ALLOCATED = 50_000_000
ASK = {"app": "digest", "action_kind": "test.call", "action_name": "nightly"}
LETTER = [{"role": "user", "content": "A letter to everybody."}]


class House:
    """A tenant of the authority that is no customer's, with a key and a budget."""

    def __init__(self):
        self.tenant = f"the-house-{uuid.uuid4().hex[:12]}"
        admin_client.ensure_tenant(self.tenant)
        self.key = admin_client.create_key(self.tenant, name="house")[1]
        self.scope = f"tenant:{self.tenant}"
        admin_client.ensure_budget(self.tenant, self.scope, allocated=ALLOCATED, overdraft_limit=0)

    @property
    def variables(self):
        return {"CYCLES_TENANT": self.tenant, "CYCLES_API_KEY": self.key}

    def move_in(self, settings):
        for name, value in self.variables.items():
            setattr(settings, name, value)

    def spent(self):
        """Of which nothing is held."""
        (ledger,) = ledgers_of([self.scope])
        assert ledger.reserved == 0
        return ledger.spent

    def holds(self):
        return Hold.objects.filter(account=None, subject__tenant=self.tenant)

    def lines(self):
        return list(HouseLine.objects.order_by("pk"))


@pytest.fixture
def house(app, settings):
    HouseLine.objects.all().delete()
    house = House()
    house.move_in(settings)
    return house


def untouched(*workspaces):
    return all(not one.lines() and not one.holds() and one.ledger()["spent"] == 0 for one in workspaces)


def bound(workspace, is_inside):
    """Inside a tenant, as in its request; or outside any, as in a cron job."""
    return workspace.scope() if is_inside else nullcontext()


INSIDE_AND_OUT = pytest.mark.parametrize("is_inside", [False, True], ids=["outside any tenant", "inside a tenant"])


# --- who pays -------------------------------------------------------------------------------------------------------


@INSIDE_AND_OUT
def test_what_the_house_pays_for_is_its_own_line_and_nobody_elses(house, workspace, globex, is_inside):
    eventually(lambda: is_settled(globex))  # of another test's calls
    before = len(globex.lines()), globex.ledger()["spent"]
    seen = []

    @guarded(
        1_000, actual=300, tenant=house_subject_tenant, app="digest", action_name="nightly", dimensions={"for": "x"}
    )
    def write():
        seen.extend(house.holds())
        return current_reservation().tenant

    with bound(workspace, is_inside):
        assert write() is None
    (hold,) = seen
    assert hold.account_id is None
    assert hold.subject == {"tenant": house.tenant, "workspace": "system", "app": "digest", "dimensions": {"for": "x"}}
    (line,) = house.lines()
    assert (line.hold, line.cost, line.estimate, line.app, line.action, line.outcome) == (
        (hold.pk, 300, 1_000, "digest", "nightly", "exact")
    )
    assert house.spent() == 300
    assert not house.holds()
    assert untouched(workspace)
    assert (len(globex.lines()), globex.ledger()["spent"]) == before


def test_what_a_tenant_pays_for_is_not_the_houses(house, workspace):
    for options in ({}, {"tenant": current_subject_tenant}):
        with workspace.scope():
            guarded(100, actual=70, app="digest", **options)(lambda: None)()
    assert [line.cost for line in workspace.lines()] == [70, 70]
    with reserve(workspace.tenant, **ASK, estimate=10) as paid:
        paid.dispatch(lambda: None)
    assert (house.spent(), house.lines()) == (0, [])


@INSIDE_AND_OUT
def test_plain_cycles_books_to_the_house_where_it_names_it(house, workspace, is_inside):
    @cycles(estimate=700, actual=lambda r: 600, action_kind="test", action_name="plain", tenant=house_subject_tenant)
    def call():
        return "ok"

    with bound(workspace, is_inside):
        assert call() == "ok"
    assert house.spent() == 600
    assert untouched(workspace)


def test_the_house_is_never_a_fallback(house):
    for call in (
        lambda: reserve(**ASK, estimate=1),
        guarded(1)(lambda: None),
        guarded(1, tenant=current_subject_tenant)(lambda: None),
        cycles(estimate=1, tenant=current_subject_tenant)(lambda: None),
        lambda: complete(LETTER),
    ):
        with pytest.raises(NoTenantBound):
            call()
    assert house.spent() == 0
    assert default_client()._config.tenant is None


def ways_of_the_house():
    ran = []
    ways = {
        "guarded": guarded(1, tenant=house_subject_tenant)(lambda: ran.append(1)),
        "reserve": lambda: reserve(house_subject_tenant, **ASK, estimate=1),
        "plain @cycles": cycles(estimate=1, tenant=house_subject_tenant)(lambda: ran.append(1)),
        "decide": lambda: decide(house_subject_tenant, user_id=None, **ASK, estimate=1),
    }
    return ways, ran


@INSIDE_AND_OUT
def test_without_its_variables_the_house_buys_nothing_and_nobody_else_does(workspace, is_inside):
    ways, ran = ways_of_the_house()
    for way in ways.values():
        with bound(workspace, is_inside), pytest.raises(NoHouseAccount) as refused:
            way()
        assert "CYCLES_TENANT" in str(refused.value)
        assert "CYCLES_API_KEY" in str(refused.value)
        # Whoever asked in a workspace is told neither of a house nor of variables.
        assert refused.value.status == 503
        assert "CYCLES" not in json.dumps(refused.value.body())
    assert ran == []
    assert untouched(workspace)


def test_a_customers_tenant_is_no_house(workspace, settings):
    settings.CYCLES_TENANT, settings.CYCLES_API_KEY = workspace.account.subject_tenant.upper(), "any"
    ways, ran = ways_of_the_house()
    for way in ways.values():
        with pytest.raises(NoHouseAccount, match="customer"):
            way()
    assert ran == []
    assert untouched(workspace)
    code, said = reconcile(house=True)
    assert (code, "tenant of a customer" in said, "differ" in said) == (1, True, False), said


@pytest.mark.parametrize(
    "odd", ["acme", lambda: "acme", "house_subject_tenant", 7], ids=["word", "function", "name", "number"]
)
def test_any_other_payer_is_refused_where_it_is_written(acme, odd):
    for value in (odd, acme.tenant):
        with pytest.raises(TypeError, match=r"^tenant .*house_subject_tenant"):
            guarded(1, tenant=value)
    for buy in (reserve, decide):
        with acme.scope(), pytest.raises(TypeError, match=r"^tenant .*house_subject_tenant"):
            buy(odd, **ASK, estimate=1, user_id=None)


def test_a_claim_pays_for_one_call_of_its_own_workspace_and_for_none_of_the_houses(house, workspace, globex):
    ran = []
    request = Request(workspace.tenant.schema_name, workspace.owner.pk, "letters", "k-1", "fingerprint")

    def buy(claim, **options):
        guarded(100, actual=70, app="digest", claim=lambda: claim, **options)(lambda: ran.append(1))()

    with workspace.scope(), once(request) as claim:
        with pytest.raises(ValueError, match=r"^claim: .*that workspace pays"):
            buy(claim, tenant=house_subject_tenant)
        with globex.scope(), pytest.raises(ValueError, match=r"^claim: .*that workspace pays"):
            buy(claim)
        assert ran == []
        buy(claim)
        # The second one would be charged to nobody's key.
        with pytest.raises(ValueError, match=r"^claim: .*one hold"):
            buy(claim)
    assert [line.cost for line in workspace.lines()] == [70]
    assert (ran, house.spent()) == ([1], 0)


@pytest.mark.parametrize("member", [{"user_id": 1}, {"key_id": 1}])
def test_the_house_has_no_members_and_no_keys(house, member):
    with pytest.raises(ValueError, match="the house has no members"):
        reserve(house_subject_tenant, **ASK, estimate=1, **member)
    with pytest.raises(ValueError, match="the house has no members"):
        decide(house_subject_tenant, **ASK, estimate=1, **{"user_id": None, **member})


def test_the_houses_key_needs_no_database(house, settings):
    ring = KeyRing(_find_key)
    settings.DATABASES["default"]["HOST"], before = "nowhere", settings.DATABASES["default"]["HOST"]
    try:
        assert ring.get(house.tenant) == house.key
    finally:
        settings.DATABASES["default"]["HOST"] = before


def test_decide_asks_the_house(house):
    decide(house_subject_tenant, user_id=None, **ASK, estimate=ALLOCATED)
    with pytest.raises(HouseDenied) as refused:
        decide(house_subject_tenant, user_id=None, **ASK, estimate=ALLOCATED + 1)
    assert refused.value.reason == "does_not_fit"


# --- answers under its hold -----------------------------------------------------------------------------------------


@INSIDE_AND_OUT
def test_answers_are_bought_under_the_houses_hold(house, workspace, upstream, is_inside):
    kept = []

    @guarded(30_000_000, tenant=house_subject_tenant, app="digest")
    def write():
        # No plan of ours caps it; the hold does.
        whole = complete(LETTER, max_tokens=3_000, keep=lambda letter: kept.append(letter.text))
        assert get_context().caps.max_tokens > 3_000
        return whole.text, "".join(stream(LETTER, max_tokens=20))

    with bound(workspace, is_inside):
        assert write() == ("Hello, world.", "Hello, world.")
    assert [call["max_tokens"] for call in upstream.calls] == [3_000, 20]
    (line,) = house.lines()
    assert (line.cost, line.outcome, line.model) == (52_000, "exact", "test-model")
    assert (line.tokens_input, line.tokens_output, line.app) == (20, 8, "digest")
    assert house.spent() == 52_000
    assert eventually(lambda: kept == ["Hello, world."])
    assert untouched(workspace)


@pytest.mark.caps
def test_the_authoritys_caps_bind_the_house(house, upstream):
    scope = scopes_of({"tenant": house.tenant, "workspace": "system", "app": "digest"})[-1]
    admin_client.ensure_budget(house.tenant, scope, allocated=ALLOCATED, overdraft_limit=0)
    params = {"scope": scope, "unit": UNIT}
    admin_client.call("PUT", "/v1/x-embedded/budgets/caps", params=params, body={"max_tokens": 7})
    guarded(10_000_000, tenant=house_subject_tenant, app="digest")(lambda: complete(LETTER, max_tokens=3_000))()
    assert [call["max_tokens"] for call in upstream.calls] == [7]


# --- what is said of it ---------------------------------------------------------------------------------------------


def said_to(workspace, exception):
    """What a program of the workspace reads of it."""
    request = RequestFactory().get("/api/builders-own/")
    request.tenant = workspace.tenant
    answer = BudgetErrorMiddleware(lambda request: None).process_exception(request, exception)
    answer = answer or error_response(request, exception)
    assert answer.status_code == 503
    assert "Retry-After" not in answer
    return json.loads(answer.content)


def test_a_workspace_is_told_nothing_of_a_house_that_is_out_of_money_and_the_log_is_told(house, workspace, caplog):
    ways = {
        HouseDenied: guarded(ALLOCATED + 1, tenant=house_subject_tenant)(lambda: None),
        BudgetExceededError: cycles(estimate=ALLOCATED + 1, tenant=house_subject_tenant)(lambda: None),
    }
    told = []
    for error, call in ways.items():
        with workspace.scope(), pytest.raises(error) as refused:
            call()
        caplog.clear()
        told.append(said_to(workspace, refused.value))
        # Else an operator, who sees a 503 alone, can learn nowhere that it is the house that needs money.
        assert "The house's budget does not pay for this" in caplog.text
    for body in told:
        assert body.keys() == {"error", "message", "retry_after_ms"}
        assert body["error"] == "unavailable"
        assert not any(word in json.dumps(body) for word in ("house", house.tenant, "budget", str(ALLOCATED)))


def test_the_operator_is_told_all_of_it(house, authority):
    with pytest.raises(BudgetDenied) as refused:
        reserve(house_subject_tenant, **ASK, estimate=ALLOCATED + 1)
    assert (refused.value.reason, refused.value.budget["remaining"]) == ("does_not_fit", ALLOCATED)
    assert str(ALLOCATED) in str(refused.value)
    probe = AuthorityProbe(authority)
    probe.change_tenant(house.tenant, status="SUSPENDED")
    probe.close()
    with pytest.raises(OnHold, match="on hold") as on_hold:
        reserve(house_subject_tenant, **ASK, estimate=1)
    assert isinstance(on_hold.value, HouseOnHold)
    assert on_hold.value.status == 503


# --- what a dead process left ---------------------------------------------------------------------------------------


KILLED = """
import os, signal, django
django.setup()
from billing.client import house_subject_tenant
from billing.guard import guarded

@guarded(5_000, least=1_200, tenant=house_subject_tenant, app="digest", action_name="nightly")
def write():
    os.kill(os.getpid(), signal.SIGKILL)

write()
"""


def killed(house, database_url, authority):
    """A cron job that is killed while its model works; the row that it left, of a process that looks silent."""
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "DATABASE_URL": database_url,
        **authority_variables(authority),
        **house.variables,
    }
    ended = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (hold,) = house.holds()
    Process.objects.filter(pk=hold.process).update(seen_at=timezone.now() - timedelta(minutes=1))
    return hold


def sweep_now():
    settlement._memory.again.clear()
    return sweep(at_once=True)


def test_a_killed_job_of_the_house_is_swept_once_and_by_its_own_account_alone(
    house, workspace, database_url, authority, settings
):
    hold = killed(house, database_url, authority)
    tenants_own = reserve(workspace.tenant, **ASK, estimate=900)
    tenants_own.dispatch(lambda: None)
    Hold.objects.filter(pk=tenants_own.id).update(process=None, used=400)
    # Another house, and none: its key could not settle the row, which must not stop the tenant's.
    other = House()
    other.move_in(settings)
    sweep_now()
    assert [line.cost for line in workspace.lines()] == [400]
    settings.CYCLES_TENANT = settings.CYCLES_API_KEY = ""
    assert sweep_now().waiting == 0
    assert list(house.holds()) == [hold]
    assert house.lines() == []
    house.move_in(settings)
    for _ in range(2):
        sweep_now()
        (line,) = house.lines()
        assert (line.hold, line.cost, line.outcome, line.estimate) == (hold.pk, 1_200, "swept", 5_000)
        assert (house.spent(), house.holds().count()) == (1_200, 0)
    assert [line.cost for line in workspace.lines()] == [400]
    assert other.spent() == 0
    tenants_own.settle()


# --- its books ------------------------------------------------------------------------------------------------------


def reconcile(*args, **options):
    """(exit code, what it said)."""
    out = StringIO()
    try:
        call_command("reconcile", *args, stdout=out, **options)
    except SystemExit as exc:
        return exc.code, out.getvalue()
    return 0, out.getvalue()


def test_reconcile_compares_the_houses_books_too(house, workspace, settings):
    with reserve(house_subject_tenant, **ASK, estimate=5_000) as paid:
        paid.dispatch(lambda: None)
        paid.record(cost=3_000)
        code, said = reconcile(house=True)
        assert (code, "the house: spent $0.00 by the ledger, $0.00 by 0 lines; 1 under way" in said) == (0, True), said
        Hold.objects.filter(pk=paid.id).update(process=None)
        code, said = reconcile(house=True)
        assert (code, "A row of a silent process" in said) == (1, True), said
        key = settings.CYCLES_API_KEY
        settings.CYCLES_TENANT = settings.CYCLES_API_KEY = ""
        code, said = reconcile(house=True)
        assert (code, "not settled" in said, "CYCLES_TENANT" in said) == (1, True, True), said
        settings.CYCLES_TENANT, settings.CYCLES_API_KEY = house.tenant, key
    code, said = reconcile(house=True)
    assert (code, "spent $0.00003 by the ledger, $0.00003 by 1 lines" in said) == (0, True), said
    assert said.count("\n") == 1
    HouseLine.objects.all().delete()
    assert "A commit without a line: $0.00003" in reconcile(house=True)[1]
    code, said = reconcile(workspace.slug)
    assert (code, "house" in said) == (0, False), said
    with pytest.raises(CommandError, match="not both"):
        reconcile(workspace.slug, house=True)
    assert "the house: " in reconcile()[1]
    settings.CYCLES_TENANT = settings.CYCLES_API_KEY = ""
    with pytest.raises(CommandError, match="has no account: set CYCLES_TENANT"):
        reconcile(house=True)


# --- the client's other variables -----------------------------------------------------------------------------------


def test_the_clients_feature_is_the_one_of_calls_that_name_none(workspace, settings):
    from billing.client import install_default_client

    settings.CYCLES_APP = settings.DEFAULT_APP = "reports"
    install_default_client()
    try:
        with workspace.scope():
            guarded(10)(lambda: None)()
            guarded(10, app=lambda: None)(lambda: None)()
            guarded(10, app="own")(lambda: None)()
        assert [line.app for line in workspace.lines()] == ["reports", "reports", "own"]
        assert default_client()._config.app == "reports"
    finally:
        settings.CYCLES_APP, settings.DEFAULT_APP = "", "app"
        install_default_client()
