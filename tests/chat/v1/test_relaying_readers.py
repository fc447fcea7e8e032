"""How an answer of /v1 ends by its reader: who leaves, is slow or takes nothing; and what is told again under a key."""

from __future__ import annotations

import json
import threading
import time

import pytest

from chat import outlet, streams
from chat.v1 import answering
from tests.chat.v1.test_relaying import ASK, DONE, frame, said, usage
from tests.chat.v1.test_relaying_ends import (
    ERROR,
    REPORT,
    STOP,
    TRUE,
    WORDS,
    answers,
    completion,
    gives,
    own_chunks,
)
from tests.support.money import INPUT, OUTPUT, assert_books_agree
from tests.support.raw_model import CHUNKED


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_a_reader_who_leaves_a_stream_pays_what_came(workspace, model, ask, parts):
    words = WORDS[: max(parts, 1)]
    model.script = answers(*words, 30)
    response, came = ask(stream=True), b""
    while parts and words[-1] not in came:
        came += next(response.streaming_content)
    response.close()
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.tokens_output <= parts + 2) == ("estimated", True)
    assert model.wait_until(lambda m: m.left == 1)
    assert_books_agree(workspace)


def test_a_reader_who_leaves_with_the_last_word_has_paid_for_all_of_it(workspace, model, ask):
    model.script = answers(*WORDS, STOP, REPORT, DONE)
    response = ask(stream=True)
    parts, came = response.streaming_content, b""
    while REPORT not in came:
        came += next(parts)
    response.close()
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("exact", TRUE)


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_who_leaves_before_the_answer_is_settled_once(workspace, model, settings, stream):
    has_left = threading.Event()

    def script(line):
        while not has_left.is_set():
            line.wait(0.02)
        (answers(*WORDS, STOP, REPORT, DONE) if stream else gives(completion("Hello")))(line)

    model.script = script
    request = workspace.api(alone=True).plane.begin(
        "POST", "/v1/chat/completions", json.dumps({**ASK, "model": settings.LLM_MODEL, "stream": stream})
    )
    assert model.wait_until(lambda m: len(m.requests) == 1)
    request.leave()
    if not stream:
        has_left.set()
    (line,) = workspace.settled(lines=1)
    # Nobody can say what of an answer in one piece was written, and billed, before its reader left: it is read on.
    assert line.outcome == ("estimated" if stream else "exact")
    assert_books_agree(workspace)


def test_a_provider_that_bills_after_a_cut_is_read_to_its_end(workspace, model, ask, settings):
    settings.LLM_DIALECT = {settings.LLM_MODEL: {"bills_after_cut": True}}
    model.script = answers(WORDS[0], 0.3, *WORDS[1:], STOP, REPORT, DONE)
    response = ask(stream=True)
    next(response.streaming_content)
    response.close()
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("exact", TRUE)


@pytest.mark.parametrize("way", ["asked for", "priced"])
def test_thoughts_of_an_answer_whose_reader_left_with_its_word_are_charged(workspace, model, ask, settings, way):
    if way == "priced":
        price = settings.LLM_PRICES[settings.LLM_MODEL]
        settings.LLM_PRICES = {settings.LLM_MODEL: {**price, "reasoning": price["output"]}}
    report = frame({"choices": [], "usage": usage(10, 200)})
    model.script = answers(said("Yes"), 0.3, STOP, report, DONE)
    response = ask(stream=True, **({"reasoning_effort": "high"} if way == "asked for" else {}))
    next(response.streaming_content)
    response.close()
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("exact", 10 * INPUT + 200 * OUTPUT)


@pytest.mark.parametrize(
    "shown",
    [
        said("Yes"),
        frame({"choices": [{"index": 0, "delta": {"reasoning_content": "A summary of its thoughts."}}]}),
        frame({"choices": [{"index": 0, "delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]}),
        frame({"choices": [{"index": 1, "delta": {"content": "Yes"}}]}),
    ],
    ids=["a word", "a summary", "a tool", "another choice"],
)
def test_thoughts_are_charged_whatever_of_the_answer_was_shown_by_then(workspace, model, ask, settings, shown):
    price = settings.LLM_PRICES[settings.LLM_MODEL]
    settings.LLM_PRICES = {settings.LLM_MODEL: {**price, "reasoning": price["output"]}}
    model.script = answers(shown, 0.3, said("No"), STOP, frame({"choices": [], "usage": usage(10, 200)}), DONE)
    response = ask(stream=True)
    next(response.streaming_content)
    response.close()
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("exact", 10 * INPUT + 200 * OUTPUT)


def test_a_model_whose_limits_name_alone_says_that_it_may_think_is_cut_where_its_reader_left(
    workspace, model, ask, settings
):
    """Nearly every model has that name now, and Stop would no longer save anybody money."""
    settings.LLM_DIALECT = {settings.LLM_MODEL: {"max_tokens_name": "max_completion_tokens"}}
    model.script = answers(said("Yes"), 30.0, STOP, DONE)
    response = ask(stream=True)
    next(response.streaming_content)
    response.close()
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "estimated"


def test_a_silent_model_is_waited_for_with_comments(workspace, model, ask, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.1)
    was_told = [threading.Event(), threading.Event()]

    def script(line):
        line.send(CHUNKED)
        for event, words in zip(was_told, (WORDS[:1], [*WORDS[1:], STOP, REPORT, DONE]), strict=True):
            assert event.wait(20)
            line.chunk(*words)
        line.end()

    model.script = script
    parts, body = ask(stream=True).streaming_content, b""
    while b": waiting\n\n" not in body:
        body += next(parts)
    was_told[0].set()
    while WORDS[0] not in body or b": waiting\n\n" not in body.partition(WORDS[0])[2]:
        body += next(parts)
    was_told[1].set()
    body += b"".join(parts)
    assert body.startswith(b": waiting\n\n")
    assert body.count(b": waiting\n\n", body.index(WORDS[0])) >= 1
    assert body.replace(b": waiting\n\n", b"").startswith(b"".join([*WORDS, STOP, REPORT]))


def test_a_slow_reader_makes_the_model_wait_and_gets_it_all(workspace, model, ask, monkeypatch):
    monkeypatch.setattr(outlet, "WAITING_BYTES", 20_000)
    words, sent = [said("word", note="x" * 50_000)] * 600, []

    def script(line):
        line.send(CHUNKED)
        for word in words:
            line.chunk(word)
            sent.append(1)
        line.chunk(STOP, REPORT, DONE)
        line.end()

    model.script = script
    response = ask(stream=True, max_tokens=1_000)
    next(response.streaming_content)
    time.sleep(0.5)
    assert len(sent) < 600, "what nobody takes would fill the memory"
    assert response.content.count(b'"word"') >= 590
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "exact"


def test_a_reader_who_takes_nothing_is_given_up_and_told_so(workspace, model, ask, monkeypatch):
    monkeypatch.setattr(outlet, "WAITING_BYTES", 20_000)
    monkeypatch.setattr(outlet, "SLOW_READER_SECONDS", 0.2)
    model.script = answers(*[said("word", note="x" * 10_000)] * 600)
    response = ask(stream=True, max_tokens=1_000)
    next(response.streaming_content)
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.tokens_output < 600) == ("estimated", True)
    assert b'"error"' in response.content
    assert response.content.endswith(DONE)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_under_a_key_goes_on_without_its_reader_and_is_told_whole_again(workspace, model, settings, stream):
    parts = [*WORDS, STOP, REPORT]
    model.script = answers(parts[0], 0.3, *parts[1:], DONE) if stream else gives(completion("Hello"))
    api = workspace.api(alone=True)
    body = json.dumps({**ASK, "model": settings.LLM_MODEL, "stream": stream})
    first = api.plane.begin("POST", "/v1/chat/completions", body, headers={"Idempotency-Key": "once"})
    assert model.wait_until(lambda m: len(m.requests) == 1)
    first.leave()
    again = api.post("/v1/chat/completions", body, headers={"Idempotency-Key": "once"})
    if stream:
        assert again.content.replace(b": waiting\n\n", b"").startswith(b"".join(parts))
        assert own_chunks(again)[0]["budget"]["outcome"] == "exact"
    else:
        assert again.json() == completion("Hello")
    (line,) = workspace.settled(lines=1)
    assert (line.cost, len(model.requests)) == (TRUE, 1)


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_too_long_to_keep_is_not_bought_twice(workspace, model, settings, monkeypatch, stream):
    monkeypatch.setattr(outlet, "KEPT_BYTES", 100)
    monkeypatch.setattr(answering, "KEPT_BYTES", 100)
    model.script = answers(*WORDS, STOP, REPORT, DONE) if stream else gives(completion("Hello"))
    api = workspace.api(alone=True)
    body = json.dumps({**ASK, "model": settings.LLM_MODEL, "stream": stream})
    said = [api.post("/v1/chat/completions", body, headers={"Idempotency-Key": "once"}) for _ in range(2)]
    assert said[0].content
    assert (said[0].status_code, said[1].status_code, len(model.requests)) == (200, 409, 1)


ROLE = frame({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})


@pytest.mark.parametrize("before", [ROLE, REPORT, ROLE + REPORT], ids=["role", "report", "both"])
def test_what_failed_before_a_word_and_cost_nothing_is_tried_anew_under_its_key(workspace, model, settings, before):
    model.script = answers(before, ERROR)
    api = workspace.api(alone=True)
    body = json.dumps({**ASK, "model": settings.LLM_MODEL, "stream": True})
    assert api.post("/v1/chat/completions", body, headers={"Idempotency-Key": "once"}).status_code == 502
    model.script = answers(ROLE, *WORDS, STOP, REPORT, DONE)
    again = api.post("/v1/chat/completions", body, headers={"Idempotency-Key": "once"})
    assert again.content.startswith(ROLE + b"".join(WORDS))
    assert "Idempotent-Replayed" not in again.headers
    assert [line.cost for line in workspace.settled(lines=2)] == [0, TRUE]


def test_what_failed_before_a_word_and_was_charged_is_the_same_refusal_again(workspace, model, settings):
    model.script = answers(ROLE)
    api = workspace.api(alone=True)
    body = json.dumps({**ASK, "model": settings.LLM_MODEL, "stream": True})
    said = [api.post("/v1/chat/completions", body, headers={"Idempotency-Key": "once"}) for _ in range(2)]
    assert [response.status_code for response in said] == [502, 502]
    assert said[0].content == said[1].content
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, len(model.requests)) == ("unknown", 1)
