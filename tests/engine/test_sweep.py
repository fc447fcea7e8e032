"""The sweep: what a dead process left is settled by its rows, once, and nothing of it stays behind."""

import json
import threading
import time
import uuid
from contextlib import suppress
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.utils import timezone

from billing import settlement
from billing.engine.loop import here
from billing.guard import reserve
from billing.keys import unseal
from billing.models import Hold, Process
from billing.settlement import sweep
from tenants.threads import carrying
from tests.support.authority import AuthorityProbe, RuntimeCaller
from tests.support.money import INPUT, OUTPUT, assert_books_agree, eventually, on_loop, reservations_of, true_cost
from tests.support.plane import PlaneProcess

ESTIMATE = 5_000
# Dropped, a reservation would be settled by its own process, which is to be dead here.
_kept: list[Any] = []


@pytest.fixture(autouse=True)
def _end_what_was_kept():
    yield
    while _kept:
        _kept.pop().settle()


@pytest.fixture
def runtime(workspace, authority):
    """The workspace's own hand at the authority."""
    account = workspace.account
    return RuntimeCaller(authority.runtime_url, account.subject_tenant, unseal(account.sealed_key))


@pytest.fixture
def operator(authority):
    probe = AuthorityProbe(authority)
    yield probe
    probe.close()


def left_behind(workspace, **row):
    """A dispatched hold whose process is gone, and the reservation of the process that made it here."""
    hold = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=ESTIMATE)
    hold.dispatch(lambda: None)
    Hold.objects.filter(pk=hold.id).update(process=uuid.uuid4(), **row)
    _kept.append(hold)
    return hold


def swept(workspace):
    """Sweep as a person would; the workspace's lines afterwards."""
    settlement._memory.again.clear()
    sweep(at_once=True)
    return workspace.lines()


# --- by what the authority says of the reservation ------------------------------------------------------------------


@pytest.mark.on_standin
def test_an_active_reservation_is_committed_by_what_the_row_says(workspace, app):
    left_behind(workspace, used=1_200, tokens_input=12, model="m")
    (line,) = swept(workspace)
    assert (line.outcome, line.cost, line.estimate, line.tokens_input, line.model) == ("swept", 1_200, 5_000, 12, "m")
    assert_books_agree(workspace)


def test_a_decided_call_is_written_as_it_was_decided(workspace, app):
    left_behind(
        workspace, used=700, is_final=True, outcome="exact", tokens_input=1, tokens_output=2, tokens_cached=3, overrun=9
    )
    (line,) = swept(workspace)
    assert (line.outcome, line.cost, line.overrun) == ("exact", 700, 9)
    assert (line.tokens_input, line.tokens_output, line.tokens_cached) == (1, 2, 3)
    assert_books_agree(workspace)


def test_a_committed_reservation_is_believed_and_its_line_made_again(workspace, runtime):
    hold = left_behind(workspace, used=700)
    told = {"outcome": "exact", "model": "m", "tokens_input": 10, "tokens_output": 20, "tokens_cached": 4}
    answer = runtime.commit(reservations_of(workspace)[0]["reservation_id"], 3_300, metadata=told)
    assert answer.status_code == 200, answer.text
    (line,) = swept(workspace)
    assert (line.hold, line.outcome, line.cost) == (hold.id, "exact", 3_300)
    assert (line.model, line.tokens_input, line.tokens_output, line.tokens_cached) == ("m", 10, 20, 4)
    assert_books_agree(workspace)


def test_a_released_reservation_is_a_line_of_nothing(workspace, runtime):
    left_behind(workspace, used=700)
    assert runtime.release(reservations_of(workspace)[0]["reservation_id"]).status_code == 200
    (line,) = swept(workspace)
    assert (line.outcome, line.cost) == ("none", 0)
    assert_books_agree(workspace)


def test_an_expired_reservation_is_one_event_however_often_it_is_swept(workspace, lossy):
    lossy.refuse["/extend"] = 1_000
    hold = reserve(
        workspace.tenant, app="a", action_kind="k", action_name="n", estimate=5_000, ttl_ms=3_000, grace_period_ms=0
    )
    hold.dispatch(lambda: None)
    Hold.objects.filter(pk=hold.id).update(process=uuid.uuid4(), used=1_500)
    assert eventually(lambda: reservations_of(workspace)[0]["status"] == "EXPIRED", 30)
    lossy.lose["/events"] = 1
    assert swept(workspace) == []
    assert workspace.ledger()["spent"] == 1_500, "booked, but nobody heard of it"
    (line,) = swept(workspace)
    assert (line.outcome, line.cost) == ("swept", 1_500)
    assert swept(workspace) == [line]
    # The process was only asleep, such as with its whole machine, and says something else of the same call.
    hold.record(cost=4_000)
    hold.settle()
    assert eventually(lambda: not on_loop(lambda: here().under_way[workspace.account.subject_tenant]))
    assert workspace.lines() == [line]
    assert workspace.ledger()["spent"] == 1_500


@pytest.mark.on_standin
def test_a_suspended_tenants_rows_wait_for_its_return(workspace, app, operator):
    left_behind(workspace, used=900)
    operator.change_tenant(workspace.account.subject_tenant, status="SUSPENDED")
    assert swept(workspace) == []
    assert workspace.holds() == 1
    operator.change_tenant(workspace.account.subject_tenant, status="ACTIVE")
    assert [line.cost for line in swept(workspace)] == [900]
    assert_books_agree(workspace)


def test_rows_that_wait_for_their_tenants_return_keep_nobody_from_their_turn(
    workspace, globex, app, operator, monkeypatch
):
    monkeypatch.setattr(settlement, "MOST_AT_ONCE", 1)
    monkeypatch.setattr(settlement._memory, "steady_since", time.monotonic() - settlement.STEADY_SECONDS)
    settlement._memory.again.clear()
    waits = left_behind(workspace, used=900)
    Hold.objects.filter(pk=waits.id).update(created_at=timezone.now() - timedelta(days=1))
    neighbours = left_behind(globex, used=700)
    # What other tests may have left is younger.
    Hold.objects.filter(pk=neighbours.id).update(created_at=timezone.now() - timedelta(hours=23))
    operator.change_tenant(workspace.account.subject_tenant, status="SUSPENDED")
    assert sweep().waiting == 1
    assert sweep().waiting == 1
    assert [line.cost for line in globex.lines() if line.hold == neighbours.id] == [700]
    operator.change_tenant(workspace.account.subject_tenant, status="ACTIVE")
    assert [line.cost for line in swept(workspace)] == [900]


@pytest.mark.on_standin
def test_a_closed_tenants_rows_end(workspace, app, operator):
    left_behind(workspace, used=900)
    operator.change_tenant(workspace.account.subject_tenant, status="CLOSED")
    (line,) = swept(workspace)
    assert (line.cost, line.overrun, workspace.holds()) == (0, 900, 0)


# --- slices ---------------------------------------------------------------------------------------------------------


def slice_of(runtime, hold, n, amount):
    """Reserve a further slice as the process did before it died; its reservation's id."""
    row = Hold.objects.get(pk=hold.id)
    answer = runtime.http.post(
        "/v1/reservations",
        json={
            "idempotency_key": f"{hold.id}:{n}",
            "subject": row.subject,
            "action": {"kind": row.action_kind, "name": row.action_name},
            "estimate": {"unit": "USD_MICROCENTS", "amount": amount},
            "ttl_ms": 60_000,
            "overage_policy": "ALLOW_IF_AVAILABLE",
        },
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["reservation_id"]


def test_slices_are_settled_in_order_and_the_rest_is_released(workspace, runtime):
    hold = left_behind(workspace)
    slices = [{"n": n, "amount": 1_000, "reservation_id": slice_of(runtime, hold, n, 1_000)} for n in (2, 3)]
    Hold.objects.filter(pk=hold.id).update(slices=slices, used=5_400)
    (line,) = swept(workspace)
    assert (line.cost, line.estimate) == (5_400, 7_000)
    rows = [(one["status"], (one.get("committed") or {}).get("amount")) for one in reservations_of(workspace)]
    assert rows == [("COMMITTED", 5_000), ("COMMITTED", 400), ("RELEASED", None)]
    assert_books_agree(workspace)


def test_a_slice_that_was_granted_but_never_written_down_is_found_and_released(workspace, runtime):
    hold = left_behind(workspace)
    slice_of(runtime, hold, 2, 1_000)
    Hold.objects.filter(pk=hold.id).update(slices=[{"n": 2, "amount": 1_000, "reservation_id": None}], used=300)
    assert [line.cost for line in swept(workspace)] == [300]
    assert [one["status"] for one in reservations_of(workspace)] == ["COMMITTED", "RELEASED"]
    assert_books_agree(workspace)


def test_a_slice_that_was_named_and_never_asked_for_leaves_nothing_held(workspace, app):
    left_behind(workspace, slices=[{"n": 2, "amount": 1_000, "reservation_id": None}], used=300)
    assert [line.cost for line in swept(workspace)] == [300]
    assert_books_agree(workspace)


# --- who settles ----------------------------------------------------------------------------------------------------


def test_two_sweeps_at_once_write_one_line(workspace, app):
    left_behind(workspace, used=900)
    threads = [threading.Thread(target=carrying(lambda: sweep(at_once=True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line.cost for line in workspace.lines()] == [900]
    assert_books_agree(workspace)


def test_a_process_that_was_only_silent_finds_its_call_settled_and_changes_nothing(workspace, app):
    hold = left_behind(workspace, used=900)
    (line,) = swept(workspace)
    hold.record(cost=4_000)
    hold.settle()
    assert workspace.lines() == [line]
    assert (line.cost, workspace.ledger()["spent"]) == (900, 900)


def test_a_living_process_s_rows_are_left_alone(workspace, app):
    hold = reserve(workspace.tenant, app="a", action_kind="k", action_name="n", estimate=ESTIMATE)
    hold.dispatch(lambda: None)
    assert swept(workspace) == []
    assert workspace.holds() == 1
    hold.record(cost=1_000)
    hold.settle()
    assert_books_agree(workspace)


def test_a_row_that_cannot_be_settled_is_left_alone_longer_each_time(workspace, app, operator, monkeypatch):
    hold = left_behind(workspace, used=900)
    operator.change_tenant(workspace.account.subject_tenant, status="SUSPENDED")
    settlement._memory.again.clear()
    pauses = []
    for _ in range(3):
        sweep(at_once=True)
        pauses.append(settlement._memory.again[hold.id][1])
    assert pauses == [5.0, 10.0, 20.0]
    operator.change_tenant(workspace.account.subject_tenant, status="ACTIVE")
    assert [line.cost for line in swept(workspace)] == [900]
    assert hold.id not in settlement._memory.again


# --- killed ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plane(database_url, authority, upstream, model):
    told = {"LLM_BASE_URL": upstream.base_url, "LLM_MODEL": model}
    told["LLM_PRICES"] = json.dumps({model: {"input": 10, "output": 40}})
    with PlaneProcess(database_url=database_url, authority=authority, **told) as plane:
        yield plane


def stream_until(client, seen):
    """Read a stream and note its events in `seen` as they come, until its server is gone."""
    with (
        suppress(httpx.HTTPError),
        client.stream("POST", "/api/chat/", json={"prompt": "hello", "stream": True}) as got,
    ):
        for line in got.iter_lines():
            if line.startswith("event:"):
                seen.append(line)


def killed_under_streams(plane, workspace, key, many, when):
    """Start streams, end their plane with kill -9 once `when` is true, and let its process look silent."""
    seen = []
    threads = [threading.Thread(target=stream_until, args=(plane.client(workspace, key), seen)) for _ in range(many)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: when(seen), 40)
    plane.process.kill()
    plane.process.wait()
    for thread in threads:
        thread.join(60)
    holds = Hold.objects.filter(account=workspace.account)
    before = timezone.now() - timedelta(minutes=1)
    Process.objects.filter(pk__in=holds.values_list("process")).update(seen_at=before)
    return holds.count()


@pytest.mark.slow
@pytest.mark.parametrize("words", [0, 1, 40, 90])
def test_a_plane_that_is_killed_under_five_streams_leaves_nothing_behind(workspace, upstream, plane, words):
    key, taught = workspace.key(), 0
    if words:
        taught = teach(plane, workspace, key, upstream)
    upstream.tokens, upstream.delay_between = ["word "] * 400, 0.03
    upstream.delay_first = 60 if words == 0 else 0.0
    calls = len(upstream.calls)
    left = killed_under_streams(
        plane, workspace, key, 5, lambda seen: len(upstream.calls) >= calls + 5 and len(seen) >= 5 * words
    )
    assert left == 5
    lines = swept(workspace)[taught:]
    assert [line.outcome for line in lines] == ["swept"] * 5
    used = upstream.spent[calls:]
    for line in lines:
        assert line.cost >= 0.7 * 10 * INPUT, "the estimated input at least"
    assert sum(line.cost for line in lines) <= 1.25 * true_cost(used), (lines, used)
    if words > 64:
        assert all(line.tokens_output for line in lines), "what was used so far is written with each slice"
    assert_books_agree(workspace)


def teach(plane, workspace, key, upstream):
    """Past its twenty reports, so that its calls hold slices; how many lines there are by then."""
    upstream.tokens, upstream.delay_between = ["word "] * 8, 0.0
    with plane.client(workspace, key) as client:
        for _ in range(20):
            assert client.post("/api/chat/", json={"prompt": "hello"}).status_code == 200
    return len(workspace.settled(lines=20))


def test_a_call_whose_process_died_before_sending_is_swept_at_the_estimated_input(workspace, upstream, model):
    """The row is the same as that of a call whose model was just asked; nobody can tell them apart."""
    upstream.delay_first = 60
    exchange = workspace.api().plane.begin("POST", "/api/chat/", {"prompt": "hello"})
    assert eventually(lambda: Hold.objects.filter(account=workspace.account).exists())
    Hold.objects.filter(account=workspace.account).update(process=uuid.uuid4())
    (line,) = swept(workspace)
    assert (line.outcome, line.tokens_output or 0) == ("swept", 0)
    assert 0.7 <= line.cost / (10 * INPUT) <= 1.4
    assert line.cost < 300 * INPUT + OUTPUT
    exchange.leave()
    assert eventually(lambda: workspace.lines() == [line])
    assert_books_agree(workspace)
