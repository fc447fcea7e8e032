"""kill -9 of what stands around a plane: web, the authority, Postgres, the jobs process, the front."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from config.stack.front import Listener
from tests.support.crash import LIKELY, Reader, kill, model_variables, only_line, swept
from tests.support.front import Front
from tests.support.jobs import JobsProcess, rows, until
from tests.support.lossy import LossyProxy
from tests.support.plane import PlaneProcess
from tests.support.ports import free_port
from tests.support.upstream import PROMPT_TOKENS
from tests.support.web import WebProcess

pytestmark = pytest.mark.slow

STREAMS = 5


@pytest.fixture
def slow_model(upstream):
    """Twenty words; the last one once the test says so."""
    upstream.tokens, upstream.last_word_after = ["word "] * 20, threading.Event()
    return model_variables(upstream)


def kill_all(process):
    """The process and what it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def under_way(upstream, count=STREAMS):
    assert upstream.wait_until(lambda up: len([used for used in up.spent if used[1] > 1]) == count, timeout=20)


def assert_all_exact(workspace, upstream):
    lines = workspace.lines()
    true = sum(tokens_input * 1_000 + tokens_output * 4_000 for tokens_input, tokens_output in upstream.spent)
    assert [line.outcome for line in lines] == ["exact"] * STREAMS
    assert sum(line.cost for line in lines) == true == workspace.ledger()["spent"]
    assert (workspace.ledger()["reserved"], workspace.holds()) == (0, 0)


def test_web_killed_under_a_guarded_call_charges_the_estimated_input(workspace, database_url, authority, upstream):
    upstream.hang = True
    key, text = workspace.key(), "a long text that nobody has summarized"
    model = model_variables(upstream)
    with WebProcess(database_url=database_url, authority=authority, workers=1, threads=4, **model) as web:
        reader = Reader(web, workspace, key, path="/api/summarize/", text=text)
        assert upstream.wait_until(lambda up: up.calls, timeout=20)
        kill_all(web.process)
        reader.join(30)
    row = swept(workspace)
    line = only_line(workspace)
    assert (line.outcome, line.app, line.cost) == ("swept", "summarize", row["used"])
    assert PROMPT_TOKENS * 1_000 <= line.cost <= 60 * 1_000 < row["estimate"]


def test_streams_outlive_an_authority_that_is_killed_and_comes_back(
    workspace, database_url, authority, slow_model, upstream
):
    key = workspace.key()
    with PlaneProcess(database_url=database_url, authority=authority, **slow_model) as plane:
        readers = [Reader(plane, workspace, key) for _ in range(STREAMS)]
        under_way(upstream)
        crash(authority)
        upstream.last_word_after.set()
        try:
            for reader in readers:
                reader.join(30)
            assert {(name, data["finish_reason"], data["budget"]) for name, data in (r.last for r in readers)} == {
                ("done", "stop", None)
            }
            assert workspace.holds() == STREAMS
        finally:
            authority.start()
        until(lambda: not workspace.holds())
    assert_all_exact(workspace, upstream)


def test_killed_jobs_leave_their_sweep_to_the_next(workspace, database_url, authority, slow_model, upstream):
    key = workspace.key()
    with PlaneProcess(database_url=database_url, authority=authority, **slow_model) as plane:
        reader = Reader(plane, workspace, key)
        under_way(upstream, 1)
        kill(plane.process)
        reader.join(30)
    rows("UPDATE public.billing_process SET seen_at = now() - interval '1 minute' WHERE kind = 'plane'")
    settings = {"DJANGO_SETTINGS_MODULE": "tests.support.settings_jobs", "SWEEP_AT_ONCE": "on"}
    with LossyProxy(authority.runtime_url) as proxy:
        between = SimpleNamespace(runtime_url=proxy.url, admin_url=authority.admin_url)
        reached = []
        proxy.after["/commit"] = lambda: (kill(jobs.process), reached.append(True))
        with JobsProcess(database_url=database_url, authority=between, **settings) as jobs:
            until(lambda: reached)
    assert workspace.holds() == 1
    with JobsProcess(database_url=database_url, authority=authority, **settings):
        until(lambda: not workspace.holds())
    assert (only_line(workspace).outcome, only_line(workspace).cost) == ("swept", LIKELY)


def test_the_jobs_process_settles_what_a_killed_plane_left_in_25_seconds(
    workspace, globex, database_url, authority, slow_model, upstream
):
    key = workspace.key()
    jobs = JobsProcess(database_url=database_url, authority=authority, DJANGO_SETTINGS_MODULE="config.settings")
    with jobs, PlaneProcess(database_url=database_url, authority=authority, **slow_model) as plane:
        readers = [Reader(plane, workspace, key) for _ in range(STREAMS)]
        under_way(upstream)
        kill(plane.process)
        killed = time.monotonic()
        for reader in readers:
            reader.join(30)
        assert workspace.holds() == STREAMS
        until(lambda: not workspace.holds(), seconds=25, said=lambda: jobs.output)
        print(f"swept after {time.monotonic() - killed:.1f} s")
    assert [line.outcome for line in workspace.lines()] == ["swept"] * STREAMS
    ledger = workspace.ledger()
    assert (ledger["spent"], ledger["reserved"]) == (sum(line.cost for line in workspace.lines()), 0)


def test_streams_end_and_are_settled_by_what_came_when_the_front_is_killed(
    workspace, database_url, authority, upstream, tmp_path
):
    upstream.tokens, upstream.last_word_after = ["word "] * 20, threading.Event()
    key = workspace.key()
    model = model_variables(upstream)
    with PlaneProcess(database_url=database_url, authority=authority, **model) as plane:
        web, at = Listener(port=free_port()), Listener(port=plane.port)
        with Front(tmp_path, web=web, plane=at) as front:
            readers = [Reader(plane, workspace, key, at=front.url) for _ in range(STREAMS)]
            # Each has all that its model has said.
            until(lambda: all("".join(reader.lines).count("word") == 19 for reader in readers))
            kill(front.process)
            for reader in readers:
                reader.join(30)
        until(lambda: not workspace.holds())
        lines = workspace.lines()
        assert [line.outcome for line in lines] == ["estimated"] * STREAMS
        assert upstream.wait_until(lambda up: up.aborted == STREAMS)
    outputs = sorted(line.tokens_output for line in lines)
    for counted, (_, used) in zip(outputs, sorted(upstream.spent), strict=True):
        assert used - 2 <= counted <= used * 1.25 + 1
    ledger = workspace.ledger()
    assert (ledger["spent"], ledger["reserved"]) == (sum(line.cost for line in lines), 0)


def crash(authority):
    """Its planes end a moment after it: their ports are taken until then."""
    authority.crash()
    for port in (authority.runtime_port, authority.admin_port):
        until(lambda port=port: is_free(port))


def crash_and_come_back(authority):
    crash(authority)
    authority.start()


def is_free(port):
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_plain_calls_around_an_authority_that_is_killed_again_and_again_are_each_charged_once(
    workspace, database_url, authority, upstream
):
    """Between requests, so that kept connections are dead, and under them, so that answers are lost."""
    key, model = workspace.key(), model_variables(upstream)
    asked = {"model": model["LLM_MODEL"], "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
    answered: list[int] = []
    is_over = threading.Event()

    def call_on():
        with plane.client(workspace, key) as client:
            while not is_over.is_set():
                answered.append(client.post("/v1/chat/completions", json=asked).status_code)

    with PlaneProcess(database_url=database_url, authority=authority, **model) as plane:
        callers = [threading.Thread(target=call_on) for _ in range(4)]
        for caller in callers:
            caller.start()
        for _ in range(2):
            many = answered.count(200) + 30
            until(lambda many=many: answered.count(200) >= many)
            crash_and_come_back(authority)
        is_over.set()
        for caller in callers:
            caller.join(60)
        # At rest, so that each kept connection is dead and nobody has noticed under a request.
        time.sleep(0.5)
        crash_and_come_back(authority)
        with plane.client(workspace, key) as client:
            assert client.post("/v1/chat/completions", json=asked).status_code == 200
        until(lambda: not workspace.holds() and not workspace.ledger()["reserved"], seconds=80)
    lines = workspace.lines()
    assert {*answered} <= {200, 503}
    assert answered.count(200) > 50
    assert [line.outcome for line in lines] == ["exact"] * len(lines)
    assert len(lines) == len(upstream.spent) == answered.count(200) + 1
    true = sum(tokens_input * 1_000 + tokens_output * 4_000 for tokens_input, tokens_output in upstream.spent)
    assert sum(line.cost for line in lines) == true == workspace.ledger()["spent"]
