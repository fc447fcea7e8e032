"""Whoever ends a stream, and when: what came is paid for, what did not is not, and nothing stays behind."""

import socket
import threading

import pytest

from billing.engine import engine
from billing.guard import current_reservation, guarded
from chat import calls, streams
from tests.support.cast import events_of
from tests.support.lossy import LossyProxy

pytestmark = pytest.mark.usefixtures("upstream")

ASK = [{"role": "user", "content": "hello"}]


def true_cost(upstream):
    """What the model really used until its caller was gone."""
    assert upstream.wait_until(lambda up: up.aborted == 1 and up.connections_open == 0)
    tokens_input, tokens_output = upstream.spent[-1]
    return tokens_input * 1_000 + tokens_output * 4_000


def read(response, count):
    """The answer's first events."""
    events = iter(response.streaming_content)
    return b"".join(next(events) for _ in range(count))


@pytest.mark.parametrize("words", [0, 1, 5, 19])
def test_a_reader_who_leaves_pays_for_what_was_read(workspace, upstream, words):
    upstream.tokens = ["word "] * 20
    api = workspace.api()
    assert api.chat("hello").json()["outcome"] == "exact"  # what is estimated is learned from what was reported
    # The model has said what is read, one word at least, and keeps its next one.
    upstream.tokens, upstream.last_word_after = ["word "] * (max(words, 1) + 1), threading.Event()
    response = api.chat("hello", stream=True)
    said = read(response, 1)
    while said.count(b"word") < words:
        said += read(response, 1)
    response.close()
    _, line = workspace.settled(lines=2)
    assert (line.outcome, line.tokens_input) == ("estimated", 10)
    assert words <= line.tokens_output <= words + 3
    assert sum(each.cost for each in workspace.lines()) == workspace.ledger()["spent"]
    # A word or two may have been on their way.
    assert abs(line.cost - true_cost(upstream)) <= 2 * 4_000


def test_what_was_read_is_kept_in_the_conversation(workspace, upstream):
    from chat.models import Message

    upstream.tokens, upstream.delay_between = ["word "] * 200, 0.05
    response = workspace.api().chat("hello", stream=True)
    read(response, 2)
    response.close()
    workspace.settled()
    with workspace.scope():
        answer = Message.objects.get(role="assistant")
    assert answer.text.startswith("word")
    assert (answer.cost, answer.outcome) == (workspace.ledger()["spent"], "estimated")


@pytest.mark.on_standin
def test_a_reader_gone_before_the_first_byte_pays_what_came(workspace, upstream):
    upstream.delay_between = 0.05
    response = workspace.api().chat("hello", stream=True)
    response.close()
    (line,) = workspace.settled()
    assert len(upstream.calls) == 1
    assert workspace.ledger()["spent"] == line.cost <= 10 * 1_000 + 4 * 4_000


@pytest.mark.parametrize("stream", [False, True])
def test_a_reader_gone_before_the_model_answers_pays_the_input(workspace, upstream, stream):
    upstream.hang = True
    request = workspace.api().plane.begin("POST", "/api/chat/", {"prompt": "hello", "stream": stream})
    assert upstream.wait_until(lambda up: len(up.calls) == 1)
    request.leave()
    (line,) = workspace.settled()
    assert (line.outcome, line.tokens_output) == ("estimated", 0)
    assert workspace.ledger()["spent"] == line.cost
    assert 0.6 <= line.cost / true_cost(upstream) <= 1.5


@pytest.mark.parametrize("path", ["/api/chat/", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_reader_gone_while_the_model_is_still_being_reached_pays_nothing(workspace, upstream, settings, stream, path):
    asked = {"/api/chat/": {"prompt": "hello"}, "/v1/chat/completions": {"model": "test-model", "messages": ASK}}
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # to TLS
        settings.LLM_BASE_URL = f"https://127.0.0.1:{deaf.getsockname()[1]}/v1"
        request = workspace.api().plane.begin("POST", path, {**asked[path], "stream": stream})
        line_to_it, _ = deaf.accept()
        request.leave()
        (line,) = workspace.settled(lines=1)
        line_to_it.close()
    assert (line.cost, line.outcome) == (0, "none")
    assert workspace.ledger()["spent"] == workspace.ledger()["reserved"] == 0


def test_a_model_that_refused_unheard_costs_nothing(workspace, upstream):
    upstream.status = 429
    request = workspace.api().plane.begin("POST", "/api/chat/", {"prompt": "hello", "stream": True})
    (line,) = workspace.settled(lines=1)
    request.leave()  # the reader leaves without having heard of the refusal
    assert (line.cost, line.outcome) == (0, "none")
    assert workspace.ledger()["spent"] == workspace.ledger()["reserved"] == 0


def test_a_silent_model_is_waited_for_with_comment_lines(workspace, upstream, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.2)
    upstream.tokens, upstream.last_word_after = ["Hello"], threading.Event()
    parts, body = iter(workspace.api().chat("hello", stream=True).streaming_content), b""
    while b": waiting" not in body:
        body += next(parts)
    upstream.last_word_after.set()
    body += b"".join(parts)
    assert body.startswith(b"event: held")
    assert body.index(b"event: held") < body.index(b": waiting") < body.index(b"event: token")
    assert b"event: done" in body


def test_an_answer_is_cut_before_its_money_is_given_to_others(workspace, upstream, authority, settings, monkeypatch):
    monkeypatch.setattr(engine, "HEARTBEAT_SECONDS", 0.5)
    upstream.tokens, upstream.delay_between = ["word "] * 1_000, 0.02

    @guarded(2_000_000, app="story", ttl_ms=12_000)
    def story():
        answer = calls.complete(ASK)
        assert current_reservation().lease_left() > 0
        return answer

    with LossyProxy(authority.runtime_url) as proxy, workspace.scope():
        proxy.refuse["/extend"] = 100
        settings.CYCLES_BASE_URL = proxy.url
        answer = story()
        (line,) = workspace.settled()  # by the proxy, too
    assert (answer.finish_reason, answer.outcome) == ("cancelled", "estimated")
    assert line.cost == workspace.ledger()["spent"] < line.estimate


def test_closing_twice_charges_once(workspace, upstream):
    response = workspace.api().chat("hello", stream=True)
    list(response.streaming_content)
    response.close()
    response.close()
    (line,) = workspace.settled()
    assert workspace.ledger()["spent"] == line.cost


def test_no_connection_and_no_thread_is_held_while_models_answer(workspace, upstream):
    """More answers at once than the engine has connections, and a call beside them is served."""
    upstream.tokens, upstream.delay_between = ["word "] * 512, 0.05
    api = workspace.api()
    assert api.chat("warm up", max_tokens=1).status_code == 200

    def threads():
        return {thread for thread in threading.enumerate() if "process_request_thread" not in thread.name}

    before = threads()
    slow = [api.chat("hello", stream=True) for _ in range(12)]
    for response in slow:
        read(response, 2)
    assert threads() <= before
    assert api.chat("beside them", max_tokens=1).status_code == 200
    for response in slow:
        response.close()
    assert len(workspace.settled(lines=14)) == 14
    assert threads() <= before
    assert upstream.wait_until(lambda up: up.connections_open == 0)


def test_an_answer_read_to_its_end_says_the_same_as_its_line(workspace, upstream):
    *_, (last, facts) = events_of(workspace.api().chat("hello", stream=True))
    (line,) = workspace.settled()
    assert (last, facts["cost"]["microcents"], facts["outcome"]) == ("done", line.cost, line.outcome)
