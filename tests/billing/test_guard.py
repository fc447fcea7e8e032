"""The guard: settled once, by what was used, however the block ended."""

import gc
import io
import json
import threading
import time
from decimal import Decimal

import pytest
from django.db import connection, transaction
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import RequestFactory
from ninja import Router
from procrastinate import App
from procrastinate.testing import InMemoryConnector
from runcycles import cycles

from billing import guard, reservations
from billing.client import KeyRing, current_subject_tenant, default_client
from billing.errors import AuthorityUnavailable, BudgetDenied, NoTenantBound, NotProvisioned, OnHold
from billing.guard import Metrics, current_reservation, get_context, guarded, reserve
from billing.models import Account, Hold, Process
from billing.money import UNIT
from billing.settlement import sweep
from billing.subjects import scopes_of, subject_for
from tenants.http import Unavailable
from tests.support.money import eventually, is_settled

pytestmark = pytest.mark.usefixtures("app", "patient")

ASK = {"app": "test", "action_kind": "test.call", "action_name": "unit"}


@pytest.mark.on_standin
def test_what_was_recorded_is_committed_however_the_block_ends(workspace):
    with pytest.raises(RuntimeError), reserve(workspace.tenant, **ASK, estimate=1_000) as paid:
        paid.dispatch(lambda: None)
        paid.record(cost=300)
        raise RuntimeError
    assert workspace.ledger()["spent"] == 300
    assert workspace.ledger()["reserved"] == 0
    assert [line.cost for line in workspace.lines()] == [300]


def test_a_model_that_was_never_called_costs_nothing(workspace):
    with pytest.raises(RuntimeError), reserve(workspace.tenant, **ASK, estimate=1_000):
        assert workspace.ledger()["reserved"] == 1_000
        raise RuntimeError
    assert workspace.ledger()["spent"] == workspace.ledger()["reserved"] == 0
    assert workspace.holds() == 0
    assert workspace.lines() == []


def test_a_call_whose_use_nobody_knows_is_charged_in_full(workspace):
    with reserve(workspace.tenant, **ASK, estimate=1_000) as paid:
        paid.dispatch(lambda: None)
    assert workspace.ledger()["spent"] == 1_000
    assert workspace.lines()[0].outcome == "estimated"


def test_a_call_that_turned_out_void_is_a_line_of_nothing(workspace):
    with reserve(workspace.tenant, **ASK, estimate=1_000) as paid:
        paid.dispatch(lambda: None)
        paid.void()
    assert workspace.ledger()["spent"] == workspace.ledger()["reserved"] == workspace.holds() == 0
    assert [(line.cost, line.outcome) for line in workspace.lines()] == [(0, "none")]


def test_settling_twice_from_two_threads_charges_once(workspace):
    paid = reserve(workspace.tenant, **ASK, estimate=1_000)
    paid.dispatch(lambda: None)
    paid.record(cost=400)

    def settle():
        paid.settle()
        connection.close()

    threads = [threading.Thread(target=settle) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert workspace.ledger()["spent"] == 400
    assert len(workspace.lines()) == 1


def test_the_hold_row_is_written_after_the_reserve_and_before_the_call(workspace):
    seen = []
    with reserve(workspace.tenant, **ASK, estimate=1_000) as paid:
        assert workspace.ledger()["reserved"] == 1_000
        assert workspace.holds() == 0

        def call():
            seen.extend(Hold.objects.filter(account=workspace.account))

        paid.dispatch(call)
        paid.record(cost=1)
    (hold,) = seen
    assert (hold.estimate, hold.outcome, hold.is_final) == (1_000, "swept", False)
    assert hold.dispatched_at is not None
    # By the one it is found at the authority, by the other it is known whether anybody still cares for it.
    assert hold.reservation_id
    assert Process.objects.filter(pk=hold.process).exists()
    assert workspace.holds() == 0


def test_no_connection_is_held_while_the_model_is_called(workspace):
    with reserve(workspace.tenant, **ASK, estimate=10) as paid:
        workspace.holds()
        assert connection.connection is not None
        assert paid.dispatch(lambda: connection.connection) is None
        paid.record(cost=1)


@pytest.mark.on_standin
def test_a_refusal_leaves_no_hold_behind(workspace):
    with pytest.raises(BudgetDenied) as refused:
        reserve(workspace.tenant, **ASK, estimate=100_000_001)
    assert refused.value.reason == "does_not_fit"
    assert refused.value.budget["needed"] == 100_000_001
    assert workspace.holds() == 0


def test_without_a_tenant_there_is_nobody_to_pay():
    with pytest.raises(NoTenantBound):
        reserve(**ASK, estimate=1)


def test_a_pending_and_a_frozen_account_are_told_apart(workspace):
    for status, error in [(Account.Status.PENDING, NotProvisioned), (Account.Status.FROZEN, OnHold)]:
        Account.objects.filter(pk=workspace.account.pk).update(status=status)
        with pytest.raises(error):
            reserve(workspace.tenant, **ASK, estimate=1)


def test_the_plans_cap_lowers_what_may_be_asked(workspace):
    with reserve(workspace.tenant, **ASK, estimate=1) as paid:
        assert paid.cap(5_000) == 1_024
        assert paid.cap(7) == 7


@pytest.mark.caps
def test_the_authoritys_caps_count_where_they_are_lower(workspace, authority):
    from billing.admin_client import call, ensure_budget

    tenant = workspace.account.subject_tenant
    scope = scopes_of(subject_for(tenant=tenant, user_id=None, app="test"))[-1]
    ensure_budget(tenant, scope, allocated=1_000_000, overdraft_limit=0)
    call("PUT", "/v1/x-embedded/budgets/caps", params={"scope": scope, "unit": UNIT}, body={"max_tokens": 0})
    with reserve(workspace.tenant, **ASK, estimate=1) as paid:
        assert paid.cap(5_000) == 0
        assert paid.caps.max_tokens == 0
    seen = guarded(1, app="test")(lambda: get_context().caps.max_tokens)
    with workspace.scope():
        assert seen() == 0


@pytest.mark.parametrize("use", [{"cost": -1}, {"cost": 1, "tokens_input": -1}, {"cost": 1, "tokens_output": -1}])
def test_a_cost_or_a_count_is_never_negative(workspace, use):
    with reserve(workspace.tenant, **ASK, estimate=10) as paid, pytest.raises(ValueError):
        paid.record(**use)
    assert workspace.ledger()["reserved"] == 0


ODD = [0.5, Decimal(5), True, "5", None, 2**63]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_what_is_no_whole_number_is_refused_where_it_is_said_and_nothing_stays_held(workspace, odd):
    with workspace.scope(), pytest.raises(ValueError, match="whole number"):
        guarded(1_000, actual=lambda result: odd)(lambda: "done")()
    # The function ran, and what it used is not known.
    assert [(line.cost, line.outcome) for line in workspace.lines()] == [(1_000, "estimated")]
    assert workspace.ledger()["reserved"] == workspace.holds() == 0
    with pytest.raises(ValueError, match="whole number"):
        reserve(workspace.tenant, **ASK, estimate=odd)
    assert workspace.ledger()["reserved"] == 0


@pytest.mark.parametrize("model", ["a\x00b", "m" * 1_000, 7, "\ud800", None], ids=repr)
def test_an_odd_name_of_a_model_keeps_no_money_held(workspace, model):
    with reserve(workspace.tenant, **ASK, estimate=10) as paid:
        paid.dispatch(lambda: None)
        paid.record(cost=3, model=model)
    assert workspace.ledger()["spent"] == 3
    assert workspace.ledger()["reserved"] == workspace.holds() == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"action_kind": "k" * 65},
        {"action_kind": ""},
        {"action_name": "n" * 257},
        {"action_name": None},
        {"action_name": "a\x00b"},
        {"action_tags": ["t"] * 11},
        {"action_tags": "tag"},
        {"grace_period_ms": -1},
        {"ttl_ms": 5_000.5},
        {"user_id": "abc"},
        {"app": None},
        {"dimensions": {"a": 5}},
    ],
    ids=str,
)
def test_an_option_that_cannot_be_used_is_refused_by_name_and_not_as_an_outage(workspace, odd):
    with pytest.raises(ValueError, match=f"^{next(iter(odd))} "):
        reserve(workspace.tenant, **{**ASK, "estimate": 10, **odd})
    assert workspace.ledger()["reserved"] == workspace.holds() == 0


def test_what_costs_something_is_not_recorded_as_nothing(workspace):
    with reserve(workspace.tenant, **ASK, estimate=10) as paid:
        paid.dispatch(lambda: None)
        with pytest.raises(ValueError, match="none"):
            paid.record(cost=5, outcome="none")
        paid.record(cost=5)


def test_a_reservation_that_is_settled_pays_for_nothing(workspace):
    called = []
    paid = reserve(workspace.tenant, **ASK, estimate=10)
    paid.settle()
    with pytest.raises(Unavailable) as refused:
        paid.dispatch(lambda: called.append(1))
    assert "reserve right before it" in refused.value.__notes__[0]
    assert called == []
    assert workspace.ledger()["spent"] == workspace.ledger()["reserved"] == workspace.holds() == 0


def test_a_hold_that_another_has_swept_is_not_settled_again(workspace):
    with reserve(workspace.tenant, **ASK, estimate=10) as paid:
        paid.dispatch(lambda: None)
        # As if this process had been silent for too long.
        Hold.objects.filter(account=workspace.account).update(process=None, used=4)
        sweep(at_once=True)
        assert [(line.cost, line.outcome) for line in workspace.lines()] == [(4, "swept")]
        paid.record(cost=7)
    assert [line.cost for line in workspace.lines()] == [4]
    assert workspace.ledger()["spent"] == 4
    assert workspace.ledger()["reserved"] == workspace.holds() == 0


def test_a_reservation_that_is_dropped_is_given_back(workspace):
    reserve(workspace.tenant, **ASK, estimate=10)
    gc.collect()
    assert workspace.settled() == []


def test_what_the_client_will_not_send_leaves_no_hold(workspace):
    with pytest.raises(ValueError):
        reserve(workspace.tenant, **ASK, estimate=10, ttl_ms=1)
    assert workspace.holds() == 0
    assert workspace.ledger()["reserved"] == 0


def test_a_hold_is_dispatched_once(workspace):
    called = []
    with reserve(workspace.tenant, **ASK, estimate=10) as paid:
        paid.dispatch(lambda: called.append(1))
        with pytest.raises(Unavailable) as refused:
            paid.dispatch(lambda: called.append(2))
        assert "reserve for each" in refused.value.__notes__[0]
        paid.record(cost=3)
    assert called == [1]
    assert workspace.ledger()["spent"] == 3


def test_reserving_inside_a_transaction_is_refused(workspace):
    with pytest.raises(RuntimeError), transaction.atomic():
        reserve(workspace.tenant, **ASK, estimate=10)
    assert workspace.ledger()["reserved"] == 0


def test_a_reservation_knows_how_long_its_money_is_held(workspace):
    with reserve(workspace.tenant, **ASK, estimate=10, ttl_ms=60_000) as paid:
        assert 50 < paid.lease_left() <= 60


class ProvidersStream:
    """As the clients of providers give one: no generator, and nothing is asked before its first piece."""

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration


async def awords():
    yield b"1"


@pytest.mark.parametrize(
    "result",
    [
        lambda: (word for word in "1"),
        lambda: map(str, [1]),
        ProvidersStream,
        awords,
        lambda: StreamingHttpResponse(word for word in "1"),
        lambda: StreamingHttpResponse(ProvidersStream()),
        lambda: StreamingHttpResponse(awords()),
    ],
    ids=["generator", "map", "stream", "async generator", "page", "page of a stream", "async page"],
)
def test_a_function_that_returns_work_for_later_is_refused(workspace, result):
    with workspace.scope(), pytest.raises(TypeError, match="for later"):
        guarded(10)(lambda: result())()
    assert workspace.ledger()["reserved"] == 0


def test_a_function_may_return_what_is_there_already(workspace):
    answers = [
        iter(["a", "b"]),
        io.BytesIO(b"a picture"),
        FileResponse(io.BytesIO(b"a picture")),
        StreamingHttpResponse([b"a", b"b"]),
        HttpResponse(b"a"),
    ]
    with workspace.scope():
        assert [guarded(10)(lambda answer: answer)(answer) for answer in answers] == answers
    assert workspace.ledger()["spent"] == 50


# --- guarded --------------------------------------------------------------------------------------------------------


@pytest.mark.on_standin
def test_a_guarded_function_pays_what_its_result_says(workspace):
    @guarded(
        estimate=lambda words: len(words) * 100,
        actual=lambda result: result["cost"],
        action_kind="llm.completion",
        action_name=lambda words: f"model-{len(words)}",
        app="words",
    )
    def call(words):
        context = get_context()
        assert context.caps.max_tokens == 1_024
        context.metrics = Metrics(tokens_input=3, tokens_output=4, model_version="m-1")
        return {"cost": 150}

    with workspace.scope():
        assert call(["a", "b", "c"]) == {"cost": 150}
    (line,) = workspace.lines()
    assert (line.cost, line.estimate, line.app, line.action) == (150, 300, "words", "model-3")
    assert (line.tokens_input, line.tokens_output, line.model, line.outcome) == (3, 4, "m-1", "exact")
    assert workspace.ledger()["spent"] == 150


def test_a_guarded_function_without_actual_pays_its_estimate(workspace):
    call = guarded(200)(lambda: "done")
    with workspace.scope():
        assert call() == "done"
    assert workspace.ledger()["spent"] == 200


def test_a_guarded_function_that_raises_pays_what_it_recorded(workspace):
    @guarded(500)
    def call(record):
        if record is not None:
            current_reservation().record(cost=record)
        raise RuntimeError

    with workspace.scope():
        for record, total in [(120, 120), (None, 620)]:
            with pytest.raises(RuntimeError):
                call(record)
            assert workspace.ledger()["spent"] == total


@pytest.mark.parametrize(
    ("says", "charged", "outcome"),
    [({"reached": False}, 0, "none"), ({"reached": True, "cost": 30}, 30, "estimated"), ({}, 500, "estimated")],
)
def test_an_error_that_says_what_was_used_is_believed(workspace, says, charged, outcome):
    class Failed(Exception):
        pass

    @guarded(500)
    def call():
        failed = Failed()
        vars(failed).update(says)
        raise failed

    with workspace.scope(), pytest.raises(Failed):
        call()
    assert [(line.cost, line.outcome) for line in workspace.lines()] == [(charged, outcome)]
    assert workspace.ledger()["spent"] == charged


def test_a_guarded_function_is_not_run_when_the_budget_refuses(workspace):
    ran = []
    call = guarded(100_000_001)(lambda: ran.append(1))
    with workspace.scope(), pytest.raises(BudgetDenied):
        call()
    assert ran == []


def test_async_functions_and_generators_are_refused_by_name():
    async def fetch_answer():
        pass

    def words():
        yield 1

    for function in (fetch_answer, words):
        with pytest.raises(TypeError, match=function.__qualname__.rpartition(".")[2]):
            guarded(1)(function)


def test_guarded_without_its_estimate_is_refused_at_the_first_call():
    @guarded
    def write_haiku(topic):
        pytest.fail("called unpaid")

    with pytest.raises(TypeError, match=r"@guarded\(estimate="):
        write_haiku("rain")


@pytest.mark.parametrize(
    "register", [Router().post("/haikus/"), App(connector=InMemoryConnector()).task], ids=["ninja", "jobs"]
)
def test_a_function_that_somebody_keeps_unguarded_is_refused_by_name(register):
    """The operation, or the job, would be the function below, and call its model unpaid."""

    def write_haiku(request):
        pytest.fail("called unpaid")

    with pytest.raises(TypeError, match=r"write_haiku .* @guarded below"):
        guarded(1)(register(write_haiku))


def test_nested_guarded_calls_each_pay_and_find_their_own_reservation(workspace):
    inner = guarded(10, actual=5)(lambda: current_reservation().estimate)

    @guarded(100, actual=50)
    def outer():
        assert inner() == 10
        return current_reservation().estimate

    with workspace.scope():
        assert outer() == 100
    assert workspace.ledger()["spent"] == 55


def test_a_guarded_function_that_is_refused_money_within_pays_unless_it_says_that_nothing_was_used(workspace, caplog):
    inner = guarded(10**15)(lambda: None)

    @guarded(100)
    def outer():
        inner()

    @guarded(100)
    def outer_that_says_so():
        try:
            inner()
        except BudgetDenied:
            current_reservation().void()
            raise

    with workspace.scope():
        with pytest.raises(BudgetDenied) as refused:
            outer()
        assert workspace.ledger()["spent"] == 100
        assert refused.value.__notes__ == [guard.REFUSED_WITHIN]
        assert guard.REFUSED_WITHIN in caplog.text
        with pytest.raises(BudgetDenied) as refused:
            outer_that_says_so()
        assert workspace.ledger()["spent"] == 100
        assert not hasattr(refused.value, "__notes__")


# --- plain @cycles --------------------------------------------------------------------------------------------------


@pytest.mark.on_standin
def test_plain_cycles_books_to_the_tenant_that_is_bound(workspace, globex):
    @cycles(estimate=700, actual=lambda r: 600, action_kind="test", action_name="plain", tenant=current_subject_tenant)
    def call():
        return "ok"

    eventually(lambda: is_settled(globex))  # of another test's calls
    before = globex.ledger()["spent"]
    with workspace.scope():
        assert call() == "ok"
    assert workspace.ledger()["spent"] == 600
    assert globex.ledger()["spent"] == before
    with pytest.raises(NoTenantBound):
        call()


def test_plain_cycles_that_names_no_tenant_is_refused_with_a_sentence():
    from runcycles.exceptions import CyclesProtocolError

    from billing.client import translate

    @cycles(estimate=1, app="nobody")
    def call():
        raise AssertionError("must not run")

    with pytest.raises(CyclesProtocolError, match="No tenant is named") as refused:
        call()
    assert isinstance(translate(refused.value), NoTenantBound)


def test_plain_cycles_is_refused_like_ours(workspace):
    from runcycles.exceptions import BudgetExceededError

    from billing.middleware import BudgetErrorMiddleware

    @cycles(estimate=100_000_001, tenant=current_subject_tenant)
    def call():
        raise AssertionError("must not run")

    with workspace.scope(), pytest.raises(BudgetExceededError) as refused:
        call()
    request = RequestFactory().get("/api/anything/")
    request.tenant = workspace.tenant
    response = BudgetErrorMiddleware(lambda request: None).process_exception(request, refused.value)
    body = json.loads(response.content)
    assert (response.status_code, body["error"], body["reason"]) == (402, "budget_exceeded", "does_not_fit")
    assert body["budget"].keys() == {
        "scope", "allocated", "spent", "reserved", "remaining", "needed", "affordable_max_tokens", "unit",
    }  # fmt: skip
    assert body["budget"]["remaining"] == 100_000_000


# --- the client -----------------------------------------------------------------------------------------------------


def test_a_key_that_is_not_in_memory_is_found_again(workspace):
    client = default_client()
    client.keys.forget(workspace.account.subject_tenant)
    assert client.get_balances(tenant=workspace.account.subject_tenant).is_success


def test_many_threads_that_miss_a_key_look_it_up_once():
    looked = []

    def find(subject_tenant):
        looked.append(subject_tenant)
        time.sleep(0.05)
        return "key"

    ring = KeyRing(find)
    threads = [threading.Thread(target=ring.get, args=("ws-1",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert looked == ["ws-1"]


def test_no_proxy_of_the_environment_sees_a_key(workspace, monkeypatch):
    from billing.client import install_default_client

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    install_default_client()
    assert default_client().get_balances(tenant=workspace.account.subject_tenant).is_success
    with reserve(workspace.tenant, **ASK, estimate=1_000):
        assert workspace.ledger()["reserved"] == 1_000


def test_a_tenant_that_nobody_knows_is_answered_and_not_raised():
    response = default_client().get_balances(tenant="ws-nobody")
    assert response.get_body_attribute("error") == "UNKNOWN_TENANT"


@pytest.fixture
def nowhere(settings):
    """Moves the authority to where nobody listens, and back again."""
    before = settings.CYCLES_BASE_URL

    def move(away):
        settings.CYCLES_BASE_URL = "http://127.0.0.1:9" if away else before

    yield move
    move(False)


def test_a_commit_that_could_not_be_delivered_is_repeated_until_it_lands(workspace, nowhere, monkeypatch):
    monkeypatch.setattr(reservations, "SETTLE_SECONDS", 1.0)
    paid = reserve(workspace.tenant, **ASK, estimate=1_000)
    paid.dispatch(lambda: None)
    paid.record(cost=250)
    nowhere(True)
    paid.settle()
    # Until the authority has it, the row stays and knows all: nobody else would know that something is owed.
    assert eventually(lambda: Hold.objects.get(account=workspace.account).is_final)
    (hold,) = Hold.objects.filter(account=workspace.account)
    assert (hold.used, hold.outcome, hold.is_final) == (250, "exact", True)
    assert workspace.lines() == []
    nowhere(False)
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.outcome) == (250, "exact")
    assert workspace.ledger()["spent"] == 250


def test_an_authority_that_is_not_there_is_unavailable_and_keeps_no_hold(workspace, nowhere):
    nowhere(True)
    with pytest.raises(AuthorityUnavailable):
        reserve(workspace.tenant, **ASK, estimate=1)
    nowhere(False)
    assert workspace.settled() == []


def test_a_sealing_key_that_is_not_ours_stops_every_call_and_readiness(workspace, settings, client):
    from billing.errors import AuthorityMisconfigured

    settings.KEY_SEALING_KEY = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0NTY="
    with pytest.raises(AuthorityMisconfigured):
        reserve(workspace.tenant, **ASK, estimate=1)
    assert any("KEY_SEALING_KEY" in problem for problem in client.get("/readyz").json()["not_ready"])


def test_the_client_is_the_processs_default_and_has_no_tenant_of_its_own():
    from runcycles import decorator

    assert decorator._default_client is default_client()
    assert default_client()._config.tenant is None


def test_the_module_exports_the_clients_own_words():
    assert guard.Metrics.__name__ == "CyclesMetrics"
