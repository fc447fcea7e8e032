"""The guard: settled once, by what was used, however the block ended."""

import json
import threading
import time

import pytest
from django.db import connection, transaction
from django.test import RequestFactory
from runcycles import cycles

from billing import guard
from billing.client import KeyRing, current_subject_tenant, default_client
from billing.errors import AuthorityUnavailable, BudgetDenied, NoTenantBound, NotProvisioned, OnHold
from billing.guard import Metrics, current_reservation, get_context, guarded, reserve
from billing.models import Account, Hold
from tenants.http import Unavailable

pytestmark = pytest.mark.usefixtures("app")

ASK = {"app": "test", "action_kind": "test.call", "action_name": "unit"}


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


def test_a_call_that_turned_out_void_is_released(workspace):
    with reserve(workspace.tenant, **ASK, estimate=1_000) as paid:
        paid.dispatch(lambda: None)
        paid.void()
    assert workspace.ledger()["spent"] == workspace.ledger()["reserved"] == 0
    assert workspace.lines() == []


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


def test_the_hold_row_is_there_before_the_reserve_and_dispatched_before_the_call(workspace):
    seen = []
    with reserve(workspace.tenant, **ASK, estimate=1_000) as paid:
        (hold,) = Hold.objects.filter(account=workspace.account)
        assert hold.dispatched_at is None
        assert hold.reservation_id.startswith(workspace.account.subject_tenant)

        def call():
            seen.append(Hold.objects.get(pk=hold.pk).dispatched_at)

        paid.dispatch(call)
        paid.record(cost=1)
    assert seen[0] is not None
    assert workspace.holds() == 0


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


def test_the_authoritys_caps_count_where_they_are_lower(workspace, authority):
    from billing.admin_client import call

    params = {"scope": f"{workspace.account.scope}/app:test", "unit": "USD_MICROCENTS"}
    body = {
        "tenant_id": workspace.account.subject_tenant,
        "scope": params["scope"],
        "unit": "USD_MICROCENTS",
        "allocated": {"unit": "USD_MICROCENTS", "amount": 1_000_000},
    }
    call("POST", "/v1/admin/budgets", body=body)
    call("PUT", "/v1/x-embedded/budgets/caps", params=params, body={"max_tokens": 0})
    with reserve(workspace.tenant, **ASK, estimate=1) as paid:
        assert paid.cap(5_000) == 0
        assert get_context().caps.max_tokens == 0


@pytest.mark.parametrize("use", [{"cost": -1}, {"cost": 1, "tokens_input": -1}, {"cost": 1, "tokens_output": -1}])
def test_a_cost_or_a_count_is_never_negative(workspace, use):
    with reserve(workspace.tenant, **ASK, estimate=10) as paid, pytest.raises(ValueError):
        paid.record(**use)
    assert workspace.ledger()["reserved"] == 0


def test_a_hold_that_was_swept_pays_for_nothing(workspace):
    called = []
    with reserve(workspace.tenant, **ASK, estimate=10) as paid:
        Hold.objects.filter(account=workspace.account).delete()
        with pytest.raises(Unavailable):
            paid.dispatch(lambda: called.append(1))
    assert called == []
    assert workspace.ledger()["spent"] == workspace.ledger()["reserved"] == 0


def test_what_the_client_will_not_send_leaves_no_hold(workspace):
    with pytest.raises(ValueError):
        reserve(workspace.tenant, **ASK, estimate=10, ttl_ms=1)
    assert workspace.holds() == 0
    assert workspace.ledger()["reserved"] == 0


def test_a_hold_is_dispatched_once(workspace):
    called = []
    with reserve(workspace.tenant, **ASK, estimate=10) as paid:
        paid.dispatch(lambda: called.append(1))
        with pytest.raises(Unavailable):
            paid.dispatch(lambda: called.append(2))
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


def test_a_function_that_returns_work_for_later_is_refused(workspace):
    def words():
        yield 1

    with workspace.scope(), pytest.raises(TypeError, match="for later"):
        guarded(10)(lambda: words())()
    assert workspace.ledger()["reserved"] == 0


# --- guarded --------------------------------------------------------------------------------------------------------


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


def test_nested_guarded_calls_each_pay_and_find_their_own_reservation(workspace):
    inner = guarded(10, actual=5)(lambda: current_reservation().estimate)

    @guarded(100, actual=50)
    def outer():
        assert inner() == 10
        return current_reservation().estimate

    with workspace.scope():
        assert outer() == 100
    assert workspace.ledger()["spent"] == 55


# --- plain @cycles --------------------------------------------------------------------------------------------------


def test_plain_cycles_books_to_the_tenant_that_is_bound(workspace, globex):
    @cycles(estimate=700, actual=lambda r: 600, action_kind="test", action_name="plain", tenant=current_subject_tenant)
    def call():
        return "ok"

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
    assert workspace.ledger()["allocated"] == 100_000_000


def test_a_tenant_that_nobody_knows_is_answered_and_not_raised():
    response = default_client().get_balances(tenant="ws-nobody")
    assert response.get_body_attribute("error") == "UNKNOWN_TENANT"


def test_a_commit_that_could_not_be_delivered_is_replayed_under_its_tenants_key(workspace, settings, authority):
    client = default_client()
    paid = reserve(workspace.tenant, **ASK, estimate=1_000)
    paid.dispatch(lambda: None)
    paid.record(cost=250)
    working, client._http.base_url = client._http.base_url, "http://127.0.0.1:9"
    try:
        paid.settle()
    finally:
        client._http.base_url = working
    assert workspace.lines()[0].cost == 250
    # Until the authority has it, the row stays: nobody else would know that something is owed.
    assert workspace.holds() == 1
    client.keys.forget(workspace.account.subject_tenant)
    deadline = time.monotonic() + 10
    while workspace.ledger()["spent"] != 250 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert workspace.ledger()["spent"] == 250
    assert workspace.ledger()["reserved"] == 0


def test_an_authority_that_is_not_there_is_unavailable_and_keeps_no_hold(workspace):
    client = default_client()
    working, client._http.base_url = client._http.base_url, "http://127.0.0.1:9"
    try:
        with pytest.raises(AuthorityUnavailable):
            reserve(workspace.tenant, **ASK, estimate=1)
    finally:
        client._http.base_url = working
    assert workspace.holds() == 0


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
