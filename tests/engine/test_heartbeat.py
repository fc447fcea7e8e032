"""A process that is slow lives all the same: taken for dead, its calls would be settled under it."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
from django.utils import timezone

from billing.engine import engine as timers
from billing.engine import loop
from billing.engine.loop import here
from billing.engine.store import CONNECTIONS
from billing.guard import reserve
from billing.models import Process
from billing.settlement import sweep
from tests.support.jobs import until
from tests.support.money import assert_books_agree, on_loop
from tests.support.plane import run

SILENT = 2.0  # seconds; a fast heart beats twice a second here
SOON = 20.0  # on a busy machine; what would come too late takes longer


@pytest.fixture
def heart(app, monkeypatch):
    """When this process's engine last said that it lives."""
    monkeypatch.setattr(timers, "HEARTBEAT_SECONDS", 0.5)

    async def registered():
        await here().register()
        return here().process_id

    # An engine of its own, for one that has begun keeps its pace.
    loop.stop()
    process = run(registered())
    yield lambda: Process.objects.get(pk=process).seen_at
    loop.stop()


def assert_beats(heart):
    for _ in range(2):
        before = heart()
        until(lambda before=before: heart() > before, seconds=SOON)


def test_it_beats_while_calls_have_every_connection(heart):
    async def take_all():
        return [asyncio.ensure_future(here().store.fetch("SELECT pg_sleep(120)")) for _ in range(CONNECTIONS)]

    taken = run(take_all())
    assert_beats(heart)
    assert not any(task.done() for task in taken)
    on_loop(lambda: [task.cancel() for task in taken])


@contextmanager
def hung(settings):
    """An authority that takes every connection and never answers."""
    before = settings.CYCLES_BASE_URL
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        settings.CYCLES_BASE_URL = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings.CYCLES_READ_TIMEOUT = 3 * SOON
        yield
        settings.CYCLES_BASE_URL = before


def test_it_beats_and_cuts_what_lapses_while_an_authority_that_hangs_is_asked_to_extend(
    workspace, heart, monkeypatch, settings
):
    monkeypatch.setattr(timers, "EXTENDED_AT_ONCE", 1)
    ask = {"app": "test", "action_kind": "test.call", "action_name": "unit", "estimate": 10, "ttl_ms": 8_000}
    lapsed = []
    paid = [reserve(workspace.tenant, **ask) for _ in range(8)]
    for one in paid:
        one.dispatch(lambda: None)
        one.on_lapse = lambda one=one: lapsed.append(one.id)
    with hung(settings):
        until(lambda: paid[0].lease_left() < 3.5)
        assert_beats(heart)
        until(lambda: set(lapsed) == {one.id for one in paid}, seconds=SOON)
    for one in paid:
        one.void()
        one.settle()


@pytest.fixture
def open_call(workspace, heart, monkeypatch):
    """A call under way that would not be asked after for half a minute, and whether its money has lapsed."""
    monkeypatch.setattr(timers, "SILENT_SECONDS", SILENT)
    paid = reserve(workspace.tenant, app="test", action_kind="test.call", action_name="unit", estimate=1_000)
    lapsed = []
    paid.on_lapse = lambda: lapsed.append(True)
    paid.dispatch(lambda: None)
    yield paid, lapsed
    paid.record(cost=1_000)
    paid.settle()
    assert_books_agree(workspace)


def swept_by_another() -> None:
    """What the jobs process does with a process that it has heard nothing of."""
    Process.objects.update(seen_at=timezone.now() - timedelta(hours=2))
    sweep(at_once=True)


def test_a_process_that_alone_cannot_say_that_it_lives_ends_the_calls_that_were_swept_under_it(open_call, monkeypatch):
    async def cut_off(*asked):
        raise psycopg.OperationalError("this process alone may not connect")

    _, lapsed = open_call
    monkeypatch.setattr(on_loop(here)._own_store, "fetch", cut_off)
    time.sleep(SILENT + 2.5)
    assert lapsed == [], "nobody has swept it"
    swept_by_another()
    until(lambda: lapsed, seconds=SOON)


@pytest.mark.parametrize("is_swept", [True, False])
def test_a_process_that_was_stopped_ends_the_calls_that_were_swept_meanwhile_and_no_others(open_call, is_swept):
    paid, lapsed = open_call
    before = paid.lease_left()
    if is_swept:
        swept_by_another()
    on_loop(lambda: setattr(here(), "_beaten_at", time.monotonic() - 60))
    if is_swept:
        until(lambda: lapsed, seconds=SOON)
    else:
        until(lambda: paid.lease_left() > before, seconds=SOON)
        assert lapsed == []


def test_a_short_lease_is_kept_for_as_long_as_its_call_lasts(workspace):
    with reserve(
        workspace.tenant, app="test", action_kind="test.call", action_name="unit", estimate=10, ttl_ms=12_000
    ) as paid:
        lapsed = []
        paid.on_lapse = lambda: lapsed.append(True)
        paid.dispatch(lambda: None)
        time.sleep(13)
        assert (lapsed, paid.lease_left() > 1) == ([], True)
        paid.record(cost=10)
    assert workspace.ledger()["spent"] == 10
