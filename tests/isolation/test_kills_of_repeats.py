"""A plane that dies, or stands still, under a request with an Idempotency-Key: whoever repeats it meets one model call.

The repeat is asked of another plane, this process's own. `FakeUpstream` says how often a model was called.
"""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from billing.engine import repeats
from billing.settlement import sweep
from billing.usage.models import Repeat
from tests.isolation.test_kills import end_backends, locked, waiting_for_a_lock
from tests.support.crash import PROMPT, Reader, kill, model_variables, only_line, swept
from tests.support.jobs import rows, until
from tests.support.lossy import LossyProxy
from tests.support.plane import PlaneProcess, PlaneResponse

pytestmark = pytest.mark.slow

KEY = {"idempotency-key": "k-1"}


@pytest.fixture
def proxy(authority):
    with LossyProxy(authority.runtime_url) as proxy:
        yield proxy


@pytest.fixture
def plane(database_url, authority, proxy, upstream):
    between = SimpleNamespace(runtime_url=proxy.url, admin_url=authority.admin_url)
    # What waits for a lock of ours waits until it is killed.
    variables = {"DJANGO_SETTINGS_MODULE": "tests.support.patient_settings", **model_variables(upstream)}
    with PlaneProcess(database_url=database_url, authority=between, **variables) as plane:
        yield plane


@pytest.fixture
def reader(plane, workspace):
    """Asks the plane under the key."""
    key = workspace.key()

    def ask():
        reader = Reader(plane, workspace, key, headers=KEY)
        return reader

    return ask


def repeat(workspace):
    """The same request, of another plane, under way."""
    return workspace.api().plane.begin("POST", "/api/chat/", {"prompt": PROMPT}, headers=KEY)


def looks_dead(workspace):
    with workspace.scope():
        (row,) = Repeat.objects.all()
    rows("UPDATE public.billing_process SET seen_at = now() - interval '1 minute' WHERE id = %s", row.process)


def assert_lost(response, cost):
    assert (response.status_code, response.json()["error"]) == (409, "idempotency_lost")
    assert (response.json()["cost"] or {}).get("microcents") == cost


def test_killed_before_it_dispatched_the_repeat_makes_the_one_call(workspace, plane, reader, upstream, database_url):
    with locked(database_url, "public.billing_hold"):
        first = reader()
        until(waiting_for_a_lock)
        again = repeat(workspace)
        kill(plane.process)
        end_backends()
    first.join(30)
    looks_dead(workspace)
    assert PlaneResponse(again).status_code == 200
    assert len(upstream.calls) == 1
    assert [line.outcome for line in workspace.lines()] == ["exact"]


def test_killed_under_its_model_the_repeat_learns_what_was_charged(workspace, plane, reader, upstream, monkeypatch):
    monkeypatch.setattr(repeats, "SWEPT_SECONDS", 0.5)
    upstream.hang = True
    first = reader()
    assert upstream.wait_until(lambda up: up.calls, timeout=20)
    again = repeat(workspace)
    kill(plane.process)
    first.join(30)
    looks_dead(workspace)
    # Nobody has settled it yet, and it is not known what it cost.
    assert_lost(PlaneResponse(again), None)
    monkeypatch.setattr(repeats, "SWEPT_SECONDS", 30.0)
    again = repeat(workspace)
    swept(workspace)
    assert_lost(PlaneResponse(again), workspace.lines()[0].cost)
    assert_lost(PlaneResponse(repeat(workspace)), only_line(workspace).cost)
    assert len(upstream.calls) == 1


def test_killed_between_commit_and_line_the_repeat_learns_the_commit(workspace, plane, reader, upstream, database_url):
    with locked(database_url, f'"{workspace.tenant.schema_name}".usage_usageline'):
        first = reader()
        until(waiting_for_a_lock)
        kill(plane.process)
        end_backends()
    first.join(30)
    looks_dead(workspace)
    again = repeat(workspace)
    sweep(at_once=True)
    line = only_line(workspace)
    assert line.outcome == "exact"
    assert_lost(PlaneResponse(again), line.cost)
    assert len(upstream.calls) == 1


def test_killed_once_what_came_to_nothing_is_given_back_the_repeat_is_tried_anew(
    workspace, plane, reader, proxy, upstream
):
    """For a day it was told that its answer was lost, and $0.00 charged for it."""
    upstream.status = 500
    proxy.after["/release"] = lambda: kill(plane.process)
    reader().join(30)
    looks_dead(workspace)
    sweep(at_once=True)
    assert [(line.outcome, line.cost) for line in workspace.lines()] == [("none", 0)]
    upstream.status = None
    answer = PlaneResponse(repeat(workspace))
    assert (answer.status_code, len(upstream.calls)) == (200, 2)
    assert PlaneResponse(repeat(workspace)).content == answer.content
    assert [line.outcome for line in workspace.settled(lines=2)] == ["none", "exact"]
    assert len(upstream.calls) == 2


def test_stopped_with_the_claim_and_woken_when_another_has_it_a_plane_calls_no_model(
    workspace, plane, reader, proxy, upstream
):
    proxy.after["/v1/reservations"] = lambda: plane.process.send_signal(signal.SIGSTOP)
    first = reader()
    until(lambda: not proxy.after)
    again = repeat(workspace)
    looks_dead(workspace)
    answer = PlaneResponse(again)
    assert (answer.status_code, len(upstream.calls)) == (200, 1)
    plane.process.send_signal(signal.SIGCONT)
    first.join(30)
    assert first.status == 503
    (line,) = workspace.settled()
    assert (line.cost, len(upstream.calls)) == (answer.json()["cost"]["microcents"], 1)
    assert PlaneResponse(repeat(workspace)).content == answer.content
