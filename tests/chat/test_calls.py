"""Buying answers as a builder does: complete and stream, alone and under a hold of their own."""

import asyncio
import contextvars
import gc
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from django.db import connection, connections, transaction
from django.http import StreamingHttpResponse

from billing.engine import loop
from billing.engine.loop import run
from billing.errors import NoTenantBound
from billing.guard import NotDispatched, current_reservation, guarded, reserve
from chat.calls import acomplete, astream, complete, stream
from chat.errors import ModelFailed
from chat.history import Message
from tenants.context import bind, current_tenant
from tenants.http import Forbidden
from tenants.users.models import User
from tests.support.authority import authority_variables
from tests.support.money import INPUT, OUTPUT, eventually, true_cost
from tests.support.web import ROOT

pytestmark = pytest.mark.usefixtures("app", "model")

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
PLENTY = 50_000_000


@contextmanager
def autocommit_off():
    connection.set_autocommit(False)
    try:
        yield
    finally:
        connection.rollback()
        connection.set_autocommit(True)


def bought(workspace, function, estimate=PLENTY):
    """What a guarded function gives, called inside the workspace."""
    with workspace.scope():
        return guarded(estimate, app="haiku")(function)()


# --- under an outer hold --------------------------------------------------------------------------------------------


def test_two_answers_at_once_under_one_hold_never_pass_it(workspace, upstream):
    upstream.tokens, upstream.delay_first = ["a"] * 500, 0.3
    hold = 10 * INPUT + 100 * OUTPUT

    def both():
        with ThreadPoolExecutor(2) as threads:
            asked = [threads.submit(contextvars.copy_context().run, complete, HELLO, max_tokens=100) for _ in range(2)]
            return [one.exception() for one in asked]

    failures = bought(workspace, both, hold)
    assert sorted(type(failure).__name__ for failure in failures) == ["Forbidden", "NoneType"]
    (line,) = workspace.settled()
    assert (line.cost, line.overrun) == (true_cost(upstream.spent), 0)


def test_a_hold_with_no_room_for_an_answer_is_said_so(workspace, upstream):
    with pytest.raises(Forbidden, match="leaves no room"):
        bought(workspace, lambda: complete(HELLO), 5_000)
    assert upstream.calls == []
    assert [(line.cost, line.outcome) for line in workspace.settled()] == [(0, "none")]


def test_an_answer_that_is_left_early_under_a_hold_is_paid_up_to_there(workspace, upstream):
    upstream.tokens, upstream.last_word_after = ["word"] * 40, threading.Event()

    def first_word():
        return next(iter(stream(HELLO)))

    assert bought(workspace, first_word).startswith("word")
    (line,) = workspace.settled()
    assert line.outcome == "estimated"
    assert upstream.wait_until(lambda up: up.aborted == 1)
    assert 0 < line.cost <= true_cost(upstream.spent) + 2 * OUTPUT


@pytest.mark.parametrize("later", [lambda: stream(HELLO), lambda: StreamingHttpResponse(stream(HELLO))])
def test_an_answer_that_is_handed_on_unread_is_refused_and_cut(workspace, upstream, later):
    upstream.tokens, upstream.last_word_after = ["word "] * 2, threading.Event()
    with pytest.raises(TypeError, match="work for later"):
        bought(workspace, later)
    (line,) = workspace.settled()
    assert line.cost <= 10 * INPUT + 4 * OUTPUT
    assert upstream.wait_until(lambda up: up.aborted == 1)
    assert upstream.spent[0][1] < 2


def test_an_answer_that_fails_under_way_is_added_before_the_hold_is_settled(workspace, upstream):
    upstream.tokens, upstream.last_word_after = ["word"] * 40, threading.Event()

    def breaks():
        for _ in stream(HELLO):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bought(workspace, breaks)
    (line,) = workspace.settled()
    assert upstream.wait_until(lambda up: up.aborted == 1)
    assert 0 < line.cost <= true_cost(upstream.spent) + 2 * OUTPUT


def test_what_a_reservation_dispatches_is_paid_by_it_and_not_twice(workspace, upstream):
    with workspace.scope(), reserve(app="haiku", action_kind="k", action_name="n", estimate=PLENTY) as paid:
        answer = paid.dispatch(complete, HELLO)
    assert [(line.app, line.cost) for line in workspace.settled()] == [("haiku", answer.cost)]
    assert current_reservation() is None


def test_a_reservation_that_paid_for_an_answer_and_is_dropped_is_settled_by_it(workspace, upstream):
    with workspace.scope():
        paid = reserve(app="haiku", action_kind="k", action_name="n", estimate=PLENTY)
        cost = paid.dispatch(complete, HELLO).cost
    del paid
    gc.collect()
    assert [line.cost for line in workspace.settled(lines=1)] == [cost]


def test_a_hold_does_not_pay_for_another_tenant(workspace, globex, upstream):
    def mixed():
        with globex.scope():
            complete(HELLO)

    with pytest.raises(NotDispatched, match=f"{workspace.slug}'s"):
        bought(workspace, mixed)
    assert upstream.calls == []


def test_messages_that_no_model_takes_cost_nothing_under_a_hold(workspace, upstream):
    with pytest.raises(TypeError):
        bought(workspace, lambda: complete([{"role": "user"}]))
    assert workspace.ledger()["spent"] == 0


# --- what a builder may get wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"max_tokens": 0}, "max_tokens 0: write"),
        ({"max_tokens": -5}, "max_tokens -5: write"),
        ({"max_tokens": 2.5}, "max_tokens 2.5: write"),
        ({"keep": 5}, "keep 5: write"),
        ({"model": 7}, "model 7: write"),
        ({"claim": 5}, "claim 5: write"),
        ({"temperature": "hot"}, "temperature 'hot': write"),
        ({"temperature": float("nan")}, "temperature nan: write"),
        ({"temperature": -1}, "temperature -1: write"),
        ({"messages": "hello"}, "messages: write"),
        ({"messages": None}, "messages: write"),
        ({"messages": [{"role": "user"}]}, "messages: write"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages: write"),
    ],
    ids=str,
)
def test_what_cannot_be_bought_is_refused_in_words_of_its_own(workspace, upstream, odd, says):
    with workspace.scope(), pytest.raises((TypeError, ValueError), match=f"^{says} a "):
        complete(**{"messages": HELLO, **odd})
    assert upstream.calls == []
    assert workspace.settled() == []


def test_a_keep_that_would_never_run_is_refused(workspace):
    async def keep(completion):
        pass

    with workspace.scope(), pytest.raises(TypeError, match="plain function"):
        complete(HELLO, keep=keep)


def test_nobody_to_pay_is_said_with_what_to_do(upstream):
    with pytest.raises(NoTenantBound) as refused:
        complete(HELLO)
    assert "tenant_scope" in refused.value.__notes__[0]
    assert upstream.calls == []


@pytest.mark.parametrize("begin", [transaction.atomic, autocommit_off], ids=["atomic", "autocommit off"])
def test_a_transaction_is_refused_and_an_outer_hold_not_charged_for_it(workspace, upstream, begin):
    def inside():
        with begin():
            connection.ensure_connection()
            complete(HELLO)

    with pytest.raises(RuntimeError, match="transaction"):
        bought(workspace, inside)
    assert upstream.calls == []
    assert workspace.ledger()["spent"] == 0


def test_a_stream_whose_model_fails_before_a_word_is_an_error_at_once(workspace, upstream):
    upstream.status = 500
    with workspace.scope(), pytest.raises(ModelFailed):
        stream(HELLO)
    assert [(line.cost, line.outcome) for line in workspace.settled()] == [(0, "none")]


@pytest.fixture
def pooled(app, monkeypatch):
    connection.close()
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "pool", {"min_size": 1, "max_size": 2})
    yield
    connection.close()
    connection.close_pool()


def test_a_pools_connection_is_given_back_while_a_model_answers(workspace, pooled, upstream):
    mine, seen = connections["default"], []

    def answers(body):
        seen.append(mine.connection)
        return {"content": "Hello, world."}

    upstream.message = answers
    for buy in (complete, lambda messages: "".join(stream(messages))):
        with workspace.scope():
            connection.ensure_connection()
            buy(HELLO)
    assert seen == [None, None]


# --- keep -----------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_kept_in_the_tenant_and_may_buy_again(workspace, upstream):
    kept = []

    def keep(completion):
        with transaction.atomic():
            kept.append((current_tenant().slug, User.objects.count()))
        kept.append((current_reservation(), complete(HELLO, app="again").cost))

    bought(workspace, lambda: complete(HELLO, keep=keep))
    assert eventually(lambda: len(kept) == 2)
    assert kept[0] == (workspace.slug, 1)
    assert kept[1][0] is None
    assert sorted(line.app for line in workspace.settled(lines=2)) == ["again", "haiku"]


def test_a_keep_that_fails_leaves_the_answer_and_the_books_as_they_are(workspace, upstream, caplog):
    def keep(completion):
        raise ZeroDivisionError

    with workspace.scope():
        assert complete(HELLO, keep=keep).text == "Hello, world."
    assert [line.outcome for line in workspace.settled()] == ["exact"]
    assert eventually(lambda: "could not be" in caplog.text)


def test_nothing_is_kept_of_an_answer_that_never_was_and_a_broken_one_says_so(workspace, upstream):
    kept = []
    for failure in ({"status": 500}, {"status": None, "cut_after": 2}):
        vars(upstream).update(failure)
        with workspace.scope(), pytest.raises(ModelFailed):
            complete(HELLO, keep=kept.append)
    assert eventually(lambda: kept)
    assert [(completion.text, completion.finish_reason) for completion in kept] == [("Hello,", "error")]


# --- other event loops ----------------------------------------------------------------------------------------------


def test_a_loop_of_its_own_buys_on_this_processes_engine(workspace, upstream):
    async def buy():
        bind(workspace.tenant)
        return await acomplete(HELLO)

    engines = len(loop._engines)
    assert asyncio.run(buy()).text == "Hello, world."
    assert [line.outcome for line in workspace.settled(lines=1)] == ["exact"]
    assert len(loop._engines) <= max(1, engines)


def test_a_stream_on_a_loop_that_ends_before_it_is_settled_is_refused(workspace, upstream):
    async def buy():
        bind(workspace.tenant)
        await astream(HELLO)

    with pytest.raises(RuntimeError, match="astream is for"):
        asyncio.run(buy())
    assert upstream.calls == []


def test_who_drops_the_words_leaves_the_answer(workspace, upstream):
    upstream.tokens, upstream.last_word_after = ["word "] * 2, threading.Event()

    async def one_word():
        bind(workspace.tenant)
        answering = await astream(HELLO)
        async for _ in answering.events():
            break

    run(one_word())
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "estimated"
    assert line.cost < 20 * OUTPUT


# --- the end of a process -------------------------------------------------------------------------------------------

COMMAND = """
import sys, django
django.setup()
from chat.calls import stream
from tenants.context import tenant_scope
from tenants.models import Tenant
from tenants.users.models import User

def keep(completion):
    User.objects.create(email=f"{len(completion.text)}@kept.example")

with tenant_scope(Tenant.objects.get(slug=sys.argv[1])):
    words = stream([{"role": "user", "content": "hello"}], keep=keep)
    next(words) if sys.argv[2] == "one" else list(words)
"""


@pytest.mark.parametrize("how", ["all", "one"])
def test_a_command_that_ends_with_its_answer_keeps_it(workspace, upstream, model, authority, database_url, how):
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "DATABASE_URL": database_url,
        **authority_variables(authority),
        "LLM_BASE_URL": upstream.base_url,
        "LLM_MODEL": model,
        "LLM_PRICES": json.dumps({model: {"input": 10, "output": 40}}),
    }
    upstream.tokens, upstream.delay_between = ["word "] * 10, 0.05
    upstream.last_word_after = threading.Event() if how == "one" else None
    done = subprocess.run([sys.executable, "-c", COMMAND, workspace.slug, how], env=env, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert len(workspace.settled(lines=1)) == 1
    with workspace.scope():
        (kept,) = User.objects.filter(email__endswith="@kept.example").values_list("email", flat=True)
    assert (int(kept.split("@")[0]) == 50) is (how == "all")


# --- forks ----------------------------------------------------------------------------------------------------------


def in_a_fork(work):
    """Its exit code."""
    connection.close()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_does_not_settle_what_is_its_parents(workspace):
    paid = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=1_000)
    paid.dispatch(lambda: None)
    paid.record(cost=3)

    def settles():
        paid.settle()
        return not paid.pays

    assert in_a_fork(settles) == 0
    assert workspace.ledger()["reserved"] == 1_000
    paid.record(cost=9)
    paid.settle()
    assert [line.cost for line in workspace.settled()] == [9]
