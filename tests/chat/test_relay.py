"""An answer's bytes on their way: as they came, however they were split, and never an error's words."""

from __future__ import annotations

import json
import random
import re
import time

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat.answer import Answer
from chat.chunks import storable, words_of
from chat.outlet import Outlet
from chat.relay import Relay
from tests.support.odd_answers import odd_answers

STREAMS = [case for case in odd_answers() if case.status == 200]
SHORT = [case for case in STREAMS if sum(map(len, case.pieces())) < 20_000]
DONE = b"data: [DONE]\n\n"
SAYS_NOTHING = re.compile(rb'(id|retry)(:.*)?|data:\s*(null|\d+|true|false|"(?!\[DONE).*")?\s*')


def frame(value, end=b"\n\n"):
    return b"data: " + json.dumps(value).encode() + end


def said(text, **more):
    return frame({"choices": [{"index": 0, "delta": {"content": text}}], **more})


ERROR = {"error": {"message": "Incorrect API key sk-SECRET at http://10.0.0.7"}}


def relayed(pieces, *, content_type="text/event-stream", max_tokens=None, for_stock_client=False):
    """What a reader gets of these, as chat.streams drives it."""
    answer, passed = Answer(content_type=content_type, max_tokens=max_tokens), b""
    relay = Relay(for_stock_client=for_stock_client)
    for piece in pieces:
        answer.feed(piece)
        passed += relay.feed(piece, answer)
        if answer.is_done or answer.error or answer.is_broken:
            return passed
    answer.close()
    return passed + relay.close(answer)


def of(case, pieces=None):
    content_type = case.headers.get("Content-Type", "")
    return relayed(pieces or case.pieces(), content_type=content_type, max_tokens=case.max_tokens)


def until_done(data):
    lines = data.splitlines(keepends=True)
    ends = [
        n
        for n, line in enumerate(lines)
        if line.replace(b'"', b"").strip().upper() in (b"DATA: [DONE]", b"DATA:[DONE]")
    ]
    return b"".join(lines[: ends[0]] if ends else lines)


def without_blanks(data):
    return data.replace(b"\n\n\n", b"\n\n")


def is_passed_on_as_it_came(case):
    """All but what is no event's, what is not whole, and an error."""
    raw = b"".join(case.pieces())
    is_bare = raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[", b"<")
    is_no_event = any(word in case.about for word in ("garbage", "digits", "blanks before"))
    return case.right["ends"] == "done" and not is_bare and not is_no_event


@pytest.mark.parametrize("case", list(filter(is_passed_on_as_it_came, STREAMS)), ids=lambda case: case.name)
def test_an_odd_answer_is_passed_on_byte_for_byte(case):
    assert of(case) == until_done(b"".join(case.pieces())), case.about


def test_most_odd_answers_are_passed_on_as_they_came():
    assert len([case for case in STREAMS if is_passed_on_as_it_came(case)]) > 60


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_the_bytes_may_come_one_by_one(case):
    every = b"".join(case.pieces())
    assert of(case, [every[i : i + 1] for i in range(len(every))]).rstrip() == of(case, [every]).rstrip()


@given(st.sampled_from(SHORT), st.randoms(use_true_random=False))
def test_the_bytes_may_be_split_anywhere(case, chance):
    every = b"".join(case.pieces())
    cuts = sorted(chance.choices(range(len(every) + 1), k=8))
    pieces = [every[start:end] for start, end in zip([0, *cuts], [*cuts, len(every)], strict=True)]
    assert of(case, pieces).rstrip() == of(case, [every]).rstrip()


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case.name)
def test_what_a_reader_gets_says_the_same_words(case):
    raw, passed = Answer(max_tokens=case.max_tokens), Answer(max_tokens=case.max_tokens)
    words = "".join([raw.feed(piece) for piece in case.pieces()]) + raw.close()
    assert passed.feed(of(case)) + passed.close() == words
    assert passed.counted() == raw.counted()


# --- errors ---------------------------------------------------------------------------------------------------------

ERRORS = {
    "a frame": frame(ERROR),
    "by the event's name": b"event: error\ndata: key sk-SECRET\n\n",
    "by the event's name, with CR": b"event: error\rdata: key sk-SECRET\r\r",
    "in a choice": frame({"choices": [{"index": 1, "delta": {}, **ERROR}]}),
    "as another choice's reason": frame(
        {"choices": [{"index": 1, "delta": {"sk-SECRET": ""}, "finish_reason": "error"}]}
    ),
    "in two lines": b'data: {"error":\ndata: "sk-SECRET"}\n\n',
    "without a blank line": frame(ERROR, end=b"\n"),
    "without an end": frame(ERROR, end=b""),
    "bare": json.dumps(ERROR).encode() + b"\n",
    "bare and unknown": b'{"detail": "sk-SECRET"}\n',
    "a sentence": b"data: upstream failed: sk-SECRET\n\n",
    "a line of no event": b"upstream connect error, sk-SECRET\n\n",
    "a page": b"<html><body>sk-SECRET</body></html>\n",
    "broken off": b'data: {"error": {"message": "sk-SECRET',
    "in a list": b"data: [" + json.dumps(ERROR).encode() + b"]\n\n",
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("size", [1, 3, 7, 40, 10_000])
def test_an_errors_words_stay_here_and_what_came_before_it_does_not(error, size):
    every = said("Hello") + said(" you") + ERRORS[error]
    passed = relayed([every[i : i + size] for i in range(0, len(every), size)])
    assert without_blanks(passed) == said("Hello") + said(" you")


@pytest.mark.parametrize("error", ERRORS)
def test_nothing_passes_after_the_end_mark(error):
    assert relayed([said("Hello") + DONE + ERRORS[error] + said("more")]) == said("Hello")


@pytest.mark.parametrize("error", ["a sentence", "a line of no event", "a page"])
def test_words_after_what_is_no_event_are_the_readers(error):
    passed = relayed([said("Hello") + ERRORS[error] + said(" you") + DONE])
    assert without_blanks(passed) == said("Hello") + said(" you")


def test_what_is_no_event_is_left_out_of_a_frame_in_several_lines():
    good = b'data: {"choices": [{"index": 0,\n', b'data: "delta": {"content": "Hello"}}]}\n\n'
    assert relayed([good[0] + b"what is this\n" + good[1] + DONE]) == b"".join(good)


@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_the_stock_client_gets_nothing_that_says_nothing_and_all_beside_it_as_it_came(size):
    every = b"retry: 3000\n\nid: 1\nevent: x\n" + said("Hello")
    every += b'data: null\n\ndata:\n\n: ping\n\ndata: "busy"\n\nid: 2\n' + said(" you") + DONE
    pieces = [every[i : i + size] for i in range(0, len(every), size)]
    assert relayed(pieces).strip() == until_done(every).strip()
    passed = relayed(pieces, for_stock_client=True)
    assert essence(passed) == [said("Hello").strip(), said(" you").strip()]
    assert b"event: x\n" + said("Hello") in passed
    assert not any(SAYS_NOTHING.fullmatch(line) for line in passed.splitlines())


def test_chunks_that_come_in_a_list_are_an_event_each_to_the_stock_client():
    chunks = [{"choices": [{"index": 0, "delta": {"content": letter}}]} for letter in "ab"]
    passed = relayed([frame(chunks) + frame([1]) + DONE], for_stock_client=True)
    assert [json.loads(line.removeprefix(b"data: ")) for line in essence(passed)] == chunks
    assert passed.count(b"\n\n") >= 2


# --- other shapes ---------------------------------------------------------------------------------------------------


def test_a_whole_answer_becomes_the_one_chunk_that_a_streams_reader_looks_for():
    call = {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = {
        "id": "c",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    chunk = json.loads(relayed([json.dumps(body, indent=1).encode()]).removeprefix(b"data: "))
    assert chunk["object"] == "chat.completion.chunk"
    assert chunk["choices"][0] == {
        "index": 0,
        "finish_reason": "stop",
        "delta": {**message, "tool_calls": [{"index": 0, **call}]},
    }


def test_a_list_in_a_list_is_no_chunk():
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
    passed = relayed([json.dumps([chunk, [chunk]]).encode() + b"\n"])
    assert passed == b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def test_a_reader_waits_for_no_more_than_the_end_of_a_frame():
    answer, relay = Answer(), Relay()
    for piece in (said("Hello")[:-2], b"\n", b"\n", b": ping\n"):
        answer.feed(piece)
        passed = relay.feed(piece, answer)
        assert passed.endswith(b"\n") or piece == said("Hello")[:-2]


def test_many_frames_in_reads_of_any_size_cost_no_second_reading(monkeypatch):
    looked = []
    monkeypatch.setattr(Relay, "_looked_at", lambda *args, **options: looked.append(1) or b"")
    words = b"".join(said("word ") for _ in range(500))
    every = words + DONE + said("more")
    chance, pieces, at = random.Random(1), [], 0
    while at < len(every):
        size = chance.randint(1, 4_000)
        pieces.append(every[at : at + size])
        at += size
    answer, relay = Answer(), Relay()
    passed = b"".join(relay.feed(piece, answer) for piece in pieces if answer.feed(piece) is not None)
    assert (passed, looked) == (words, [])


# --- any mixture ----------------------------------------------------------------------------------------------------

BITS = [
    *[
        error
        for name, error in ERRORS.items()
        if name not in ("without an end", "broken off", "by the event's name, with CR")
    ],
    *[said(letter) for letter in "abc"],
    frame({"choices": [{"index": 0, "delta": {"content": "d"}}]}, end=b"\n"),
    *[
        b": c\n\n",
        b"\n",
        b"event: x\n",
        b"id: 3\n",
        b"retry: 1\n",
        b"data:\n\n",
        b"data\n",
        b"data: null\n\n",
        b"data: [1]\n\n",
    ],
    *[b"data: {oh SECRET\n\n", b"data: {oh SECRET\n", b"event: error\n", b"\xef\xbb\xbf", DONE],
    b'data: {"choices":[\ndata: {"delta":{"content":"e"}}]}\n\n',
    b'{"choices":[{"delta":{"content":"f"}}]}\n',
    b'{"choices":[\n{"delta":{"content":"g"}}]}\n',
    b' data: {"choices":[{"delta":{"content":"h"}}]}\n\n',
    b'data: [{"choices":[{"delta":{"content":"i"}}]}]\n\n',
]


def essence(passed):
    """Without what readers skip: where that stands may differ by how the bytes were split."""
    lines = passed.replace(b"\r", b"\n").split(b"\n")
    return [line for line in lines if line.strip() and not line.startswith((b"event", b"id", b"retry", b":"))]


@given(
    st.lists(st.sampled_from(BITS), max_size=9),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.integers(0, 40),
    st.randoms(use_true_random=False),
)
@settings(max_examples=1_000, deadline=None)
def test_no_mixture_of_lines_shows_an_error_or_loses_a_word(bits, line_end, short_of, chance):
    every = b"".join(bits).replace(b"\n", line_end)
    every = every[: len(every) - short_of] if short_of % 4 == 0 else every
    cuts = sorted(chance.choices(range(len(every) + 1), k=8))
    pieces = [every[start:end] for start, end in zip([0, *cuts], [*cuts, len(every)], strict=True)]
    together, apart = relayed([every]), relayed([piece for piece in pieces if piece])
    assert b"SECRET" not in together + apart
    assert essence(together) == essence(apart)
    answer, passed = Answer(), Answer()
    words = answer.feed(every) + answer.close()
    if not answer.error:
        assert passed.feed(together) + passed.close() == words


def test_a_frame_in_very_many_lines_is_not_looked_at_for_each(monkeypatch):
    looked = []
    look_at = Relay._looked_at
    monkeypatch.setattr(Relay, "_looked_at", lambda *args, **more: looked.append(1) or look_at(*args, **more))
    answer, relay = Answer(), Relay()
    for _ in range(2_000):
        answer.feed(b"data: and on\n")
        relay.feed(b"data: and on\n", answer)
    assert len(looked) == 1


def test_nothing_waits_for_a_reader_who_left_before_another_model_answered():
    answer, outlet = Answer(), Outlet(keeps=True)
    outlet.leave()
    outlet.begin_anew()
    answer.feed(said("Hello"))
    assert outlet.feed(said("Hello"), answer) is False
    assert (outlet.is_empty, outlet.kept) == (True, said("Hello"))


def test_what_was_held_back_is_looked_at_again_with_the_next_read():
    held = b"event: error\nid: 3\n<p>sk-SECRET</p>\n"
    assert relayed([said("Hello"), held, b"event: x\n", said(" you"), DONE]) == said("Hello") + said(" you")


def test_a_value_that_came_with_garbage_before_is_not_taken_for_the_error_after_it():
    first = b"data: {oh no\n" + frame({"choices": [{"delta": {"content": "b"}}]}, end=b"\n") + b'{"choices":[\n{"del'
    rest = b'ta":{"content":"f"}}]}\n' + frame(ERROR)
    assert relayed([first, rest]).count(b'"content"') == 2


# --- what clients break at ------------------------------------------------------------------------------------------

CHUNK = b'{"choices": [{"index": 0, "delta": {"content": "%b"}, "logprobs": %b}]}'
# Each with the words that are right, or are left of it.
ODD_JSON = {
    "half a letter": (CHUNK % (b"a\xe2\x82", b"null"), "a�"),
    "a byte of none": (CHUNK % (b"a\xff", b"null"), "a�"),
    "no number": (CHUNK % (b"a", b'{"content": [{"logprob": NaN, "top": -Infinity}]}'), "a"),
    "a tab that is none of JSON's": (CHUNK % (b"a\tb", b"null"), "a\tb"),
    "a control character": (CHUNK % (b"a\x01b", b"null"), "a\x01b"),
}


def read_as_clients_do(passed):
    """The chunks of a stream as a strict reader of UTF-8 and of JSON has them. Raises where those clients do."""

    def no_number(name):
        raise ValueError(f"{name} is no JSON")

    lines = [line for line in passed.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(line[6:], parse_constant=no_number) for line in lines]


@pytest.mark.parametrize("name", ODD_JSON)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_what_is_nearly_json_is_passed_on_as_json_to_who_would_break_at_it(name, size):
    chunk, words = ODD_JSON[name]
    every = said("Hello") + b"data: " + chunk + b"\n\n" + said(" you") + DONE
    passed = relayed([every[i : i + size] for i in range(0, len(every), size)], for_stock_client=True)
    found = [chunk["choices"][0]["delta"]["content"] for chunk in read_as_clients_do(passed)]
    assert found == ["Hello", words, " you"]


def test_the_first_word_behind_a_byte_order_mark_reaches_clients_that_do_not_know_it():
    passed = relayed([b"\xef\xbb\xbf" + said("Hello") + DONE], for_stock_client=True)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in read_as_clients_do(passed)] == ["Hello"]


@pytest.mark.parametrize("choices", [{}, {"choices": None}, {"choices": {"index": 0, "delta": {"content": "a"}}}])
@pytest.mark.parametrize("usage", [{}, {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}])
def test_every_chunk_of_a_client_that_looks_for_choices_has_some(choices, usage):
    passed = relayed([said("Hello") + frame({"id": "c", **choices, **usage}) + DONE], for_stock_client=True)
    _, *chunks = read_as_clients_do(passed)
    assert all(type(chunk["choices"]) is list for chunk in chunks)
    assert [chunk["usage"] for chunk in chunks if "usage" in chunk] == list(usage.values())
    assert len(chunks) == (1 if usage or choices else 0)


@pytest.mark.parametrize("nothing", [b"{}", b"null", b'{"type": "ping"}'])
@pytest.mark.parametrize("size", [1, 7, 12, 10_000])
def test_no_name_is_left_of_an_event_that_is_left_out(nothing, size):
    every = said("Hello") + b"event: ping\ndata: " + nothing + b"\n\n" + b"event: message\n" + said(" you") + DONE
    passed = relayed([every[i : i + size] for i in range(0, len(every), size)], for_stock_client=True)
    assert passed.replace(b"\n\n\n", b"\n\n") == said("Hello") + b"event: message\n" + said(" you")


def test_names_without_blank_lines_are_not_looked_at_again_for_each():
    answer, relay = Answer(), Relay(for_stock_client=True)
    piece, begun = b"event: message\n" + said("word").rstrip() + b"\n", time.thread_time()
    for _ in range(20_000):
        answer.feed(piece)
        relay.feed(piece, answer)
    assert time.thread_time() - begun < 2


def test_a_nest_that_cannot_be_written_anew_is_left_out():
    nest = b'{"choices": [], "x": ' + b"[" * 990 + b'"\xff"' + b"]" * 990 + b"}"
    assert relayed([said("Hello") + b"data: " + nest + b"\n\n" + DONE], for_stock_client=True) == said("Hello")


# Of the words of an older completion such a client finds none in a chat.
READ_BY_STOCK_CLIENTS = [case for case in SHORT if case.right["ends"] == "done" and "older" not in case.about]


def read_by_stock_client(passed):
    """The first answer's words, as who uses OpenAI's own client is told them."""
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=passed))
    client = openai.OpenAI(api_key="k", base_url="http://model/v1", http_client=httpx.Client(transport=transport))
    words = []
    for chunk in client.chat.completions.create(model="m", messages=[], stream=True):
        for place, choice in enumerate(chunk.choices):
            if choice.index == 0 or (type(choice.index) is not int and place == 0):
                words += [words_of(choice.delta.content), words_of(choice.delta.refusal)]
    return storable("".join(words))


@pytest.mark.parametrize("case", READ_BY_STOCK_CLIENTS, ids=lambda case: case.name)
@pytest.mark.parametrize("size", [1, 7, None])
def test_every_odd_answer_is_read_by_openai_s_own_client(case, size):
    every = b"".join(case.pieces())
    pieces = [every[i : i + size] for i in range(0, len(every), size)] if size else case.pieces()
    passed = relayed(pieces, for_stock_client=True)
    assert read_by_stock_client(passed + b"\n\n" + DONE) == case.right["text"], case.about


def chunk_of(said, **more):
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, **said}], **more})


# A word said in each of these, and lines without a word.
SHAPES = [
    lambda word: ["data: " + chunk_of({"delta": {"content": word}})],
    lambda word: ["data: " + chunk_of({"delta": word})],
    lambda word: ["data: " + chunk_of({"delta": None, "message": {"content": word}})],
    lambda word: ["data: " + chunk_of({"delta": {"role": "assistant"}, "message": {"content": word}})],
    lambda word: ["event: message", "data: " + chunk_of({"message": {"content": word}})],
    lambda word: ["event: message", "data: " + chunk_of({"delta": {"content": word}})],
    lambda word: ["data: [" + chunk_of({"message": {"content": word}}) + ", " + chunk_of({"delta": {}}) + "]"],
    lambda word: ["data: {", "data: " + chunk_of({"delta": {"content": word}})[1:]],
    lambda word: ["data:" + chunk_of({"delta": {"content": word}}), ": ping"],
    lambda word: [" data: " + chunk_of({"delta": {"content": word}})],
    lambda word: ["id: 7", "data: " + chunk_of({"delta": {"content": word}})],
    lambda word: [chunk_of({"delta": {"content": word}})],
    lambda word: [chunk_of({"delta": word})],
    lambda word: [": ping"],
    lambda word: ["data: null"],
    lambda word: ["data"],
]


@given(
    st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from([b"", b"\n", b"\r\n", b"\r", b"\n\n"])), max_size=8),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_a_stock_client_reads_all_words_however_they_are_framed_and_split(frames, line_end, chance):
    every = b""
    for number, (shape, blank) in enumerate(frames):
        every += b"".join(line.encode() + line_end for line in shape(f"w{number} ")) + blank
    cuts = sorted(chance.choices(range(len(every) + 1), k=8))
    pieces = [every[start:end] for start, end in zip([0, *cuts], [*cuts, len(every)], strict=True)]
    answer = Answer()
    words = "".join(answer.feed(piece) for piece in pieces) + answer.close()
    passed = relayed([*pieces, b"\n\n" + DONE], for_stock_client=True)
    assert read_by_stock_client(passed + b"\n\n" + DONE) == words, (every, passed)
