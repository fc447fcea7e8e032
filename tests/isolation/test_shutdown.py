"""A process that is told to stop: answers get their grace, then their end, and no hold stays open."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.plane import PlaneProcess
from tests.support.web import WebProcess

pytestmark = pytest.mark.slow

GRACE = 15.0


@pytest.fixture
def options(database_url, authority, upstream):
    prices = '{"test-model": {"input": 10, "output": 40}}'
    model = {"LLM_BASE_URL": upstream.base_url, "LLM_MODEL": "test-model", "LLM_PRICES": prices}
    return {"database_url": database_url, "authority": authority, "workers": 1, "threads": 4, **model}


def stopped(process):
    """Told to stop, it has ended in time, and not by being killed."""
    assert process.wait(GRACE) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("silent", [False, True], ids=["writing", "silent"])
def test_a_stream_near_the_end_of_the_grace_is_settled_and_told(workspace, upstream, options, silent):
    upstream.tokens, upstream.delay_between = ["word "] * 500, 0.1
    upstream.delay_first = 60.0 if silent else 0.0
    body = {"prompt": "a long story", "stream": True, "max_tokens": 400}
    key = workspace.key()
    with PlaneProcess(**options) as plane, ThreadPoolExecutor(1) as pool, plane.client(workspace, key) as client:
        asked = pool.submit(client.post, "/api/chat/", json=body)
        assert upstream.wait_until(lambda up: up.calls)
        time.sleep(0.5)
        plane.process.terminate()
        answer = asked.result(GRACE)
        stopped(plane.process)
    *_, event, data = (line for line in answer.text.splitlines() if line)
    facts = json.loads(data.removeprefix("data: "))
    assert (event, facts["finish_reason"]) == ("event: done", "cancelled")
    (line,) = workspace.lines()
    assert line.outcome == "estimated"
    assert facts["cost"]["microcents"] == line.cost == workspace.ledger()["spent"] < line.estimate
    assert workspace.ledger()["reserved"] == 0
    assert workspace.holds() == 0


def test_a_summary_under_way_near_the_end_of_webs_grace_is_settled_and_told(workspace, upstream, options):
    upstream.tokens, upstream.delay_between = ["word "] * 500, 0.1
    key = workspace.key()
    with WebProcess(**options) as web, ThreadPoolExecutor(1) as pool, web.client(workspace, key) as client:
        asked = pool.submit(client.post, "/api/summarize/", json={"text": "a long text"})
        assert upstream.wait_until(lambda up: up.calls)
        time.sleep(0.5)
        web.process.terminate()
        answer = asked.result(GRACE)
        stopped(web.process)
    assert answer.status_code == 200
    (line,) = workspace.lines()
    assert (line.outcome, answer.json()["outcome"]) == ("estimated", "estimated")
    assert answer.json()["cost"]["microcents"] == line.cost == workspace.ledger()["spent"] < line.estimate
    assert workspace.ledger()["reserved"] == 0
    assert workspace.holds() == 0
