"""Whoever ends a stream, and when: what came is paid for, what did not is not, and nothing stays behind."""

import threading
import time

import pytest
from django.db import connection

from chat import services, streams

pytestmark = pytest.mark.usefixtures("upstream")


def test_a_reader_who_leaves_pays_for_what_was_read(workspace, upstream):
    upstream.tokens, upstream.delay_between = ["word "] * 200, 0.05
    before = upstream.connections_open
    response = workspace.api().chat("hello", stream=True)
    chunks = iter(response.streaming_content)
    for _ in range(5):
        next(chunks)
    response.close()
    (line,) = workspace.lines()
    assert line.outcome == "estimated"
    assert 5 <= line.tokens_output < 50
    assert workspace.ledger()["spent"] == line.cost < line.estimate
    assert workspace.ledger()["reserved"] == 0
    assert workspace.holds() == 0
    assert upstream.wait_until(lambda up: up.connections_open <= before)


def test_what_was_read_is_kept_in_the_conversation(workspace, upstream):
    upstream.tokens, upstream.delay_between = ["word "] * 200, 0.05
    response = workspace.api().chat("hello", stream=True)
    next(iter(response.streaming_content))
    response.close()
    with workspace.scope():
        from chat.models import Message

        answer = Message.objects.get(role="assistant")
        assert answer.text.startswith("word")
        assert answer.cost == workspace.ledger()["spent"]


def test_a_reader_gone_before_the_first_byte_pays_the_input_at_least(workspace, upstream):
    response = workspace.api().chat("hello", stream=True)
    response.close()
    assert len(upstream.calls) == 1
    ledger = workspace.ledger()
    assert ledger["spent"] >= 10 * 1_000
    assert ledger["reserved"] == 0
    assert workspace.holds() == 0


def test_a_reader_gone_before_the_model_answers_pays_the_input(workspace, upstream, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.2)
    upstream.hang = True
    before = upstream.connections_open
    response = workspace.api().chat("hello", stream=True)
    first = next(iter(response.streaming_content))
    assert first.startswith(b":")
    response.close()
    (line,) = workspace.lines()
    assert (line.outcome, line.tokens_output) == ("estimated", 0)
    assert upstream.wait_until(lambda up: up.connections_open == before)
    assert workspace.ledger()["spent"] == line.cost >= 10 * 1_000
    assert workspace.ledger()["reserved"] == 0


def test_a_model_that_refused_unheard_costs_nothing(workspace, upstream, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.2)
    slow, before = threading.Event(), upstream.connections_open

    def refuse_late(messages, *, model, max_tokens, cut):
        slow.wait(10)
        upstream.status = 429
        return open_stream(messages, model=model, max_tokens=max_tokens, cut=cut)

    open_stream = services.llm.open_stream
    monkeypatch.setattr(services.llm, "open_stream", refuse_late)
    response = workspace.api().chat("hello", stream=True)
    assert next(iter(response.streaming_content)).startswith(b":")
    slow.set()
    assert upstream.wait_until(lambda up: len(up.calls) == 1 and up.connections_open <= before)
    time.sleep(0.2)
    response.close()  # the reader leaves without having heard of the refusal
    assert workspace.ledger()["spent"] == workspace.ledger()["reserved"] == 0
    assert workspace.lines() == []


def test_a_silent_model_is_waited_for_with_comment_lines(workspace, upstream, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.2)
    upstream.delay_first = 1.0
    response = workspace.api().chat("hello", stream=True)
    body = b"".join(response.streaming_content)
    response.close()
    assert body.startswith(b": ")
    assert body.index(b": ") < body.index(b"event: token")
    assert b"event: done" in body


def test_a_call_is_cut_before_its_hold_runs_out(workspace, upstream, monkeypatch):
    monkeypatch.setattr(streams, "LEASE_MARGIN_SECONDS", 1_000.0)
    upstream.tokens, upstream.delay_between = ["word "] * 200, 0.02
    body = workspace.api().chat("hello").json()
    assert body["finish_reason"] == "cancelled"
    (line,) = workspace.lines()
    assert (line.outcome, line.tokens_output < 50) == ("estimated", True)


def test_closing_twice_charges_once(workspace, upstream):
    response = workspace.api().chat("hello", stream=True)
    list(response.streaming_content)
    response.close()
    response.close()
    assert len(workspace.lines()) == 1
    assert workspace.ledger()["spent"] == workspace.lines()[0].cost


def test_no_connection_is_held_while_the_model_answers(workspace, upstream):
    upstream.delay_between = 0.05
    response = workspace.api().chat("hello", stream=True)
    chunks = iter(response.streaming_content)
    next(chunks)
    assert connection.connection is None
    list(chunks)
    assert connection.connection is None
    response.close()


def test_no_thread_stays_behind(workspace, upstream):
    upstream.tokens, upstream.delay_between = ["word "] * 200, 0.05
    workspace.api().chat("warm up", max_tokens=1)
    before = {thread.name for thread in threading.enumerate()}
    for read in (0, 1, 3):
        response = workspace.api().chat("hello", stream=True)
        chunks = iter(response.streaming_content)
        for _ in range(read):
            next(chunks)
        response.close()
    after = {thread.name for thread in threading.enumerate() if thread.is_alive()}
    assert after - before == set()
