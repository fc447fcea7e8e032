"""Reaching a model that answers, half answers, or does not: over real sockets."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path

import httpx2
import pytest

from billing.prices import Usage
from chat import llm
from chat.errors import ModelFailed
from chat.llm import complete, open_stream, prompt_bound
from tests.support.upstream import PROMPT_TOKENS

ASK: list[llm.Message] = [{"role": "user", "content": "What does acme's PROMPTSECRET cost?"}]
BOUND = prompt_bound(ASK)


@pytest.fixture(autouse=True)
def key(settings):
    settings.LLM_API_KEY = "sk-KEYSECRET"


def ask(max_tokens: int = 100) -> llm.ChatStream:
    return open_stream(ASK, model="test-model", max_tokens=max_tokens)


def failure(max_tokens: int = 100) -> ModelFailed:
    with pytest.raises(ModelFailed) as failed:
        complete(ASK, model="test-model", max_tokens=max_tokens)
    return failed.value


def raw(*chunks: object, end: str = "data: [DONE]\n\n") -> bytes:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + end.encode()


def words(text: object, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}}], **more}


STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def file_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


# An answer


def test_an_answer_comes_in_pieces_and_with_what_it_used(upstream):
    upstream.tokens = ["Grüße", " an", " acme 🎉"]
    with ask() as stream:
        assert list(stream) == ["Grüße", " an", " acme 🎉"]
    assert stream.usage == Usage(PROMPT_TOKENS, 3, counted=False)
    assert (stream.finish_reason, stream.model, stream.started) == ("stop", "test-model", True)


def test_max_tokens_and_the_wish_for_usage_are_always_sent(upstream):
    complete(ASK, model="test-model", max_tokens=7)
    (body,) = upstream.calls
    assert body == {
        "messages": ASK,
        "model": "test-model",
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_call_without_a_limit_is_never_made(upstream):
    with pytest.raises(ValueError, match="max_tokens"):
        ask(max_tokens=0)
    assert upstream.calls == []


def test_a_whole_answer_reads_the_same_stream(upstream):
    upstream.tokens = ["Hel", "lo"]
    answer = complete(ASK, model="test-model", max_tokens=100)
    assert answer == llm.Completion("Hello", Usage(PROMPT_TOKENS, 2), "stop", "test-model")
    assert complete(ASK, model="test-model", max_tokens=1).finish_reason == "length"


def test_the_key_is_sent_and_nothing_else_from_the_environment(upstream, settings, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "of-somebody-else")
    llm._client.cache_clear()
    complete(ASK, model="test-model", max_tokens=5)
    settings.LLM_API_KEY = ""
    complete(ASK, model="test-model", max_tokens=5)
    with_key, without = upstream.headers
    assert with_key["authorization"] == "Bearer sk-KEYSECRET"
    assert "authorization" not in without
    assert "of-somebody-else" not in repr(upstream.headers)


def test_loopback_is_reached_past_the_environments_proxy(upstream, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    llm._client.cache_clear()
    assert complete(ASK, model="test-model", max_tokens=5).text


# What was used


def test_reported_usage_is_the_truth_even_above_max_tokens(upstream):
    upstream.usage = {"prompt_tokens": 5, "completion_tokens": 900}
    assert complete(ASK, model="test-model", max_tokens=2).usage == Usage(5, 900, counted=False)


def test_without_a_report_the_input_is_its_bound_and_the_output_its_deltas(upstream):
    upstream.usage, upstream.tokens = None, ["a", "b", "c"]
    assert complete(ASK, model="test-model", max_tokens=100).usage == Usage(BOUND, 3, counted=True)


def test_large_deltas_are_counted_by_their_bytes(upstream):
    upstream.usage, upstream.tokens = None, ["a" * 41, "中" * 3]
    assert complete(ASK, model="test-model", max_tokens=100).usage == Usage(BOUND, 13, counted=True)


def test_no_count_exceeds_max_tokens(upstream):
    upstream.usage, upstream.honour_max_tokens, upstream.tokens = None, False, ["abcd"] * 20
    assert complete(ASK, model="test-model", max_tokens=6).usage == Usage(BOUND, 6, counted=True)


@pytest.mark.parametrize(
    "nonsense",
    [
        {},
        {"prompt_tokens": -1, "completion_tokens": 4},
        {"prompt_tokens": 10, "completion_tokens": -4},
        {"prompt_tokens": 0, "completion_tokens": 4},
        {"prompt_tokens": 10, "completion_tokens": 0},
        {"prompt_tokens": "10", "completion_tokens": 4},
        {"prompt_tokens": 10.5, "completion_tokens": 4},
        {"prompt_tokens": True, "completion_tokens": 4},
        {"prompt_tokens": None, "completion_tokens": None},
        {"prompt_tokens": 10**30, "completion_tokens": 4},
        {"prompt_tokens": [10], "completion_tokens": {}},
        {"total_tokens": 14},
    ],
)
def test_a_report_that_cannot_be_is_counted_instead(upstream, nonsense):
    upstream.usage, upstream.tokens = nonsense, ["a", "b"]
    assert complete(ASK, model="test-model", max_tokens=100).usage == Usage(BOUND, 2, counted=True)


@pytest.mark.parametrize("nonsense", ["many", 7, [1, 2]])
def test_a_report_that_is_no_object_is_counted_instead(upstream, nonsense):
    upstream.raw = raw(words("a"), STOP, {"choices": [], "usage": nonsense})
    assert complete(ASK, model="test-model", max_tokens=100).usage == Usage(BOUND, 1, counted=True)


def test_the_last_report_counts_wherever_it_stands(upstream):
    first = {"prompt_tokens": 9, "completion_tokens": 1}
    last = {"prompt_tokens": 9, "completion_tokens": 2}
    upstream.raw = raw(words("a", usage=first), words("b", usage=last), STOP)
    assert complete(ASK, model="test-model", max_tokens=100).usage == Usage(9, 2)


def test_a_report_that_misses_the_last_words_is_not_the_last_word(upstream):
    early = {"prompt_tokens": 9, "completion_tokens": 0}
    upstream.raw = raw({"choices": [], "usage": early}, words("a"), words("b"), end="")
    assert failure().usage == Usage(9, 2, counted=True)


def test_thoughts_are_not_shown_but_counted(upstream):
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}
    upstream.raw = raw(thought, thought, words("Yes"), STOP)
    answer = complete(ASK, model="test-model", max_tokens=100)
    assert (answer.text, answer.usage) == ("Yes", Usage(BOUND, 3, counted=True))


def test_half_a_surrogate_pair_does_not_reach_the_caller(upstream):
    upstream.raw = raw(words("a\ud83d"), words("\ud83c\udf89"), STOP)
    assert complete(ASK, model="test-model", max_tokens=100).text == "a\ufffd🎉"


# Leaving


def test_closing_before_the_first_word_stops_the_upstream(upstream):
    upstream.delay_first = 30
    stream = ask()
    stream.close()
    assert upstream.wait_until(lambda u: u.aborted == 1 and u.connections_open == 0)
    assert (list(stream), stream.started) == ([], False)
    assert stream.usage == Usage(BOUND, 0, counted=True)


def test_closing_in_the_middle_stops_the_upstream_and_keeps_the_count(upstream):
    upstream.tokens, upstream.delay_between = ["a", "b", "c", "d"], 0.1
    with ask() as stream:
        assert [next(stream), next(stream)] == ["a", "b"]
    assert upstream.wait_until(lambda u: u.aborted == 1 and u.connections_open == 0)
    assert (list(stream), stream.usage) == ([], Usage(BOUND, 2, counted=True))
    assert stream.finish_reason is None


def test_closing_wakes_a_thread_that_waits_for_the_next_word(upstream):
    upstream.delay_between = 30
    stream = ask()
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.extend(stream))
    reader.start()
    assert upstream.wait_until(lambda u: seen == ["Hello"])
    began = time.monotonic()
    stream.close()
    reader.join(5)
    assert not reader.is_alive()
    assert time.monotonic() - began < 1
    assert upstream.wait_until(lambda u: u.aborted == 1)


def test_closing_again_after_the_end_and_from_many_threads_does_nothing(upstream):
    stream = ask()
    text = list(stream)
    threads = [threading.Thread(target=stream.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    stream.close()
    assert (text, upstream.aborted) == (upstream.tokens, 0)


def test_closing_one_stream_cuts_no_other(upstream):
    upstream.tokens, upstream.delay_between = ["x"] * 20, 0.01
    done = ask()
    list(done)
    others = [ask() for _ in range(8)]
    texts: list[str] = []
    readers = [threading.Thread(target=lambda s=s: texts.append("".join(s))) for s in others]
    for reader in readers:
        reader.start()
    done.close()
    for reader in readers:
        reader.join(10)
    assert texts == ["x" * 20] * 8


def test_no_call_leaves_a_socket_behind(upstream):
    complete(ASK, model="test-model", max_tokens=5)
    before = file_descriptors()
    for cut, status in ((None, None), (1, None), (None, 500), (None, 400)):
        upstream.cut_after, upstream.status = cut, status
        for _ in range(3):
            with contextlib.suppress(ModelFailed):
                complete(ASK, model="test-model", max_tokens=5)
    assert upstream.wait_until(lambda u: u.connections_open == 0)
    assert file_descriptors() == before


def test_each_process_has_a_client_of_its_own(upstream):
    ask().close()
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if complete(ASK, model="test-model", max_tokens=5).text else 1)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert llm._client(os.getpid(), "http://a", "") is not llm._client(os.getpid() + 1, "http://a", "")


# Failures


def test_nobody_there_is_not_reached_and_nothing_is_used(settings):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        settings.LLM_BASE_URL = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        failed = failure()
    assert (failed.reached, failed.usage) == (False, Usage(0, 0))


def test_an_address_nobody_knows_is_not_reached(settings):
    settings.LLM_BASE_URL = "http://no-such-host.invalid/v1"
    assert not failure().reached


@pytest.mark.parametrize("status", [307, 400, 401, 402, 403, 404, 413, 422, 429])
def test_what_the_provider_refuses_is_not_billed_and_not_sent_again(upstream, status):
    upstream.status = status
    failed = failure()
    assert (failed.reached, failed.usage) == (False, Usage(0, 0))
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("status", [408, 499, 500, 502, 503, 529])
def test_a_providers_own_failure_may_be_billed_and_is_not_sent_again(upstream, status):
    upstream.status = status
    failed = failure()
    assert (failed.reached, failed.usage) == (True, Usage(BOUND, 0, counted=True))
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("mode", ["html", "garbage", "drop"])
def test_an_answer_that_is_none_may_be_billed(upstream, mode):
    setattr(upstream, mode, True)
    failed = failure()
    assert (failed.reached, failed.usage) == (True, Usage(BOUND, 0, counted=True))
    assert upstream.wait_until(lambda u: u.connections_open == 0)


@pytest.mark.parametrize("mode", ["hang", "delay_first"])
def test_silence_ends_in_a_failure_that_may_be_billed(upstream, monkeypatch, mode):
    monkeypatch.setattr(llm, "TIMEOUT", httpx2.Timeout(connect=2.0, read=0.3, write=2.0, pool=2.0))
    llm._client.cache_clear()
    setattr(upstream, mode, 30)
    failed = failure()
    llm._client.cache_clear()
    assert (failed.reached, failed.usage) == (True, Usage(BOUND, 0, counted=True))
    assert upstream.wait_until(lambda u: u.aborted == 1)


def test_words_before_the_break_stay_with_the_caller_and_are_charged(upstream):
    upstream.cut_after, upstream.tokens = 2, ["a", "b", "c"]
    stream = ask()
    assert [next(stream), next(stream)] == ["a", "b"]
    with pytest.raises(ModelFailed) as failed:
        next(stream)
    assert failed.value.usage == stream.usage == Usage(BOUND, 2, counted=True)
    assert list(stream) == []


def test_an_end_without_a_reason_is_a_broken_answer(upstream):
    upstream.finish_reason = None
    assert failure().reached


def test_a_break_after_the_last_word_is_no_failure(upstream):
    upstream.raw = raw(words("a"), STOP, end="data: {oh no\n\n")
    answer = complete(ASK, model="test-model", max_tokens=100)
    assert (answer.text, answer.usage.counted) == ("a", True)


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"choices": None},
        {"choices": {"0": "a"}},
        {"choices": "a"},
        {"error": {"message": "PROMPTSECRET", "code": 500}},
        [],
        [[1]],
        7,
        "words",
        None,
        {"choices": [7]},
        {"choices": [None]},
        {"choices": [{"delta": "a"}]},
        {"choices": [{"delta": {"content": 7}, "finish_reason": 7}]},
        {"choices": [{"delta": {"content": {"a": [1]}}, "finish_reason": []}]},
    ],
)
def test_json_that_is_no_answer_is_a_failure_and_never_text(upstream, chunk):
    upstream.raw = raw(chunk)
    failed = failure()
    assert (failed.reached, failed.usage) == (True, Usage(BOUND, 0, counted=True))


def test_nesting_without_end_is_a_failure(upstream):
    upstream.raw = b"data: " + b"[" * 200_000 + b"\n\n"
    assert failure().reached


def test_a_failure_says_nothing_of_the_upstream_the_key_or_the_prompt(upstream, caplog, settings):
    caplog.set_level(logging.DEBUG)
    failures = []
    for behaviour in ({"status": 400}, {"status": 500}, {"garbage": True}, {"cut_after": 1}, {"html": True}):
        upstream.reset()
        for name, value in behaviour.items():
            setattr(upstream, name, value)
        failures.append(failure())
    for failed in failures:
        assert failed.status == 502
        assert (failed.body()["error"], failed.body()["retry_after_ms"]) == ("model_failed", None)
        assert set(failed.body()) == {"error", "message", "retry_after_ms"}
    ours = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith("httpcore2"))
    for text in (*(f.message for f in failures), ours):
        assert "SECRET" not in text
    for failed in failures:
        assert upstream.base_url.split("/")[2] not in failed.message
    assert "HTTP 400" in ours


# The bound


def test_the_bound_covers_text_that_a_tokenizer_makes_longer():
    plain = prompt_bound([{"role": "user", "content": ""}])
    assert prompt_bound([{"role": "user", "content": "a" * 10}]) == plain + 10
    assert prompt_bound([{"role": "user", "content": "é"}]) == plain + 2
    assert prompt_bound([{"role": "user", "content": "\ufdfa"}]) == plain + 33
    assert prompt_bound([{"role": "user", "content": "\ud83d"}]) >= plain + 3
    assert prompt_bound([]) > 0
