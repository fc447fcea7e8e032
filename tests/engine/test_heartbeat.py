"""A process that is slow lives all the same: taken for dead, its calls would be settled under it."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import contextmanager

import pytest

from billing.engine import engine as timers
from billing.engine import loop
from billing.engine.loop import here
from billing.engine.store import CONNECTIONS
from billing.guard import reserve
from billing.models import Process
from tests.support.jobs import until
from tests.support.plane import run

SILENT = 2.0  # seconds; a fast heart beats twice a second here


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
        until(lambda before=before: heart() > before, seconds=SILENT)


def test_it_beats_while_calls_have_every_connection(heart):
    async def take_all():
        return [asyncio.ensure_future(here().store.fetch("SELECT pg_sleep(4.5)")) for _ in range(CONNECTIONS)]

    taken = run(take_all())
    assert_beats(heart)
    assert not any(task.done() for task in taken)


@contextmanager
def hung(settings):
    """An authority that takes every connection and never answers."""
    before = settings.CYCLES_BASE_URL
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        settings.CYCLES_BASE_URL = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings.CYCLES_READ_TIMEOUT = 2.0
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
        until(lambda: paid[0].lease_left() < 3.5, seconds=10)
        assert_beats(heart)
        until(lambda: set(lapsed) == {one.id for one in paid}, seconds=3)
    for one in paid:
        one.void()
        one.settle()


def test_a_short_lease_is_kept_for_as_long_as_its_call_lasts(workspace):
    with reserve(
        workspace.tenant, app="test", action_kind="test.call", action_name="unit", estimate=10, ttl_ms=4_000
    ) as paid:
        lapsed = []
        paid.on_lapse = lambda: lapsed.append(True)
        paid.dispatch(lambda: None)
        time.sleep(6)
        assert (lapsed, paid.lease_left() > 1) == ([], True)
        paid.record(cost=10)
    assert workspace.ledger()["spent"] == 10
