"""/v1/chat/completions: the way of a call, from key to line."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.usefixtures("upstream")

ASK = {"model": "test-model", "messages": [{"role": "user", "content": "hello"}]}


def test_a_whole_answer_is_passed_on_as_it_came_and_paid(workspace, upstream):
    response = workspace.api(alone=True).post("/v1/chat/completions", {**ASK, "seed": 7})
    assert response.status_code == 200, response.content
    assert response.json()["choices"][0]["message"]["content"] == "Hello, world."
    assert upstream.calls[-1]["seed"] == 7
    assert response["X-Budget-Cost"] == "0.00026"
    (line,) = workspace.lines()
    assert (line.cost, line.app, line.outcome) == (26_000, "api", "exact")


def test_a_stream_ends_with_its_budget_after_the_commit(workspace):
    response = workspace.api(alone=True).post("/v1/chat/completions", {**ASK, "stream": True})
    *chunks, done, empty = response.content.decode().split("\n\n")
    assert (done, empty) == ("data: [DONE]", "")
    last = json.loads(chunks[-1].removeprefix("data: "))
    assert (last["choices"], last["budget"]["cost"]) == ([], "0.00026")
    assert workspace.ledger()["spent"] == 26_000
