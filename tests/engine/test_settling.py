"""Settling: once, by what was used, whatever the authority, the database or the builder's own code do meanwhile."""

import gc
import threading
import time

import psycopg
import pytest
from django.db import connection, transaction
from psycopg import OperationalError

from billing.engine.call import Call
from billing.engine.loop import run
from billing.engine.store import Store
from billing.guard import Outcome, current_reservation, guarded, reserve
from billing.models import Hold
from billing.usage.models import UsageLine
from chat import calls
from chat.errors import ModelFailed
from tenants.connections import own_connection_params
from tenants.logs import WithTenant
from tests.support.authority import AuthorityProbe
from tests.support.cast import events_of
from tests.support.money import (
    INPUT,
    OUTPUT,
    assert_books_agree,
    eventually,
    is_settled,
    reservations_of,
    true_cost,
)
from tests.support.plane import PlaneResponse

MESSAGES = [{"role": "user", "content": "hello"}]
TRUE = 10 * INPUT + 4 * OUTPUT


@pytest.fixture
def operator(authority):
    probe = AuthorityProbe(authority)
    yield probe
    probe.close()


def begin(workspace, **fields):
    return workspace.api().plane.begin("POST", "/api/chat/", {"prompt": "hello", **fields})


def under_way(workspace):
    return Hold.objects.filter(account=workspace.account).exists()


# --- the authority refuses for a while ------------------------------------------------------------------------------


@pytest.mark.on_standin
def test_a_call_of_a_tenant_suspended_while_it_streams_is_paid_once(workspace, upstream, model, operator):
    upstream.last_word_after = threading.Event()
    exchange = begin(workspace)
    assert eventually(lambda: under_way(workspace))
    operator.change_tenant(workspace.account.subject_tenant, status="SUSPENDED")
    upstream.last_word_after.set()
    answer = PlaneResponse(exchange).json()
    assert (answer["cost"]["microcents"], answer["budget"]) == (TRUE, None)
    assert under_way(workspace)
    operator.change_tenant(workspace.account.subject_tenant, status="ACTIVE")
    assert eventually(lambda: is_settled(workspace), 30)
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("exact", TRUE)
    assert_books_agree(workspace)


@pytest.mark.on_standin
def test_a_frozen_ledger_takes_the_commit_of_a_call_under_way(workspace, upstream, model, operator):
    upstream.last_word_after = threading.Event()
    exchange = begin(workspace)
    assert eventually(lambda: under_way(workspace))
    operator.freeze(workspace.account.scope)
    upstream.last_word_after.set()
    assert PlaneResponse(exchange).json()["outcome"] == "exact"
    assert workspace.api().chat("more").status_code == 403
    operator.freeze(workspace.account.scope, frozen=False)
    assert_books_agree(workspace)


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k-1"}], ids=["plain", "under a key"])
def test_a_row_that_was_written_unheard_is_gone_before_the_authority_takes_its_money_back(
    workspace, upstream, model, lossy, monkeypatch, headers
):
    fetch = Store.fetch

    async def breaking(self, query, params=None):
        rows = await fetch(self, query, params)
        if "INSERT INTO public.billing_hold" in query:
            monkeypatch.setattr(Store, "fetch", fetch)
            raise OperationalError("the connection broke before the answer")
        return rows

    monkeypatch.setattr(Store, "fetch", breaking)
    lossy.refuse["/release"] = 1_000
    response = workspace.api().post("/api/chat/", {"prompt": "hello"}, headers=headers)
    assert (response.status_code, upstream.calls) == (503, [])
    # Dying now, the process would leave a row that says that a model was called, and the sweep would charge for it.
    assert eventually(lambda: not under_way(workspace))
    assert workspace.ledger()["reserved"] > 0
    assert workspace.api().post("/api/chat/", {"prompt": "hello"}, headers=headers).status_code == 200
    lossy.refuse.clear()
    assert [line.cost for line in workspace.settled(lines=1)] == [TRUE]


@pytest.mark.on_standin
def test_a_commit_past_the_lease_is_an_event_once(workspace, upstream, lossy):
    lossy.refuse["/extend"] = 1_000
    hold = reserve(
        workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000, ttl_ms=3_000, grace_period_ms=0
    )
    hold.dispatch(lambda: None)
    hold.record(cost=3_000)
    assert eventually(lambda: reservations_of(workspace)[0]["status"] == "EXPIRED", 30)
    assert workspace.ledger()["reserved"] == 0
    lossy.lose["/events"] = 1  # its first answer is lost: the repeat must not book it again
    said = []

    def look():
        """Dying here, the process leaves what its row says: the sweep repeats the event, and it must be the same."""
        with psycopg.connect(**own_connection_params()) as own:
            query = "SELECT is_final, used, outcome FROM public.billing_hold WHERE id = %s"
            said.extend(own.execute(query, [hold.id]).fetchall())

    lossy.before["/events"] = look
    hold.settle()
    assert eventually(lambda: not under_way(workspace))
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.outcome) == (3_000, "exact")
    assert workspace.ledger()["spent"] == 3_000
    assert said == [(True, 3_000, "exact")]


def test_a_late_event_that_the_ledger_cannot_take_is_loss_and_the_tenant_can_go_on(workspace, upstream, model, lossy):
    lossy.refuse["/extend"] = 1_000
    workspace.leave(5_000)
    before = workspace.ledger()["spent"]
    hold = reserve(
        workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000, ttl_ms=3_000, grace_period_ms=0
    )
    hold.dispatch(lambda: None)
    hold.record(cost=4_000)
    assert eventually(lambda: reservations_of(workspace)[0]["status"] == "EXPIRED", 30)
    workspace.leave(1_000)  # sold to another meanwhile
    spent = workspace.ledger()["spent"]
    hold.settle()
    assert eventually(lambda: not under_way(workspace))
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.overrun) == (1_000, 3_000)
    assert workspace.ledger()["spent"] == spent + 1_000 == before + 5_000
    from billing.topups import top_up

    top_up(workspace.account, amount=100_000_000, key="more")
    assert workspace.api().chat("hello").status_code == 200


def test_a_late_commit_on_a_frozen_ledger_waits_for_the_thaw(workspace, upstream, lossy, operator):
    lossy.refuse["/extend"] = 1_000
    hold = reserve(
        workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000, ttl_ms=3_000, grace_period_ms=0
    )
    hold.dispatch(lambda: None)
    hold.record(cost=3_000)
    assert eventually(lambda: reservations_of(workspace)[0]["status"] == "EXPIRED", 30)
    operator.freeze(workspace.account.scope)
    hold.settle()
    assert eventually(lambda: Hold.objects.get(account=workspace.account).is_final)
    assert workspace.lines() == []
    operator.freeze(workspace.account.scope, frozen=False)
    assert eventually(lambda: not under_way(workspace), 30)
    assert [line.cost for line in workspace.lines()] == [3_000]
    assert workspace.ledger()["spent"] == 3_000


@pytest.mark.on_standin
@pytest.mark.parametrize("how", ["lose", "refuse"])
def test_a_commit_whose_answer_is_lost_is_charged_once(workspace, upstream, model, lossy, how):
    getattr(lossy, how)["/commit"] = 2
    answer = workspace.api().chat("hello").json()
    assert answer["cost"]["microcents"] == TRUE
    assert_books_agree(workspace)
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("exact", TRUE)


def test_what_is_released_is_free_though_its_release_is_lost_at_first(workspace, upstream, model, lossy):
    upstream.status = 503
    lossy.refuse["/release"] = 2
    assert workspace.api().chat("hello").status_code == 503
    assert eventually(lambda: is_settled(workspace)), workspace.ledger()
    assert [line.outcome for line in workspace.lines()] == ["none"]


def test_a_dropped_reservation_is_free_though_its_release_is_lost_at_first(workspace, app, lossy):
    lossy.refuse["/release"] = 2
    hold = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000)
    del hold
    gc.collect()
    assert eventually(lambda: is_settled(workspace)), workspace.ledger()


def test_a_commit_that_takes_long_leaves_the_last_event_without_balances(workspace, upstream, model, lossy):
    api = workspace.api()
    api.chat("hello")  # a key's first call may be slow
    go_on = threading.Event()
    lossy.before["/commit"] = lambda: go_on.wait(60)
    name, facts = events_of(api.chat("hello", stream=True))[-1]
    assert (name, facts["budget"], facts["cost"]["microcents"]) == ("done", None, TRUE)
    go_on.set()
    assert_books_agree(workspace)


def test_a_failed_extension_does_not_end_a_call(workspace, upstream, model, lossy):
    lossy.refuse["/extend"] = 1
    hold = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000, ttl_ms=16_000)
    lapsed = []
    hold.on_lapse = lambda: lapsed.append(True)
    hold.dispatch(lambda: None)
    assert eventually(lambda: [path for _, path in lossy.seen if path.endswith("/extend")][1:], 40)
    assert eventually(lambda: hold.lease_left() > 8)
    assert lapsed == []
    hold.record(cost=1_000)
    hold.settle()
    assert_books_agree(workspace)


def test_money_is_kept_held_while_the_database_hangs(workspace, app):
    hold = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000, ttl_ms=12_000)
    hold.dispatch(lambda: None)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE billing_process IN ACCESS EXCLUSIVE MODE")  # no sign of life can be written
        until = time.monotonic() + 14
        while time.monotonic() < until:
            assert hold.lease_left() > 0
            time.sleep(0.2)
    hold.record(cost=1_000)
    hold.settle()
    assert_books_agree(workspace)


# --- once ------------------------------------------------------------------------------------------------------------


def test_settling_twice_charges_once(workspace, upstream):
    hold = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000)
    hold.dispatch(lambda: None)
    hold.record(cost=2_000)
    hold.settle()
    hold.record(cost=5_000)
    hold.settle()
    hold._call.settle(hold._use.final())
    assert [line.cost for line in workspace.settled(lines=1)] == [2_000]
    assert_books_agree(workspace)


@pytest.mark.parametrize("dispatched", [False, True])
def test_a_reservation_that_is_dropped_is_settled_by_what_it_said(workspace, upstream, dispatched):
    hold = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000)
    if dispatched:
        hold.dispatch(lambda: None)
        hold.record(cost=1_000)
    del hold
    gc.collect()
    assert eventually(lambda: is_settled(workspace))
    assert [line.cost for line in workspace.lines()] == ([1_000] if dispatched else [])
    assert_books_agree(workspace)


def test_a_call_that_is_over_leaves_nothing_that_only_the_collector_frees(workspace, upstream, model):
    """The plane collects rarely, for what it costs: all that a call knew, its prompt too, would stay until then."""
    api, bare = workspace.api(), workspace.api(alone=True)
    gc.collect()
    gc.disable()
    try:
        for stream in (False, True):
            assert api.chat("hello", stream=stream).content
            body = {"model": model, "messages": MESSAGES, "stream": stream}
            assert bare.post("/v1/chat/completions", body).content
        workspace.settled(lines=4)
        whose = workspace.account.subject_tenant
        assert eventually(lambda: not [one for one in gc.get_objects() if isinstance(one, Call) and is_of(one, whose)])
    finally:
        gc.enable()


def is_of(call, subject_tenant):
    return call.payer.subject_tenant == subject_tenant


# --- the builder's own -----------------------------------------------------------------------------------------------


def test_what_is_to_be_kept_is_kept_inside_the_tenant_after_settling(workspace, upstream, model):
    seen = []
    with workspace.scope():
        calls.complete(MESSAGES, app="haiku", keep=lambda completion: seen.append(UsageLine.objects.get().cost))
    assert eventually(lambda: seen)
    assert seen == [TRUE]


def test_a_keep_that_raises_changes_neither_money_nor_answer(workspace, upstream, model, caplog):
    def keep(completion):
        raise RuntimeError("no room")

    guarded_haiku = guarded(50_000_000, app="haiku")(lambda: calls.complete(MESSAGES, keep=keep).cost)
    caplog.handler.addFilter(WithTenant())  # as the project's own handler has it
    with workspace.scope():
        assert calls.complete(MESSAGES, app="haiku", keep=keep).cost == TRUE
        assert guarded_haiku() == TRUE
    told = eventually(lambda: [line for line in caplog.records if "could not be" in line.getMessage()][1:])
    # On the engine's loop nothing is bound, and a builder looks for what went wrong by its workspace.
    assert {line.tenant for line in caplog.records if "could not be" in line.getMessage()} == {workspace.slug}, told
    assert_books_agree(workspace)


def test_an_option_that_there_is_not_is_named_with_those_that_there_are(workspace, upstream, model):
    with workspace.scope():
        for buys in (calls.complete, calls.stream):
            with pytest.raises(TypeError, match=r"^tools: .* max_tokens.* /v1"):
                buys(MESSAGES, tools=[])
    assert upstream.calls == []


def test_an_iterator_of_words_that_is_closed_is_paid_up_to_there(workspace, upstream, model):
    upstream.tokens, upstream.last_word_after = ["word "] * 2, threading.Event()
    with workspace.scope():
        words = calls.stream(MESSAGES, app="haiku")
        assert next(words).startswith("word")
        words.close()
    assert eventually(lambda: workspace.lines())
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "estimated"
    assert 0.6 <= line.cost / true_cost(upstream.spent) <= 1.5
    assert_books_agree(workspace)


def test_an_iterator_of_words_that_is_dropped_cuts_its_model(workspace, upstream, model):
    upstream.tokens, upstream.delay_between = ["word "] * 200, 0.02
    with workspace.scope():
        words = calls.stream(MESSAGES, app="haiku")
        next(words)
        del words
        gc.collect()
    assert upstream.wait_until(lambda up: up.aborted == 1, 20)
    assert_books_agree(workspace)


def test_a_guarded_call_of_a_model_that_is_down_costs_nothing(workspace, upstream, model):
    upstream.status = 503

    @guarded(50_000_000, app="haiku")
    def haiku():
        return calls.complete(MESSAGES)

    with workspace.scope(), pytest.raises(ModelFailed, match=r"Nothing was charged\."):
        haiku()
    assert_books_agree(workspace)
    assert workspace.ledger()["spent"] == 0


def test_two_answers_in_one_guarded_function_are_added_up(workspace, upstream, model):
    @guarded(50_000_000, app="haiku")
    def haiku():
        return [calls.complete(MESSAGES), calls.complete(MESSAGES)]

    with workspace.scope():
        haiku()
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.outcome, line.tokens_output) == (2 * TRUE, "exact", 8)
    assert_books_agree(workspace)


def test_what_an_answer_used_is_kept_when_the_function_fails_after_it(workspace, upstream, model):
    @guarded(50_000_000, app="haiku")
    def haiku():
        calls.complete(MESSAGES)
        raise KeyError("after the call")

    with workspace.scope(), pytest.raises(KeyError):
        haiku()
    assert [line.cost for line in workspace.settled(lines=1)] == [TRUE]


def test_the_second_model_call_gets_no_more_than_the_first_left(workspace, upstream, model):
    upstream.tokens = ["word "] * 500
    estimate = 400 * INPUT + 60 * OUTPUT

    @guarded(estimate, app="haiku")
    def haiku():
        first = calls.complete(MESSAGES, max_tokens=40)
        return first, calls.complete(MESSAGES, max_tokens=512)

    with workspace.scope():
        haiku()
    (line,) = workspace.settled(lines=1)
    assert line.cost <= estimate
    assert (line.overrun, line.outcome) == (0, "exact")
    assert_books_agree(workspace)


def test_a_model_call_without_a_written_hold_raises(workspace, upstream, model):
    from billing.engine.current import current

    hold = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=50_000_000)
    token = current.set(hold)
    try:
        with pytest.raises(RuntimeError):
            calls.complete(MESSAGES)
    finally:
        current.reset(token)
        hold.settle()
    assert upstream.calls == []
    assert current_reservation() is None
    assert_books_agree(workspace)


def test_a_call_inside_a_transaction_is_refused_before_anything_is_held(workspace, upstream, model):
    with workspace.scope(), transaction.atomic(), pytest.raises(RuntimeError):
        reserve(app="a", action_kind="k", action_name="n", estimate=5_000)
    assert reservations_of(workspace) == []


# --- the database ----------------------------------------------------------------------------------------------------


def test_a_line_is_written_when_the_database_is_back(workspace, upstream, model):
    upstream.last_word_after = threading.Event()
    exchange = begin(workspace)
    assert eventually(lambda: under_way(workspace))
    from billing.engine.loop import here

    async def lose_connections():
        await here().store.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> 'authority'"
            " AND query NOT LIKE '%%authority%%' AND state = 'idle'"
        )

    run(lose_connections())
    connection.close()
    upstream.last_word_after.set()
    answer = PlaneResponse(exchange).json()
    assert answer["cost"]["microcents"] == TRUE
    assert eventually(lambda: is_settled(workspace), 30)
    assert [line.cost for line in workspace.settled(lines=1)] == [TRUE]
    assert workspace.lines()[0].outcome == Outcome.EXACT
