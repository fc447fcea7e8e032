"""A budget for exactly ten calls, fifty asked for at once, two worker processes: ten are made."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from chat.llm import prompt_bound
from tests.support.web import WebProcess

pytestmark = pytest.mark.slow

PRICES = '{"test-model": {"input": 10, "output": 40}}'


@pytest.fixture(scope="module")
def web(database_url, authority, app, upstream_server):
    model = {"LLM_BASE_URL": upstream_server.base_url, "LLM_MODEL": "test-model", "LLM_PRICES": PRICES}
    with WebProcess(database_url=database_url, authority=authority, workers=2, threads=32, **model) as web:
        yield web


def bill_all_that_was_held(body):
    """The model uses every token it may, so that the bill is the estimate."""
    tokens = {"prompt_tokens": prompt_bound(body["messages"]), "completion_tokens": body["max_tokens"]}
    return {**tokens, "total_tokens": sum(tokens.values())}


@pytest.mark.parametrize("stream", [False, True])
def test_ten_are_made_forty_refused_and_never_more_is_held_than_there_is(workspace, web, upstream, stream):
    upstream.usage = bill_all_that_was_held
    upstream.delay_first = 0.5  # so that calls overlap
    key = workspace.key()
    ask = {"prompt": "ten times, please", "max_tokens": 20, "stream": stream}
    workspace.leave(0)
    with web.client(workspace, key) as probe:
        needed = probe.post("/api/chat/", json=ask).json()["budget"]["needed"]
    workspace.leave(10 * needed)
    over, done = [], threading.Event()

    def watch():
        while not done.is_set():
            ledger = workspace.ledger()
            if ledger["spent"] + ledger["reserved"] > ledger["allocated"] or ledger["remaining"] < 0:
                over.append(ledger)

    def call(number):
        with web.client(workspace, key) as client:
            return client.post("/api/chat/", json=ask)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(call, range(50)))
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
    ledger = workspace.ledger()
    assert (ledger["reserved"], ledger["remaining"]) == (0, 0)
    assert len(workspace.lines()) == 10
    assert sum(line.cost for line in workspace.lines()) == 10 * needed
    assert workspace.holds() == 0
