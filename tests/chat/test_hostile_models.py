"""Models that lie, flood and mix up their answers: nobody else pays for it, waits for it, or is shown it."""

import asyncio
import gzip
import threading
import time
import zlib

import pytest
from django.conf import settings

from chat import llm, streams
from chat.dialect import dialect_for
from tests.support.asking import Asked
from tests.support.cast import events_of
from tests.support.money import INPUT, OUTPUT, assert_books_agree
from tests.support.plane import run
from tests.support.raw_model import CHUNKED, DONE, HEAD, STOP, RawModel, frame, report, said

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture
def model(app, settings):
    """A model of this test's own at the usual price, that does as `model.script` says."""
    with RawModel() as model:
        settings.LLM_BASE_URL, settings.LLM_MODEL = model.base_url, f"raw-{id(model)}"
        settings.LLM_PRICES = {settings.LLM_MODEL: {"input": INPUT * 1_000_000, "output": OUTPUT * 1_000_000}}
        yield model


def answers(*parts):
    """Sends these bytes in chunks, with silences of so many seconds."""

    def script(line):
        line.send(CHUNKED)
        for part in parts:
            line.chunk(part) if isinstance(part, bytes) else line.wait(part)
        line.end()

    return script


def ask_at(door, workspace, **fields):
    """The same question at each of the two doors."""
    api = workspace.api()
    if door == "/api/chat/":
        return api.chat("hello", **fields)
    return api.post("/v1/chat/completions", {"model": settings.LLM_MODEL, "messages": ASK, **fields})


at_each_door = pytest.mark.parametrize("door", ["/api/chat/", "/v1/"])
good = answers(said("Hello"), STOP, report(10, 1), DONE)


MUCH = 128 * 1024 * 1024


def floods(noise, *before):
    """A model's script, and a list of how many bytes it sent: on and on while it is listened to, up to MUCH."""
    sent = []

    def script(line):
        line.send(HEAD, b"\r\n", *before)
        while sum(sent) < MUCH:
            line.send(noise * 1_000)
            sent.append(len(noise) * 1_000)

    return script, sent


# --- what was said to one is not given to another -------------------------------------------------------------------


def test_what_comes_on_a_connection_that_nobody_waits_on_is_no_answer_to_the_next_call(model):
    was_read, has_come = threading.Event(), threading.Event()

    def script(line):
        good(line)
        if len(model.requests) == 1:
            assert was_read.wait(20)
            try:
                answers(said("of somebody else"), STOP, report(10, 3), DONE)(line)
            finally:
                has_come.set()

    model.script = script
    with Asked(ASK) as asked:
        assert asked.all() == "Hello"
    was_read.set()
    assert has_come.wait(20)
    run(asyncio.sleep(0.1))  # a turn of the loop, which hears of it
    with Asked(ASK) as asked:
        assert asked.all() == "Hello"
    assert (model.connections_made, len(model.requests)) == (2, 2)


@at_each_door
def test_an_answer_that_comes_late_is_never_told_to_another_workspace(workspace, globex, model, door):
    """A server that is one answer behind on a connection, as one is behind a proxy that gave up and asked again."""
    last = {}

    def script(line):
        answers(said(last.get(line.connection, "for its own")), STOP, report(10, 3), DONE)(line)
        last[line.connection] = "for somebody else"

    model.script = script
    for _ in range(3):
        for asks in (workspace, globex):
            answer = ask_at(door, asks, stream=True)
            assert b"somebody else" not in answer.content


# --- the bytes ------------------------------------------------------------------------------------------------------

NOISE = {
    "comments": b": x\n\n",
    "blank lines": b"\n" * 20,
    "nulls": b"data: null\n\n",
    "bodies": b"{}\n",
    "no choices": b'data: {"choices":[]}\n\n',
    "another protocol": b'data: {"candidates":[{"content":{"parts":[{"text":"hi "}]}}]}\n\n',
}


@pytest.mark.parametrize("noise", NOISE)
def test_a_flood_that_says_nothing_is_cut_long_before_its_time(model, noise):
    model.script, sent = floods(NOISE[noise])
    assert Asked(ASK).failure().outcome == "unknown"
    # By what could be sent and not by a clock: others work on the same cores. The sockets hold some of it.
    assert sum(sent) < MUCH / 4, "sixty seconds of it take all of a processor"
    assert model.wait_until(lambda m: m.left == 1)


@pytest.mark.parametrize("noise", NOISE)
def test_a_flood_that_says_nothing_is_cut_at_v1_too_and_its_reader_told(workspace, model, noise):
    model.script, sent = floods(NOISE[noise])
    assert b'"error"' in ask_at("/v1/", workspace, stream=True).content
    assert sum(sent) < MUCH / 4
    (line,) = workspace.settled(lines=1)
    assert line.outcome in ("unknown", "estimated")
    assert model.wait_until(lambda m: m.left == 1)


def sends_again_and_again(frame, *, times):
    """A model's script, and a list that has an item for each time that it was sent."""
    sent = []

    def script(line):
        line.send(HEAD, b"\r\n")
        for number in range(times):
            line.send(frame)
            sent.append(number)

    return script, sent


def test_a_letter_in_each_megabyte_of_nothing_is_a_flood_too(model):
    nothing = b'data: {"choices":[%b{"index":0,"delta":{"content":"a"}}]}\n\n' % (b"{}," * 300_000)

    model.script, sent = sends_again_and_again(nothing, times=40)
    failure = Asked(ASK).failure()
    # Some of it waits in the sockets.
    assert (failure.outcome, len(sent) < 20) == ("estimated", True)


def test_events_of_nothing_instead_of_one_piece_do_not_become_a_gigabyte(workspace, model):
    """Each empty object is three bytes on the line, and sixty or more in memory."""
    nothing = b'data: {"choices":[{"index":0,"delta":{"tool_calls":[%b{}]}}]}\n\n' % (b"{}," * 300_000)

    model.script, sent = sends_again_and_again(nothing, times=35)
    assert ask_at("/v1/", workspace).status_code == 502
    assert len(sent) < 20  # some of it waits in the sockets
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "estimated"
    assert_books_agree(workspace)


def test_what_comes_in_one_piece_is_not_all_looked_at_in_one_go(model):
    body = gzip.compress(b"data: null\n\n" * 1_000_000)
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    model.script = lambda line: line.send(head, body)
    began = time.process_time()
    assert Asked(ASK).failure().outcome == "unknown"
    assert time.process_time() - began < 2  # seven seconds, in which nobody else was served


def test_a_flood_after_all_was_said_is_the_end(model, monkeypatch):
    monkeypatch.setattr(llm, "LAST_FRAME_SECONDS", 60.0)
    model.script, sent = floods(NOISE["comments"], said("Hello"), STOP, report(10, 1))
    with Asked(ASK) as asked:
        assert asked.all() == "Hello"
    assert sum(sent) < MUCH / 4


def test_a_report_before_the_first_word_does_not_end_the_waiting_for_it(model, monkeypatch):
    monkeypatch.setattr(llm, "LAST_FRAME_SECONDS", 0.2)
    early = frame({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}})
    model.script = answers(early, 0.6, said("Hello"), STOP, report(10, 1), DONE)
    with Asked(ASK) as asked:
        assert asked.all() == "Hello"


def test_an_answer_under_another_success_than_200_is_one(model):
    body = said("Hello") + STOP + report(10, 1) + DONE
    model.script = lambda line: line.send(b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    with Asked(ASK) as asked:
        assert asked.all() == "Hello"


def test_a_count_without_an_end_is_not_read_into_memory(model, settings):
    sent = []

    def script(line):
        line.send(b"HTTP/1.1 200 OK\r\n\r\n[")
        while True:
            line.send(b"1," * 50_000)
            sent.append(100_000)

    model.script = script

    async def count():
        return await llm.count_tokens(ASK, model=settings.LLM_MODEL, dialect=dialect_for(settings.LLM_MODEL))

    assert run(count()) is None
    assert sum(sent) < 64 * 1024 * 1024


def test_headers_without_an_end_behind_an_answer_keep_nobody_from_his(workspace, model):
    """Each was put to those before it: a minute in which nobody was served."""

    def script(connection):
        if len(model.requests) > 1:
            return good(connection)
        connection.send(CHUNKED)
        connection.chunk(said("Hello") + STOP + report(10, 1) + DONE)
        connection.send(b"0\r\n")
        while True:
            connection.send(b"a:b\r\n" * 20_000)

    model.script = script
    began = time.monotonic()
    with Asked(ASK) as asked:
        assert asked.all() == "Hello"
    assert ask_at("/v1/", workspace).status_code == 200
    assert time.monotonic() - began < 30
    assert model.wait_until(lambda m: m.left == 1)


@pytest.mark.parametrize("how", ["br", "zstd", "gzip", "gzip, br", "br, identity", "gzip, gzip"])
def test_words_that_cannot_be_unpacked_were_written_all_the_same(model, how):
    body = b"\x8b\x02\x80" * 100
    head = HEAD + f"Content-Encoding: {how}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    model.script = lambda connection: connection.send(head, body)
    assert Asked(ASK).failure().outcome == "unknown"


def test_an_answer_that_is_compressed_although_nobody_asked_for_it_is_told_word_by_word(model):
    press, was_told = zlib.compressobj(wbits=31), threading.Event()

    def script(connection):
        connection.send(HEAD, b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
        for words in (said("Hel"), said("lo") + STOP + report(10, 1) + DONE):
            connection.chunk(press.compress(words) + press.flush(zlib.Z_SYNC_FLUSH))
            assert was_told.wait(20)
        connection.chunk(press.flush())
        connection.end()

    model.script = script
    with Asked(ASK) as asked:
        assert asked.next() == "Hel"
        was_told.set()
        assert asked.all() == "lo"


# --- the figures ----------------------------------------------------------------------------------------------------


@at_each_door
def test_a_report_that_is_not_believed_teaches_nobody_what_calls_need(workspace, model, door):
    model.script = answers(said("word"), STOP, report(1_000_000, 1_000_000), DONE)
    for _ in range(3):
        assert ask_at(door, workspace).status_code == 200
    assert [line.outcome for line in workspace.settled(lines=3)] == ["overrun"] * 3
    model.script = answers(said("word"), 30)
    response = ask_at(door, workspace, stream=True)
    events = iter(response.streaming_content)
    while b"word" not in next(events):
        pass
    response.close()
    *_, line = workspace.settled(lines=4)
    true = 10 * INPUT + OUTPUT
    assert (line.outcome, line.cost <= 2 * true) == ("estimated", True), (line.cost, true)
    assert_books_agree(workspace)


@pytest.mark.parametrize("reason", ["budget", "cancelled"])
@at_each_door
def test_no_model_says_that_the_money_ended(workspace, model, reason, door):
    end = frame({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    model.script = answers(said("word"), end, report(10, 1), DONE)
    body = ask_at(door, workspace, stream=True).content.decode()
    assert '"ended":true' not in body if door == "/v1/" else '"finish_reason":"stop"' in body


# --- the words ---------------------------------------------------------------------------------------------------


def test_words_that_cost_much_to_show_or_to_index_hold_up_nobody(workspace, globex, model):
    table = "|a" * 250 + "\n" + "|-" * 250 + "\n" + "a\n" * 500 + "\n"
    model.script = answers(said(table + "b\n\n"), said("a_" * 25_000), said("[" * 500_000), STOP, DONE)
    began = time.monotonic()
    events = events_of(workspace.api().chat("hello", stream=True, rendered=True))
    (line,) = workspace.settled(lines=1)
    assert (events[-1][0], events[-1][1]["cost"]["microcents"]) == ("done", line.cost)
    assert events[-1][1]["html"].startswith('<p class="words__plain"')
    model.script = good
    assert globex.api().chat().status_code == 200
    assert time.monotonic() - began < 20  # half a minute in Postgres alone
    assert workspace.holds() == 0
    assert_books_agree(workspace)


# --- the reader -----------------------------------------------------------------------------------------------------


def test_a_reader_hears_that_an_answer_is_under_way_while_the_model_thinks(workspace, model, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.3)
    thought, has_heard = frame({"choices": [{"index": 0, "delta": {"reasoning": "hm"}}]}), threading.Event()

    def script(line):
        line.send(CHUNKED)
        while not has_heard.is_set():
            line.chunk(thought)
            line.wait(0.1)
        line.chunk(said("word"), STOP, report(10, 13), DONE)
        line.end()

    model.script = script
    parts, body = iter(workspace.api().chat("hello", stream=True).streaming_content), b""
    while body.count(b": waiting") < 2:
        body += next(parts)
    has_heard.set()
    assert b"".join([body, *parts]).count(b"event: token") == 1
