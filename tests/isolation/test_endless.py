"""Told to stop while an answer has no end: its reader gets the last event in the grace, and nothing stays held."""

from __future__ import annotations

import signal
import time

import pytest

from config.stack.front import Listener
from tests.support.authority import free_port
from tests.support.crash import Reader, model_variables
from tests.support.front import Front
from tests.support.jobs import until
from tests.support.plane import PlaneProcess
from tests.support.web import WebProcess

pytestmark = pytest.mark.slow

GRACE = 10.0
ENDLESS = 60.0  # seconds that the model would go on for


class Workers(PlaneProcess):
    """Two of them under uvicorn's own supervisor."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--workers", "2"]


@pytest.fixture
def server(database_url, authority, upstream):
    upstream.tokens, upstream.delay_between = ["word "] * 600, 0.1

    def start(kind=PlaneProcess, **options):
        return kind(database_url=database_url, authority=authority, **options, **model_variables(upstream))

    return start


def stop(process) -> float:
    """As a supervisor does; how long it took to end by itself."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    return time.monotonic() - began


def assert_settled(workspace, count=1):
    lines = workspace.lines()
    assert [line.outcome for line in lines] == ["estimated"] * count
    ledger = workspace.ledger()
    assert (ledger["spent"], ledger["reserved"]) == (sum(line.cost for line in lines), 0)
    assert workspace.holds() == 0
    return lines


@pytest.mark.parametrize("silent", [False, True], ids=["writing", "silent"])
@pytest.mark.parametrize("kind", [PlaneProcess, Workers], ids=["one worker", "two workers"])
def test_the_plane_ends_an_endless_stream_in_its_grace(workspace, server, upstream, kind, silent):
    upstream.delay_first = ENDLESS if silent else 0.0
    key = workspace.key()
    with server(kind) as plane:
        readers = [Reader(plane, workspace, key, max_tokens=600) for _ in range(4)]
        assert upstream.wait_until(lambda up: len(up.calls) == 4, timeout=20)
        took = stop(plane.process)
        for reader in readers:
            reader.join(5)
    assert took < GRACE
    print(f"ended in {took:.1f} s")
    told = [reader.last for reader in readers]
    assert [(name, data["finish_reason"]) for name, data in told] == [("done", "cancelled")] * 4
    lines = assert_settled(workspace, 4)
    assert sorted(data["cost"]["microcents"] for _, data in told) == sorted(line.cost for line in lines)
    assert upstream.wait_until(lambda up: up.aborted == 4)


def test_the_front_passes_the_end_on(workspace, server, upstream, tmp_path):
    key = workspace.key()
    with server() as plane:
        web, at = Listener(port=free_port()), Listener(port=plane.port)
        with Front(tmp_path, web=web, plane=at) as front:
            reader = Reader(plane, workspace, key, at=front.url, max_tokens=600)
            until(lambda: reader.lines)
            assert stop(plane.process) < GRACE
            reader.join(5)
    name, data = reader.last
    assert (name, data["finish_reason"]) == ("done", "cancelled")
    assert_settled(workspace)


def test_a_reader_who_does_not_read_keeps_the_plane_from_nothing(workspace, server, upstream):
    upstream.tokens, upstream.delay_between = ["word " * 4_000] * 600, 0.01
    key = workspace.key()
    with server() as plane:
        with plane.client(workspace, key) as client:
            body = {"prompt": "a long story", "stream": True, "max_tokens": 600}
            with client.stream("POST", "/api/chat/", json=body) as response:
                next(response.iter_raw())
                # The line is full: the plane waits for its reader.
                time.sleep(2)
                took = stop(plane.process)
    print(f"ended in {took:.1f} s")
    assert_settled(workspace)


def test_web_ends_a_summary_in_its_grace(workspace, server, upstream):
    key = workspace.key()
    with server(WebProcess, workers=1, threads=4) as web:
        reader = Reader(web, workspace, key, path="/api/summarize/", text="a long text", max_tokens=600)
        assert upstream.wait_until(lambda up: up.calls, timeout=20)
        took = stop(web.process)
        reader.join(5)
    print(f"ended in {took:.1f} s")
    assert took < GRACE
    assert reader.status == 200
    assert_settled(workspace)
