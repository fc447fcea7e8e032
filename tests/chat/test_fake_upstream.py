"""The fake model's server does what the tests that lean on it believe."""

from __future__ import annotations

import http.client
import json
import threading
import time

import pytest

from tests.support.odd_answers import odd_answers
from tests.support.upstream import PROMPT_TOKENS, FakeUpstream

CASES = {case.name: case for case in odd_answers()}
ASK = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 100}


@pytest.fixture
def upstream():
    with FakeUpstream() as server:
        yield server


def line_to(upstream: FakeUpstream) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(upstream.base_url.split("/")[2], timeout=5)


def ask(line: http.client.HTTPConnection, path: str = "/v1/chat/completions", body: object = ASK):
    line.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return line.getresponse()


@pytest.mark.parametrize("name", ["framing-01", "framing-15", "words-06", "refusals-28", "ends-14", "runaways-01"])
def test_a_case_is_played_byte_for_byte(upstream, name):
    case = CASES[name]
    upstream.play(case)
    response = ask(line_to(upstream))
    assert response.status == case.status
    assert response.read() == b"".join(case.pieces())
    assert {name: response.headers[name] for name in case.headers} == case.headers


def test_silences_are_kept_and_a_drop_is_a_reset(upstream):
    upstream.parts = ["data: 1\n\n", {"wait_s": 0.3}, "data: 2\n\n", {"drop": True}]
    start, response = time.monotonic(), ask(line_to(upstream))
    assert response.read1(9) == b"data: 1\n\n"
    assert response.read1(9) == b"data: 2\n\n"
    assert time.monotonic() - start > 0.2
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        response.read()


def test_a_caller_who_leaves_during_a_silence_is_noticed(upstream):
    upstream.parts = ["data: 1\n\n", {"wait_s": 30}]
    line = line_to(upstream)
    response = ask(line)
    response.read1(9)
    response.close()
    line.close()
    assert upstream.wait_until(lambda up: up.aborted == 1 and up.connections_open == 0)


def test_what_each_call_used_is_counted(upstream):
    ask(line_to(upstream)).read()
    upstream.status = 500
    ask(line_to(upstream)).read()
    upstream.play(CASES["words-05"])
    ask(line_to(upstream)).read()
    assert upstream.spent == [(PROMPT_TOKENS, 4), (0, 0), (PROMPT_TOKENS, 53)]


@pytest.mark.parametrize(("bills_after_cut", "used"), [(False, 2), (True, 3)])
def test_a_caller_who_leaves_has_used_what_came_or_all_of_it(upstream, bills_after_cut, used):
    upstream.tokens, upstream.bills_after_cut = ["word "] * 3, bills_after_cut
    upstream.last_word_after = threading.Event()
    line = line_to(upstream)
    response = ask(line)
    said = b""
    while said.count(b"word") < 2:
        said += response.read1()
    response.close()
    line.close()
    assert upstream.wait_until(lambda up: up.aborted == 1)
    assert upstream.spent == [(PROMPT_TOKENS, used)]


def test_a_connection_serves_one_call_and_says_so_unless_it_is_kept_alive(upstream):
    line = line_to(upstream)
    for number in (1, 2):
        response = ask(line)
        response.read()
        assert response.headers["Connection"] == "close"
        assert upstream.connections_made == number
    upstream.keep_alive = True
    for _ in range(3):
        response = ask(line)
        response.read()
        assert response.headers["Connection"] is None
    assert (upstream.connections_made, len(upstream.calls)) == (3, 5)


def test_idle_connections_can_be_closed_and_busy_ones_stay(upstream):
    upstream.keep_alive = True
    idle, busy = line_to(upstream), line_to(upstream)
    ask(idle).read()
    upstream.last_word_after = threading.Event()
    response = ask(busy)
    # Once it has read its answer, whoever gave it may still be at the end of giving.
    assert upstream.wait_until(lambda up: up.close_idle() == 1)
    upstream.last_word_after.set()
    assert b"[DONE]" in response.read()
    assert upstream.wait_until(lambda up: up.connections_open == 1)
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        ask(idle)


def test_a_connection_can_be_closed_without_a_word(upstream):
    upstream.keep_alive = upstream.closes_silently = True
    line = line_to(upstream)
    response = ask(line)
    response.read()
    assert response.headers["Connection"] is None
    assert upstream.wait_until(lambda up: up.connections_open == 0)


def test_what_a_call_before_a_reset_becomes_counts_for_nothing_after_it(upstream):
    upstream.keep_alive, upstream.tokens = True, ["word"]
    idle, busy = line_to(upstream), line_to(upstream)
    ask(idle).read()
    upstream.last_word_after = threading.Event()
    response = ask(busy)
    assert upstream.wait_until(lambda up: len(up._answering) == 1)
    upstream.reset()
    response.close()
    busy.close()
    assert upstream.wait_until(lambda up: up.connections_open == 0)
    assert (upstream.calls, upstream.spent, upstream.aborted) == ([], [], 0)


def test_an_events_silence_lasts_until_it_is_set(upstream):
    upstream.parts = ["data: 1\n\n", goes_on := threading.Event(), "data: 2\n\n"]
    response = ask(line_to(upstream))
    assert response.read1(9) == b"data: 1\n\n"
    goes_on.set()
    assert response.read() == b"data: 2\n\n"


def test_tokens_are_counted_for_those_who_ask(upstream):
    assert ask(line_to(upstream), "/tokenize", {"content": "Hi"}).status == 404
    upstream.tokenizer = 12
    answer = json.load(ask(line_to(upstream), "/tokenize", {"content": "Hi"}))
    assert (answer["count"], len(answer["tokens"])) == (12, 12)
    upstream.tokenizer = lambda body: len(body["content"])
    assert json.load(ask(line_to(upstream), "/tokenize", {"content": "Hello"}))["count"] == 5
    assert json.load(ask(line_to(upstream), "/apply-template", ASK)) == {"prompt": "<user>Hi"}
    assert upstream.tokenized == [{"content": "Hi"}, {"content": "Hello"}]
    assert upstream.calls == []
