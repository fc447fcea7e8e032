"""A web process that is told to stop: streams get their grace, then their end, and no hold stays open."""

import json

import pytest

from tests.support.web import WebProcess

pytestmark = pytest.mark.slow

PRICES = '{"test-model": {"input": 10, "output": 40}}'


@pytest.mark.parametrize("silent", [False, True], ids=["writing", "silent"])
def test_a_stream_near_the_end_of_the_grace_is_settled_and_told(workspace, database_url, authority, upstream, silent):
    upstream.tokens, upstream.delay_between = ["word "] * 500, 0.1
    upstream.delay_first = 60.0 if silent else 0.0
    model = {"LLM_BASE_URL": upstream.base_url, "LLM_MODEL": "test-model", "LLM_PRICES": PRICES}
    key = workspace.key()
    with WebProcess(database_url=database_url, authority=authority, workers=1, threads=4, **model) as web:
        body = {"prompt": "a long story", "stream": True, "max_tokens": 400}
        with web.client(workspace, key) as client, client.stream("POST", "/api/chat/", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            web.process.terminate()
            rest = [first, *lines]
        assert web.process.wait(15) == 0
    last = json.loads(rest[-2].removeprefix("data: ") if rest[-1] == "" else rest[-1].removeprefix("data: "))
    assert last["finish_reason"] == "cancelled"
    (line,) = workspace.lines()
    assert line.outcome == "estimated"
    assert last["cost"]["microcents"] == line.cost == workspace.ledger()["spent"] < line.estimate
    assert workspace.ledger()["reserved"] == 0
    assert workspace.holds() == 0
