"""A budget for exactly ten calls, fifty asked for at once, two planes: ten are made."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from chat.history import prompt_bound
from tests.support.plane import PlaneProcess

pytestmark = pytest.mark.slow

PRICES = '{"test-model": {"input": 10, "output": 40}}'


@pytest.fixture(scope="module")
def planes(database_url, authority, app, upstream_server):
    given = {
        "LLM_BASE_URL": upstream_server.base_url,
        "LLM_MODEL": "test-model",
        "LLM_PRICES": PRICES,
        "BUDGET_WAIT_SECONDS": "1.5",
    }
    options = {"database_url": database_url, "authority": authority, **given}
    with PlaneProcess(**options) as one, PlaneProcess(**options) as other:
        yield one, other


def bill_all_that_was_held(body):
    """The model uses every token it may, so that the bill is the estimate."""
    tokens = {"prompt_tokens": prompt_bound(body["messages"]), "completion_tokens": body["max_tokens"]}
    return {**tokens, "total_tokens": sum(tokens.values())}


@pytest.mark.parametrize("stream", [False, True])
def test_ten_are_made_forty_refused_and_never_more_is_held_than_there_is(workspace, planes, upstream, stream):
    upstream.usage = bill_all_that_was_held
    upstream.delay_first = 0.5  # so that calls overlap
    key = workspace.key()
    ask = {"prompt": "ten times, please", "max_tokens": 20, "stream": stream}
    workspace.leave(0)
    with planes[0].client(workspace, key) as probe:
        needed = probe.post("/api/chat/", json=ask).json()["budget"]["needed"]
    workspace.leave(10 * needed)
    over, done = [], threading.Event()

    def watch():
        while not done.wait(0.02):
            ledger = workspace.ledger()
            if ledger["spent"] + ledger["reserved"] > ledger["allocated"] or ledger["remaining"] < 0:
                over.append(ledger)

    def call(number):
        with planes[number % 2].client(workspace, key) as client:
            return client.post("/api/chat/", json=ask)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(call, range(50)))
    took = time.monotonic() - began
    done.set()
    watcher.join()
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(402)) == (10, 40), statuses
    assert len(upstream.calls) == 10
    assert over == []
    assert {answer.json()["reason"] for answer in answers if answer.status_code == 402} <= {
        "held_by_others",
        "exhausted",
    }
    workspace.settled(lines=10)
    ledger = workspace.ledger()
    assert (ledger["reserved"], ledger["remaining"]) == (0, 0)
    assert [line.outcome for line in workspace.lines()] == ["exact"] * 10
    assert sum(line.cost for line in workspace.lines()) == 10 * needed
    assert workspace.holds() == 0
    assert took < 40
