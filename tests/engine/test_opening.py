"""Opening a call: held, waited for, fitted or refused; and whoever goes meanwhile leaves nothing held behind."""

import threading
import time

import pytest

from billing.engine import recovery
from billing.engine.loop import here
from billing.engine.store import LOCKED_SECONDS
from billing.errors import BudgetDenied
from billing.guard import reserve
from billing.keys import unseal
from billing.models import Hold
from tenants.threads import TenantExecutor, carrying
from tests.support.authority import RuntimeCaller
from tests.support.gate import Gate
from tests.support.money import (
    INPUT,
    OUTPUT,
    assert_books_agree,
    eventually,
    first_hold,
    is_settled,
    on_loop,
    reservations_of,
    side_by_side,
    true_cost,
)
from tests.support.plane import PlaneResponse


def waiting_in(workspace):
    """How many of its calls are in line for money."""
    return on_loop(lambda: len(here().lines._lines.get(workspace.account.scope, ())))


def test_a_lost_answer_to_a_reserve_is_503_now_and_the_money_is_back_at_once(workspace, upstream, model, lossy):
    api = workspace.api()
    workspace.leave(first_hold(output=512) + 1)  # for one call, and not for two
    before = workspace.ledger()["spent"]
    lossy.lose["/reservations"] = 1
    refused = api.chat("hello")
    assert (refused.status_code, refused.json()["error"]) == (503, "authority_unavailable")
    assert upstream.calls == []
    assert eventually(lambda: is_settled(workspace)), workspace.ledger()
    assert api.chat("hello").status_code == 200
    assert_books_agree(workspace, before=before)


def test_a_reserve_whose_repeats_are_lost_too_is_given_back_in_the_end(workspace, upstream, model, lossy):
    lossy.lose["/reservations"], lossy.lose["/release"] = 4, 1
    assert workspace.api().chat("hello").status_code == 503
    assert eventually(lambda: is_settled(workspace)), workspace.ledger()
    assert {one["status"] for one in reservations_of(workspace)} == {"RELEASED"}


def test_a_reader_who_goes_while_the_money_is_asked_for_leaves_none_of_it_held(workspace, upstream, model, lossy):
    go_on = threading.Event()
    lossy.before["/reservations"] = lambda: go_on.wait(60)
    exchange = workspace.api().plane.begin("POST", "/api/chat/", {"prompt": "hello"})
    assert eventually(lambda: lossy.seen)
    exchange.leave()
    go_on.set()  # the authority grants it now
    assert eventually(lambda: reservations_of(workspace) and is_settled(workspace)), workspace.ledger()
    assert {one["status"] for one in reservations_of(workspace)} == {"RELEASED"}
    assert upstream.calls == []
    assert workspace.lines() == []


def test_a_reader_who_goes_while_waiting_for_money_is_asked_for_no_more(workspace, upstream, model):
    upstream.last_word_after = threading.Event()
    api = workspace.api()
    workspace.leave(first_hold(output=512) + 1)
    first = api.plane.begin("POST", "/api/chat/", {"prompt": "hello"})
    assert eventually(lambda: len(upstream.calls) == 1)
    second = api.plane.begin("POST", "/api/chat/", {"prompt": "hello", "max_tokens": 500})
    assert eventually(lambda: waiting_in(workspace) == 1)
    second.leave()
    upstream.last_word_after.set()
    assert PlaneResponse(first).status_code == 200
    time.sleep(0.5)
    assert len(upstream.calls) == 1
    assert eventually(lambda: is_settled(workspace)), workspace.ledger()
    assert waiting_in(workspace) == 0


def test_a_row_that_was_written_for_a_reader_who_left_does_not_keep_the_conversation_busy(workspace, upstream, model):
    """Its reader goes while the row is being written: the row must be gone, whichever came first."""
    api = workspace.api()
    conversation = api.chat("hello").json()["conversation_id"]
    from django.db import connection

    held = threading.Event()
    go_on = threading.Event()

    def lock():
        from django.db import transaction

        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE billing_hold IN SHARE ROW EXCLUSIVE MODE")
            held.set()
            go_on.wait(60)

    locker = threading.Thread(target=carrying(lock))
    locker.start()
    assert held.wait(60)
    exchange = api.plane.begin("POST", "/api/chat/", {"prompt": "again", "conversation_id": conversation})
    assert eventually(lambda: len(reservations_of(workspace)) == 2)
    time.sleep(0.1)
    go_on.set()
    exchange.leave()
    locker.join()
    assert eventually(lambda: is_settled(workspace))
    time.sleep(LOCKED_SECONDS)  # the row may have waited for so long that the workspace is taken for locked
    assert api.chat("again", conversation_id=conversation).status_code == 200
    assert_books_agree(workspace)


def test_no_more_calls_of_a_tenant_are_under_way_than_it_may_have(workspace, upstream, model, settings):
    settings.TENANT_STREAMS_MAX = 5
    upstream.last_word_after = threading.Event()
    answers = side_by_side(workspace.api(), 20, max_tokens=8, end=upstream.last_word_after.set, under_way=5)
    statuses = sorted(answer.status_code for answer in answers)
    assert (statuses.count(200), statuses.count(429)) == (5, 15), statuses
    assert len(upstream.calls) == 5
    said = next(answer.json() for answer in answers if answer.status_code == 429)
    assert said["limit"] == 5
    assert_books_agree(workspace)
    assert eventually(lambda: on_loop(lambda: workspace.account.subject_tenant not in here().under_way))


@pytest.mark.on_standin
def test_money_that_others_hold_is_waited_for_first_come_first_served(workspace, upstream, model, settings):
    settings.BUDGET_WAIT_SECONDS = 30
    upstream.last_word_after = threading.Event()
    api = workspace.api()
    workspace.leave(first_hold(output=512) + 3 * (10 * INPUT + 4 * OUTPUT))
    before = workspace.ledger()["spent"]
    exchanges = []
    for number in range(4):
        exchanges.append(api.plane.begin("POST", "/api/chat/", {"prompt": f"hell{number}"}))
        assert eventually(lambda number=number: len(upstream.calls) == 1 and waiting_in(workspace) == number)
    upstream.last_word_after.set()
    answers = [PlaneResponse(exchange) for exchange in exchanges]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [call["messages"][-1]["content"] for call in upstream.calls] == [f"hell{number}" for number in range(4)]
    assert_books_agree(workspace, before=before)


def test_who_stands_behind_a_larger_call_and_is_covered_is_not_refused_with_it(workspace, upstream, model, settings):
    """Their time in the line ends in the same moment, before all of them were asked about."""
    settings.BUDGET_WAIT_SECONDS = 0.4
    workspace.leave(10_000)
    asked = {"app": "test", "action_kind": "test.call", "action_name": "unit"}

    def buy(estimate):
        try:
            with reserve(workspace.tenant, **asked, estimate=estimate) as paid:
                paid.dispatch(lambda: None)
                paid.record(cost=0)
        except BudgetDenied as refused:
            return refused.reason
        return "bought"

    with TenantExecutor(11) as pool, reserve(workspace.tenant, **asked, estimate=6_000):
        large = pool.submit(buy, 9_000)
        assert eventually(lambda: waiting_in(workspace))
        small = [pool.submit(buy, 100) for _ in range(10)]
        assert [one.result() for one in small] == ["bought"] * 10
        assert large.result() == "held_by_others"


def test_who_was_denied_first_is_served_first_though_its_ledgers_are_read_more_slowly(workspace, model, settings):
    settings.BUDGET_WAIT_SECONDS = 30
    workspace.leave(10_000)
    asked = {"app": "test", "action_kind": "test.call", "action_name": "unit", "estimate": 9_000}
    served, go_on = [], threading.Event()

    def buy(name):
        with reserve(workspace.tenant, **asked) as paid:
            served.append(name)
            paid.dispatch(lambda: None)
            paid.record(cost=0)

    def slowly_at_first(came):
        if came is gate.came[0]:
            go_on.wait(60)

    with Gate(settings.CYCLES_ADMIN_URL, only=[workspace]) as gate, TenantExecutor(2) as pool:
        settings.CYCLES_ADMIN_URL = gate.url
        gate.act = slowly_at_first
        with reserve(workspace.tenant, **asked):
            first = pool.submit(buy, "first")
            assert eventually(lambda: gate.came)  # denied, and its ledgers are being read
            second = pool.submit(buy, "second")
            assert eventually(lambda: waiting_in(workspace) == 1)
            go_on.set()
            assert eventually(lambda: waiting_in(workspace) == 2)
        first.result(), second.result()
    assert served == ["first", "second"]


def test_what_does_not_fit_is_fitted_and_says_so(workspace, upstream, model):
    upstream.tokens = ["word "] * 100
    workspace.leave(first_hold(output=20))
    before = workspace.ledger()["spent"]
    answer = workspace.api().chat("hello")
    body = answer.json()
    assert (body["fitted"], answer["X-Budget-Fitted"], body["finish_reason"]) == (True, "20", "budget")
    assert upstream.calls[0]["max_tokens"] == 20
    assert workspace.settled(lines=1)[0].cost == true_cost(upstream.spent)
    assert_books_agree(workspace, before=before)


@pytest.mark.parametrize("path", ["/api/chat/", "/v1/chat/completions"])
def test_money_for_a_shorter_answer_that_others_hold_is_said_to_be_held(workspace, upstream, model, settings, path):
    """The same request is paid for as soon as they give it back: nobody is to be told that it never fits."""
    settings.BUDGET_WAIT_SECONDS = 0.4
    api = workspace.api()
    ask = {"prompt": "hello"}
    if path.startswith("/v1"):
        ask = {"model": settings.LLM_MODEL, "messages": [{"role": "user", "content": "hello"}]}
    workspace.leave(left := first_hold(output=20))
    with reserve(workspace.tenant, app="test", action_kind="test.call", action_name="unit", estimate=left):
        refused = api.post(path, ask)
    answer = refused.json()
    if path.startswith("/v1"):
        assert (refused.status_code, answer["error"]["code"]) == (429, "budget_held"), answer
    else:
        assert (refused.status_code, answer["reason"]) == (402, "held_by_others"), answer
    assert upstream.calls == []
    assert api.post(path, ask).status_code == 200


def test_money_for_a_shorter_answer_that_another_takes_first_is_waited_for(
    workspace, upstream, model, settings, lossy, authority
):
    """It was refused at once as held by others, which is to be said only to who has waited."""
    settings.BUDGET_WAIT_SECONDS = 30
    account = workspace.account
    other = RuntimeCaller(authority.runtime_url, account.subject_tenant, unseal(account.sealed_key))
    api, taken = workspace.api(), []
    workspace.leave(left := first_hold(output=20))
    # Between its look at the ledgers and what it asks for by them.
    take = {"/reservations": lambda: taken.append(other.hold(left))}
    lossy.after["/reservations"] = lambda: lossy.before.update(take)
    exchange = api.plane.begin("POST", "/api/chat/", {"prompt": "hello"})
    assert eventually(lambda: taken and (waiting_in(workspace) or exchange.is_over))
    assert not exchange.is_over, PlaneResponse(exchange).json()
    assert other.release(taken[0]).status_code == 200
    answer = PlaneResponse(exchange)
    assert (answer.status_code, answer["X-Budget-Fitted"]) == (200, "20")
    workspace.settled(lines=1)


def test_a_plan_that_does_not_fit_refuses(workspace, upstream, model, monkeypatch):
    from dataclasses import replace

    from billing.plans import PLANS

    monkeypatch.setitem(PLANS, "trial", replace(PLANS["trial"], fits=False))
    workspace.leave(first_hold(output=20))
    refused = workspace.api().chat("hello")
    assert (refused.status_code, refused.json()["reason"]) == (402, "does_not_fit")
    assert upstream.calls == []


def test_input_is_counted_where_the_model_s_server_counts(workspace, upstream, model):
    upstream.tokenizer = 10
    counted = 10 + 16
    workspace.leave(counted * INPUT + 8 * OUTPUT)
    answer = workspace.api().chat("hello", max_tokens=8)
    assert answer.status_code == 200, answer.json()
    assert answer.json()["fitted"] is False


def test_input_is_counted_also_for_those_who_wait_in_line(workspace, upstream, model, settings):
    settings.BUDGET_WAIT_SECONDS = 30
    upstream.tokenizer, upstream.delay_first = 10, 0.4
    need = (10 + 16) * INPUT + 8 * OUTPUT
    workspace.leave(need + 4 * (10 * INPUT + 4 * OUTPUT))
    answers = side_by_side(workspace.api(), 4, max_tokens=8)
    assert [answer.status_code for answer in answers] == [200] * 4


def test_input_is_counted_also_for_whoever_was_never_the_first_in_line(workspace, upstream, model, settings):
    """Behind a larger call they were refused what the budget covered: by a bound ten times as high as their input."""
    # A model's server that is some way off: meanwhile the time of those behind ends.
    settings.BUDGET_WAIT_SECONDS, upstream.tokenizer, many = 0.4, lambda body: time.sleep(0.3) or 10, 4
    api, need, held = workspace.api(), (10 + 16) * INPUT + 8 * OUTPUT, first_hold()
    workspace.leave(many * need + held)
    before = workspace.ledger()["spent"]
    asked = {"app": "test", "action_kind": "test.call", "action_name": "unit"}
    with TenantExecutor(1) as pool, reserve(workspace.tenant, **asked, estimate=held):
        large = pool.submit(reserve, workspace.tenant, **asked, estimate=many * need + held)
        assert eventually(lambda: waiting_in(workspace))
        answers = side_by_side(api, many, max_tokens=8)
        assert [answer.status_code for answer in answers] == [200] * many
        assert not any(answer.json()["fitted"] for answer in answers)
        with pytest.raises(BudgetDenied):
            large.result()
    assert_books_agree(workspace, before=before)


def test_the_last_of_a_budget_can_be_spent_but_for_one_first_hold(workspace, upstream, trusted):
    upstream.tokens = ["word "] * 20
    api = workspace.api()
    workspace.leave(first_hold() + 10 * (10 * INPUT + 20 * OUTPUT))
    while api.chat("hello").status_code == 200:
        assert len(upstream.calls) < 40
    assert workspace.ledger()["remaining"] < first_hold()


def test_a_reserve_that_is_never_answered_is_given_up_in_the_end_with_an_error(workspace, monkeypatch, caplog, lossy):
    monkeypatch.setattr(recovery, "RECOVER_SECONDS", 1.0)
    lossy.refuse["/reservations"] = 1_000
    assert workspace.api().chat("hello").status_code == 503
    assert eventually(lambda: "may hold money until it expires" in caplog.text)
    assert Hold.objects.filter(account=workspace.account).count() == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b'{"decision": "ALLOW", "reservation_id": "\\ud800"}',
        b'{"decision": "ALLOW", "reservation_id": "\\u0000"}',
        b'{"decision": "ALLOW", "reservation_id": "%s"}' % (b"x" * 201),
        b'{"decision": "ALLOW", "reservation_id": "x", "remaining_ttl_ms": 1%s}' % (b"0" * 400),
    ],
    ids=["deep", "surrogate", "null", "long", "for ever"],
)
def test_an_answer_to_a_reserve_that_cannot_be_kept_is_no_grant(workspace, upstream, model, settings, answer):
    with Gate(settings.CYCLES_BASE_URL, only=[workspace]) as gate:
        settings.CYCLES_BASE_URL = gate.url
        left = [answer]
        gate.act = lambda came: (200, left.pop()) if left else None
        response = workspace.api().chat("hello")
        assert (response.status_code, response.json()["error"]) == (503, "authority_unavailable")
        assert eventually(lambda: len(gate.came) >= 3)  # asked for again, and given back
        assert eventually(lambda: is_settled(workspace))
    assert upstream.calls == []
