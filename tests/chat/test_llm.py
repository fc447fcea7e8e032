"""Reaching a model that answers, half answers, or does not: over real sockets. What it said is test_answer's."""

import contextlib
import logging
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from billing.engine.call import NotDispatched
from billing.prices import Usage
from chat import llm
from chat.dialect import dialect_for
from tests.support.asking import Asked
from tests.support.money import eventually
from tests.support.plane import run
from tests.support.upstream import PROMPT_TOKENS

ASK = [{"role": "user", "content": "What does acme's PROMPTSECRET cost?"}]
STOP = 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'


@pytest.fixture(autouse=True)
def key(settings):
    settings.LLM_API_KEY = "sk-KEYSECRET"


def said(text):
    return f'data: {{"choices": [{{"index": 0, "delta": {{"content": "{text}"}}}}]}}\n\n'


def sockets_to(base_url):
    """This process's own, of all that it has open."""
    port, found = int(base_url.split(":")[2].split("/")[0]), 0
    for number in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
            found += one.family == socket.AF_INET and one.getpeername()[1] == port
    return found


def outcome_of(**options):
    return Asked(ASK, **options).failure().outcome


# An answer


def test_an_answer_comes_as_it_is_written_and_with_what_it_used(upstream):
    upstream.tokens, upstream.last_word_after = ["Grüße", " an acme 🎉"], threading.Event()
    with Asked(ASK) as asked:
        assert asked.next() == "Grüße"
        upstream.last_word_after.set()
        assert asked.next() == " an acme 🎉"
        assert asked.next() is None
    assert (asked.answer.report(), asked.answer.finish_reason) == (Usage(PROMPT_TOKENS, 2), "stop")


def test_a_call_without_a_hold_is_never_made(upstream):
    with pytest.raises(NotDispatched):
        Asked(ASK, pays=False).open()
    assert upstream.calls == []


def test_a_call_without_a_limit_is_never_made(upstream):
    with pytest.raises(ValueError, match="max_tokens"):
        Asked(ASK, max_tokens=0)
    assert upstream.calls == []


def test_the_key_is_sent_and_nothing_else_from_the_environment(upstream, settings, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "of-somebody-else")
    for secret in ("sk-KEYSECRET", ""):
        settings.LLM_API_KEY = secret
        with Asked(ASK) as asked:
            asked.all()
    with_key, without = upstream.headers
    assert with_key["authorization"] == "Bearer sk-KEYSECRET"
    assert "authorization" not in without
    assert "of-somebody-else" not in repr(upstream.headers)


def test_loopback_is_reached_past_the_environments_proxy(upstream, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Asked(ASK) as asked:
        assert asked.all() == "Hello, world."


def test_a_redirect_is_not_followed_with_the_key_and_the_prompt(upstream):
    upstream.status, upstream.parts = 307, [""]
    upstream.part_headers = {"Location": f"{upstream.base_url}/chat/completions"}
    assert outcome_of() == "none"
    assert len(upstream.calls) == 1


# Leaving


def test_a_cut_before_the_first_word_stops_the_upstream(upstream):
    upstream.delay_first = 30
    with Asked(ASK) as asked:
        asked.cut()
        assert asked.next() is None
    assert upstream.wait_until(lambda u: u.aborted == 1 and u.connections_open == 0)
    assert not asked.answer.has_begun


def test_a_cut_in_the_middle_stops_the_upstream_and_keeps_the_count(upstream):
    upstream.tokens, upstream.last_word_after = ["ab", "c"], threading.Event()
    with Asked(ASK) as asked:
        assert asked.next() == "ab"
        asked.cut()
        assert asked.next() is None
    assert upstream.wait_until(lambda u: u.aborted == 1 and u.connections_open == 0)
    assert (asked.answer.text, asked.answer.counted()) == ("ab", 1)


@pytest.mark.parametrize("mode", ["hang", "delay_first", "delay_between"])
def test_a_cut_ends_whatever_is_waited_for(upstream, mode):
    setattr(upstream, mode, 30)
    asked, seen = Asked(ASK), []
    reader = threading.Thread(target=lambda: seen.append(asked.open().all()))
    reader.start()
    assert upstream.wait_until(lambda u: len(u.calls) == 1)
    assert mode != "delay_between" or eventually(lambda: asked.answer.text == "Hello")
    asked.cut()
    reader.join(15)  # the model would take twice as long
    asked.close()
    assert not reader.is_alive()
    assert seen == ["Hello" if mode == "delay_between" else ""]
    assert upstream.wait_until(lambda u: u.aborted == 1)


def test_a_cut_and_a_close_after_the_end_do_nothing(upstream):
    with Asked(ASK) as asked:
        text = asked.all()
        asked.cut()
    asked.close()
    assert (text, upstream.aborted) == ("".join(upstream.tokens), 0)


def test_a_cut_ends_one_answer_and_no_other(upstream):
    upstream.tokens, upstream.delay_between = ["x"] * 20, 0.02
    every = [Asked(ASK).open() for _ in range(8)]
    every[0].cut()
    assert [asked.all() for asked in every[1:]] == ["x" * 20] * 7
    for asked in every:
        asked.close()
    assert upstream.wait_until(lambda u: u.connections_open == 0)


# Connections


def test_a_connection_is_used_again(upstream, monkeypatch):
    monkeypatch.setattr(llm, "END_SECONDS", 20.0)
    upstream.keep_alive = True
    for _ in range(8):
        with Asked(ASK) as asked:
            assert asked.all()
    # Not always one: on a busy machine the last bytes of an answer may come when its reader is gone.
    assert upstream.connections_made <= 4


@pytest.mark.parametrize("closes_silently", [False, True])
def test_a_connection_that_was_closed_meanwhile_is_not_written_to(upstream, closes_silently):
    upstream.keep_alive, upstream.closes_silently = True, closes_silently
    for number in range(1, 4):
        with Asked(ASK) as asked:
            assert asked.all() == "Hello, world."
        # Again and again: on a busy machine it may still be at the end of its answer.
        assert upstream.wait_until(lambda u: not u.close_idle() and u.connections_open == 0)
        assert len(upstream.calls) == number


def test_no_call_leaves_a_socket_behind(upstream):
    with Asked(ASK) as asked:
        asked.all()
    assert upstream.wait_until(lambda u: u.connections_open == 0)
    assert eventually(lambda: sockets_to(upstream.base_url) == 0)
    for cut, status in ((1, None), (None, 500), (None, 400)):
        upstream.cut_after, upstream.status = cut, status
        for _ in range(3):
            Asked(ASK).failure()
    assert upstream.wait_until(lambda u: u.connections_open == 0 and sockets_to(u.base_url) == 0)


def test_a_forked_process_has_connections_of_its_own(upstream):
    upstream.keep_alive = True
    with Asked(ASK) as asked:
        asked.all()
    pid = os.fork()
    if pid == 0:
        try:
            with Asked(ASK) as asked:
                os._exit(0 if asked.all() else 1)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert upstream.connections_made == 2


# Failures


def test_nobody_there_is_not_reached(upstream, settings):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        settings.LLM_BASE_URL = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        assert outcome_of() == "none"


def test_an_address_nobody_knows_is_not_reached(upstream, settings):
    settings.LLM_BASE_URL = "http://no-such-host.invalid/v1"
    assert outcome_of() == "none"


def test_who_does_not_answer_in_the_time_of_connecting_is_not_tried_again(upstream, settings):
    """Tried twice it would keep the money held, and the next model of a group waiting, for twice the time."""
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        settings.LLM_BASE_URL = f"https://127.0.0.1:{hangs.getsockname()[1]}/v1"
        assert outcome_of() == "none"
        hangs.setblocking(False)
        taken = []
        with contextlib.suppress(BlockingIOError):
            while True:
                taken.append(hangs.accept()[0])
    assert len(taken) == 1
    for one in taken:
        one.close()


def test_the_log_says_why_a_model_was_not_reached_or_broke_off(upstream, settings, caplog):
    mine = "model-of-this-log"
    upstream.drop = True
    assert outcome_of(model=mine) == "unknown"
    settings.LLM_BASE_URL = "https" + upstream.base_url.removeprefix("http")
    assert outcome_of(model=mine) == "none"
    settings.LLM_BASE_URL = "http://no-such-host.invalid/v1"
    assert outcome_of(model=mine) == "none"
    said = [each.rpartition("=")[2] for each in caplog.messages if f"model call failed: model={mine}" in each]
    assert said[0] in ("ConnectionResetError", "the connection was closed")
    assert said[1:] == ["SSLError", "gaierror"]


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 422, 429, 499, 500, 502, 503, 529])
def test_what_the_provider_refuses_costs_nothing_and_is_not_sent_again(upstream, status):
    upstream.status = status
    assert outcome_of() == "none"
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(
    ("mode", "outcome"), [("html", "none"), ("garbage", "unknown"), ("drop", "unknown"), ("hang", "unknown")]
)
def test_an_answer_that_is_none_is_sorted_by_what_can_be_known_and_not_sent_again(upstream, mode, outcome):
    setattr(upstream, mode, True)
    assert outcome_of(first_byte_seconds=0.3 if mode == "hang" else 60.0) == outcome
    assert len(upstream.calls) == 1
    assert upstream.wait_until(lambda u: u.connections_open == 0)


COMMENTS = [": still here\n\n", {"wait_s": 0.05}] * 600


@pytest.mark.parametrize(
    ("parts", "text", "outcome"),
    [
        ([{"wait_s": 30}], "", "unknown"),
        (COMMENTS, "", "unknown"),
        ([said("a"), {"wait_s": 30}], "a", "estimated"),
        ([said("a"), *COMMENTS], "a", "estimated"),
    ],
    ids=["silence", "comments", "silence after a word", "comments after a word"],
)
def test_silence_ends_by_a_clock_whatever_else_comes(upstream, parts, text, outcome):
    upstream.parts = parts
    asked = Asked(ASK, first_byte_seconds=60.0 if text else 0.3, idle_seconds=0.3)
    began = time.monotonic()
    assert asked.failure().outcome == outcome
    assert time.monotonic() - began < 20  # of thirty
    assert asked.answer.text == text
    assert upstream.wait_until(lambda u: u.aborted == 1)


def test_an_answer_that_trickles_for_ever_ends_all_the_same(upstream, monkeypatch):
    monkeypatch.setattr(llm, "CALL_SECONDS", 2.5)
    upstream.tokens, upstream.delay_between = ["a"] * 1_000, 0.05
    assert outcome_of() == "estimated"


@pytest.mark.parametrize("wait", [True, False])
def test_an_answer_that_has_said_all_is_not_waited_for(upstream, monkeypatch, wait):
    """[DONE] never comes: the connection stays open, or breaks."""
    monkeypatch.setattr(llm, "LAST_FRAME_SECONDS", 0.3)
    upstream.parts = [said("a"), STOP, *([{"wait_s": 30}] if wait else [{"wait_s": 0.1}, {"drop": True}])]
    began = time.monotonic()
    with Asked(ASK) as asked:
        assert asked.all() == "a"
    assert time.monotonic() - began < 20  # of thirty
    assert upstream.wait_until(lambda u: u.connections_open == 0)


def test_words_before_the_break_stay_with_the_caller_and_are_charged(upstream):
    upstream.cut_after, upstream.tokens, upstream.delay_between = 2, ["a", "b", "c"], 0.05
    asked = Asked(ASK)
    assert asked.failure().outcome == "estimated"
    assert (asked.answer.text, asked.answer.counted()) == ("ab", 2)


def test_an_end_without_a_reason_or_a_report_is_a_broken_answer(upstream):
    upstream.parts = [said("a")]
    assert outcome_of() == "estimated"


def test_a_failure_says_nothing_of_the_upstream_the_key_or_the_prompt(upstream, caplog):
    caplog.set_level(logging.DEBUG)
    failures = []
    for behaviour in ({"status": 400}, {"status": 401}, {"status": 500}, {"garbage": True}, {"cut_after": 1}):
        upstream.reset()
        for name, value in behaviour.items():
            setattr(upstream, name, value)
        failures.append(Asked(ASK).failure())
    ours = "\n".join(record.getMessage() for record in caplog.records)
    for text in (*(failed.message for failed in failures), ours):
        assert "SECRET" not in text
    for failed in failures:
        assert upstream.base_url.split("/")[2] not in failed.message
        assert set(failed.body()) == {"error", "message", "retry_after_ms"}
    assert "status=400" in ours
    assert [record.levelname for record in caplog.records if "status=401" in record.getMessage()] == ["ERROR"]


# Counting the input, where the server can


@pytest.mark.parametrize(("tokenizer", "counted"), [(12, 12 + llm.COUNT_SPARE), (None, None), (0, None)])
def test_the_input_is_counted_by_the_models_own_server_where_it_counts(upstream, tokenizer, counted, monkeypatch):
    monkeypatch.setattr(llm, "COUNT_SECONDS", 30.0)
    upstream.tokenizer = tokenizer
    assert run(llm.count_tokens(ASK, model="test-model", dialect=dialect_for("test-model"))) == counted
