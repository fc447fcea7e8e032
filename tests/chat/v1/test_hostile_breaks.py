"""A model's server that means harm: what it sends costs its reader's words, and nothing of anybody else's."""

from __future__ import annotations

import json
import time

import pytest

from billing.prices import Usage
from chat.answer import Answer
from chat.relay import Relay
from chat.whole import Whole
from tests.chat.v1.test_relaying import DONE, chunks_of, frame, said
from tests.chat.v1.test_relaying_ends import REPORT, SECRET, STOP, TRUE, WORDS, answers, own_chunks
from tests.support.money import assert_books_agree
from tests.support.raw_model import CHUNKED

pytestmark = pytest.mark.usefixtures("upstream")


def seconds_of(work, *args):
    """Of this thread's own CPU, the best of three: others work on the same cores."""

    def once():
        began = time.thread_time()
        work(*args)
        return time.thread_time() - began

    return min(once() for _ in range(3))


# --- much work for a few bytes --------------------------------------------------------------------------------------


def delta(**said):
    return frame({"choices": [{"index": 0, "delta": said}]})


GROWING = {
    "tools": lambda i: delta(tool_calls=[{"index": i, "function": {"name": "f", "arguments": "{}"}}]),
    "what is said of tokens": lambda i: frame(
        {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [{"token": "a"}]}}]}
    ),
}


@pytest.mark.parametrize("kind", GROWING)
def test_events_instead_of_one_piece_cost_no_more_the_longer_they_are(kind):
    def read(count):
        whole = Whole(max_tokens=1_000)
        for start in range(0, count, 100):
            whole.feed(b"".join(GROWING[kind](i) for i in range(start, start + 100)))
        whole.feed(STOP + DONE)
        assert whole.is_done
        assert whole.body

    few, many = seconds_of(read, 1_000), seconds_of(read, 6_000)
    assert many < 15 * few, "six times as many took six times as long, and not thirty-six"


def test_events_instead_of_one_piece_are_read_as_they_come():
    whole = Whole(max_tokens=1_000)
    for _ in range(3_000):
        whole.feed(WORDS[0])
    assert whole.deltas == 3_000
    assert seconds_of(whole.close) < 0.05, "the loop, and everybody's streams, wait for what is done at the end"


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_events_instead_of_one_piece_are_put_together_however_they_were_cut(size):
    raw = b"\xef\xbb\xbf: hi\n\n" + b"".join(WORDS) + delta(tool_calls=[{"index": 1, "function": {"arguments": "{"}}])
    raw += delta(tool_calls=[{"index": 1, "function": {"arguments": "}"}}]) + STOP + REPORT + DONE
    whole, words = Whole(max_tokens=1_000), ""
    for start in range(0, len(raw), size):
        words += whole.feed(raw[start : start + size])
    assert whole.is_done
    assert words == "Hello big world"
    (choice,) = json.loads(whole.body)["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello big world", "stop")
    assert choice["message"]["tool_calls"] == [{"index": 1, "function": {"arguments": "{}"}}]


def test_messages_for_deltas_cost_no_more_the_more_there_are():
    def read(count):
        answer = Answer(max_tokens=100_000)
        first, *_ = messages = [frame({"choices": [{"index": 0, "message": {"content": each}}]}) for each in "bc"]
        answer.feed(first + messages[1] * count)
        assert answer.deltas == count + 1

    few, many = seconds_of(read, 4_000), seconds_of(read, 16_000)
    assert many < 10 * few


FAR_APART = (1 << 61) - 1  # what a table of Python's keeps in one place, however many there are
NUMBERED = {
    "answers": lambda i: frame({"choices": [{"index": i * FAR_APART}]}),
    "tools": lambda i: delta(tool_calls=[{"index": i * FAR_APART}]),
}


@pytest.mark.parametrize("kind", NUMBERED)
def test_numbers_that_meet_in_one_place_cost_no_more_the_more_there_are(kind):
    def read(data):
        Whole(max_tokens=1_000).feed(data)

    every = [NUMBERED[kind](i) for i in range(12_000)]
    few, many = seconds_of(read, b"".join(every[:3_000])), seconds_of(read, b"".join(every))
    assert many < 8 * few


@pytest.mark.parametrize("value", ["[],", "{},", "1,"])
def test_a_frame_of_many_lines_is_not_read_again_at_each_of_them(value):
    longest = b"data: [" + value.encode() * (900_000 // len(value)) + b"\n"

    def read(lines):
        data = longest + b"data: []\n" * lines + b"\n"
        answer, relay = Answer(), Relay()
        answer.feed(data)
        relay.feed(data, answer)

    few, many = seconds_of(read, 1), seconds_of(read, 64)
    assert many < 3 * few


def test_a_long_frame_of_many_lines_of_which_some_are_nothing_is_not_read_line_by_line_either():
    def read(size):
        data = b'data: {"choices":[\njunk\ndata: ' + b"{}," * size + b"{}]\ndata: }\n\n"
        answer, relay = Answer(), Relay()
        answer.feed(data)
        (chunk,) = chunks_of(relay.feed(data, answer))
        assert len(chunk["choices"]) == size + 1

    own = 'data: {"choices":[' + "{}," * 300_000 + "{}]}\n\n"
    assert seconds_of(read, 300_000) < 8 * seconds_of(Answer().feed, own.encode())


@pytest.mark.parametrize("piece", [b'"usage":{', b'"usage":{},', b'"usage":{"usage":[],'])
def test_reports_in_a_long_answer_without_an_end_to_them_keep_nobody_waiting(piece):
    def read():
        whole = Whole(max_tokens=1_000)
        whole.feed(b'{"choices":[' + piece * (3_000_000 // len(piece)) + b"}")
        whole.close()
        assert whole.is_done

    assert seconds_of(read) < 0.3  # twenty seconds, where each was tried


@pytest.mark.parametrize("is_first", [True, False])
def test_the_report_of_a_long_answer_is_found_wherever_it_stands(is_first):
    usage, pad = {"usage": {"prompt_tokens": 7, "completion_tokens": 3}}, {"pad": "x" * 300_000}
    choices = {"choices": [{"index": 0, "message": {"content": 'it says "usage": {} and ends'}, "usage": None}]}
    whole = Whole(max_tokens=1_000)
    whole.feed(json.dumps({**usage, **pad, **choices} if is_first else {**choices, **pad, **usage}).encode())
    whole.close()
    assert whole.report() == Usage(7, 3)


@pytest.mark.parametrize("nothing", [None, "", False, 0, {}, []], ids=repr)
@pytest.mark.parametrize("spaces", [0, 1, 4])
def test_a_long_answer_that_says_that_there_was_no_error_is_an_answer(nothing, spaces):
    said = {"error": nothing, "choices": [{"message": {"content": "a" * 300_000}}], "usage": {"prompt_tokens": 1}}
    whole = Whole(max_tokens=1_000)
    whole.feed(json.dumps(said).replace('"error": ', '"error":' + " " * spaces).encode())
    whole.close()
    assert (whole.error, whole.is_done) == (False, True)


@pytest.mark.parametrize("error", [{"message": "no"}, "no", 500, True], ids=repr)
def test_a_long_answer_that_says_that_there_was_an_error_is_none(error):
    whole = Whole(max_tokens=1_000)
    whole.feed(json.dumps({"choices": [], "pad": "x" * 300_000, "error": error}).encode())
    whole.close()
    assert whole.error


def test_a_long_line_in_small_pieces_is_not_looked_at_again_for_each():
    def read(count):
        answer, relay, passed = Answer(), Relay(), b""
        for piece in [b'{"choices":[{"index":0,"delta":{"content":"a"}}]}\n', b'data: {"x":"'] + [b"x" * 500] * count:
            answer.feed(piece)
            passed += relay.feed(piece, answer)
        answer.feed(b'"}\n\n')
        assert relay.feed(b'"}\n\n', answer).endswith(b'xx"}\n\n')

    assert seconds_of(read, 1_500) < 0.1


@pytest.mark.parametrize("value", ['{"choices":[{"index":0,"delta":{"content":"a"}}]}', "{}"])
def test_frames_that_are_always_open_are_not_looked_at_again_for_each_piece(value):
    """Garbage that may be a frame's first line ends the one before, so that there is never a place between two."""
    piece = b"data: ]\n[x\n" + value.encode() + b"\n"

    def read(count):
        answer, relay, passed = Answer(), Relay(), b""
        for _ in range(count):
            answer.feed(piece)
            passed += relay.feed(piece, answer)
        answer.close()
        passed += relay.close(answer)
        assert passed.count(b'"a"') == count * value.count('"a"')

    few, many = seconds_of(read, 200), seconds_of(read, 800)
    assert many < 8 * few


@pytest.mark.parametrize("before", [1, 700])
def test_an_error_in_frames_that_are_always_open_is_held_back(before):
    answer, relay, passed = Answer(), Relay(), b""
    bodies = [said(f"{i};") for i in range(before)] + [frame({"error": SECRET}), said("late")]
    for body in bodies:
        piece = b"data: ]\n[x\n" + body.strip().removeprefix(b"data: ") + b"\n"
        answer.feed(piece)
        passed += relay.feed(piece, answer)
    passed += relay.close(answer)
    assert (answer.error, SECRET.encode() in passed, b"late" in passed) == (True, False, False)


# --- HTTP's own noise -----------------------------------------------------------------------------------------------

MANY = 64 * 1024 * 1024
UNHEARD = {
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2_000),
    "blank lines before the answer": (b"", b"\r\n" * 20_000),
    "what stands beside a chunk": (CHUNKED + b"5;", b"a=b;" * 20_000),
}


@pytest.mark.parametrize("kind", UNHEARD)
def test_what_http_itself_reads_away_is_cut_long_before_its_time(workspace, model, ask, kind):
    head, noise = UNHEARD[kind]
    sent = 0

    def script(line):
        nonlocal sent
        line.send(head)
        while sent < MANY:
            line.send(noise)
            sent += len(noise)

    model.script = script
    assert ask(stream=True).status_code == 502
    # By what could be sent and not by a clock: others work on the same cores. The sockets hold some of it.
    assert sent < MANY / 4
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.tokens_output) == ("unknown", 0)
    assert_books_agree(workspace)


def test_an_answer_in_chunks_of_a_byte_is_no_noise(workspace, model, ask):
    long = [said("word " * 200), *WORDS]
    pieces = [bytes([byte]) for byte in b"".join([*long, STOP, REPORT, DONE])]
    model.script = lambda line: (line.send(CHUNKED + b"".join(b"1\r\n%b\r\n" % piece for piece in pieces)), line.end())
    response = ask(stream=True, max_tokens=2_000)
    assert response.content.startswith(b"".join([*long, STOP, REPORT]))
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("exact", TRUE)


# --- words of its own -----------------------------------------------------------------------------------------------

FAILED = [
    {"detail": f"Unauthorized: {SECRET}"},
    {"detail": [{"loc": ["body"], "msg": SECRET}]},
    {"status": 401, "message": SECRET},
    {"status": "error", "message": SECRET},
    {"statusCode": "500", "message": SECRET},
    {"success": False, "message": SECRET},
]


@pytest.mark.parametrize("value", FAILED, ids=lambda value: ",".join(value))
def test_an_error_without_the_word_is_not_passed_on(value):
    answer, relay = Answer(), Relay()
    data = WORDS[0] + frame(value)
    answer.feed(data)
    assert relay.feed(data, answer) == WORDS[0]
    assert answer.error


def test_a_report_of_progress_is_no_error():
    answer = Answer()
    for value in ({"status": "queued", "message": "Waiting"}, {"status": 200, "message": "ok"}, {"type": "ping"}):
        answer.feed(frame(value))
    assert not answer.error


NESTED = json.loads("[" * 400 + "]" * 400)


@pytest.mark.parametrize("head", [{"id": NESTED}, {"id": "x" * 5_000}, {"created": float("nan")}, {"model": {"a": 1}}])
def test_what_a_model_says_of_itself_makes_no_odd_chunk_of_ours(workspace, model, ask, head):
    first = frame({**head, "choices": [{"index": 0, "delta": {"content": "Hello"}}]})
    model.script = answers(first, *WORDS[1:], STOP, REPORT, DONE)
    response = ask(stream=True)
    (own,) = own_chunks(response)
    assert (type(own["id"]), type(own["created"]), type(own["model"])) == (str, int, str)
    assert len(own["id"]) < 300
    assert len(chunks_of(response.content)) == 6
    assert own["budget"]["outcome"] == "exact"
