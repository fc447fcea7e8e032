"""Told to stop while an answer has no end: its reader gets the last event in the grace, and nothing stays held."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from config.stack.front import Listener
from tests.support.crash import Reader, model_variables
from tests.support.factories import WorkspaceFactory
from tests.support.front import Front
from tests.support.jobs import until
from tests.support.plane import PlaneProcess, forget_habits
from tests.support.ports import free_port
from tests.support.web import WebProcess

pytestmark = pytest.mark.slow

# Ten seconds are the grace, of which web waits seven before it cuts; the rest is for a machine that does other things
# as well. Whoever was killed at its end has told its reader nothing, which the other tests would see.
GRACE = 10.0 + 15.0
STREAMS = ("writing", "silent", "through the front", "of two workers")
# Once all is done uvicorn ends as the signal would have ended it.
GOOD_EXITS = (0, -signal.SIGTERM)


class Workers(PlaneProcess):
    """Two of them under uvicorn's own supervisor."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--workers", "2"]


@pytest.fixture(scope="module")
def ended(app, database_url, authority, upstream_server, tmp_path_factory):
    """All of them were told to stop at once, each under an answer that would go on for a minute.

    Once for all tests: it takes the whole grace.
    """
    upstream = upstream_server
    upstream.reset()
    forget_habits()
    upstream.tokens, upstream.delay_between = ["word "] * 600, 0.1
    options = {"database_url": database_url, "authority": authority, **model_variables(upstream)}
    workspaces = {name: WorkspaceFactory() for name in (*STREAMS, "summary")}
    with ExitStack() as stack:
        plane = stack.enter_context(PlaneProcess(**options))
        workers = stack.enter_context(Workers(**options))
        web = stack.enter_context(WebProcess(workers=1, threads=4, **options))
        at = Listener(port=plane.port)
        front = stack.enter_context(Front(tmp_path_factory.mktemp("front"), web=Listener(port=free_port()), plane=at))

        def ask(name, server, **how):
            return Reader(server, workspaces[name], workspaces[name].key(), max_tokens=600, **how)

        readers = {
            "writing": ask("writing", plane),
            "through the front": ask("through the front", plane, at=front.url),
            "of two workers": ask("of two workers", workers),
            "summary": ask("summary", web, path="/api/summarize/", text="a long text"),
        }
        assert upstream.wait_until(lambda up: len([used for used in up.spent if used[1]]) == len(readers), timeout=20)
        upstream.delay_first = 60.0
        readers["silent"] = ask("silent", plane)
        assert upstream.wait_until(lambda up: len(up.calls) == len(readers), timeout=20)
        until(lambda: readers["writing"].lines)
        took = stop(plane.process, workers.process, web.process)
        for reader in readers.values():
            reader.join(30)
        assert upstream.wait_until(lambda up: up.aborted == len(readers))
    return SimpleNamespace(took=took, readers=readers, workspaces=workspaces)


def stop(*servers: subprocess.Popen[bytes]) -> list[float]:
    """As a supervisor does; how long each took to end by itself."""
    began = time.monotonic()
    for server in servers:
        server.send_signal(signal.SIGTERM)
    took = []
    for server in servers:
        assert server.wait(40) in GOOD_EXITS
        took.append(time.monotonic() - began)
    return took


def assert_settled(workspace):
    (line,) = workspace.lines()
    ledger = workspace.ledger()
    assert (line.outcome, ledger["spent"], ledger["reserved"]) == ("estimated", line.cost, 0)
    assert workspace.holds() == 0
    return line


def test_plane_and_web_end_in_their_grace(ended):
    assert max(ended.took) < GRACE, ended.took


@pytest.mark.parametrize("stream", STREAMS)
def test_the_reader_of_an_endless_stream_is_told_its_end_and_its_cost(ended, stream):
    line = assert_settled(ended.workspaces[stream])
    name, data = ended.readers[stream].last
    assert (name, data["finish_reason"], data["outcome"]) == ("done", "cancelled", "estimated")
    assert data["cost"]["microcents"] == line.cost < line.estimate
    assert data["budget"]["reserved"] == 0
    if stream != "silent":
        words = "".join(ended.readers[stream].lines).count("word ")
        assert words <= line.tokens_output <= words * 1.3


def test_a_summary_is_cut_and_answered(ended):
    assert ended.readers["summary"].status == 200
    line = assert_settled(ended.workspaces["summary"])
    assert line.app == "summarize"
    body = json.loads("".join(ended.readers["summary"].lines))
    assert body["outcome"] == "estimated"
    assert body["cost"]["microcents"] == line.cost < line.estimate
