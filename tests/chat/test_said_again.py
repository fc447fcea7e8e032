"""Some servers say the whole answer once more in a `message`: whoever reads the stream is told it once."""

from __future__ import annotations

import json

import pytest

from chat.whole import Whole
from tests.chat.test_relay import DONE, frame, relayed, said

ARGUMENTS = '{"city": "Paris"}'
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
BEGUN = {"index": 0, **CALL, "function": {"name": "weather", "arguments": ARGUMENTS[:8]}}
REST = {"index": 0, "function": {"arguments": ARGUMENTS[8:]}}


def delta(**fields):
    return frame({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields}]})


def again(**fields):
    """As MiniMax ends its streams."""
    choice = {"index": 0, "message": {"role": "assistant", **fields}, "finish_reason": "stop"}
    return frame({"object": "chat.completion", "choices": [choice]})


def events_of(passed):
    return [json.loads(line[6:]) for line in passed.decode().split("\n") if line.startswith("data: {")]


def told(passed):
    """What a reader of deltas puts together: words, refusals, thoughts, and the arguments of tools by their number."""
    found = {"content": "", "refusal": "", "reasoning_content": "", "tools": {}}
    for chunk in events_of(passed):
        for choice in chunk["choices"]:
            for name in found.keys() - {"tools"}:
                found[name] += choice["delta"].get(name) or ""
            for call in choice["delta"].get("tool_calls") or ():
                tools = found["tools"]
                tools[call["index"]] = tools.get(call["index"], "") + call["function"]["arguments"]
    return {name: value for name, value in found.items() if value}


def message_of(every):
    whole = Whole()
    whole.feed(every)
    whole.close()
    (choice,) = json.loads(whole.body)["choices"]
    return choice["message"]


ONCE_MORE = {
    "words": (
        [said("Hello"), said(" you"), again(content="Hello you")],
        {"content": "Hello you"},
    ),
    "words and thoughts": (
        [delta(reasoning_content="hm"), said("Hello"), again(content="Hello", reasoning_content="hm")],
        {"content": "Hello", "reasoning_content": "hm"},
    ),
    "a refusal": (
        [delta(refusal="I can"), delta(refusal="not"), again(content=None, refusal="I cannot")],
        {"refusal": "I cannot"},
    ),
    "words and a tool": (
        [said("Look:"), delta(tool_calls=[BEGUN]), delta(tool_calls=[REST]), again(content="Look:", tool_calls=[CALL])],
        {"content": "Look:", "tools": {0: ARGUMENTS}},
    ),
    "a tool alone": (
        [delta(tool_calls=[BEGUN]), delta(tool_calls=[REST]), again(content="", tool_calls=[CALL])],
        {"tools": {0: ARGUMENTS}},
    ),
    "a tool alone, without a content": (
        [delta(tool_calls=[BEGUN]), delta(tool_calls=[REST]), again(tool_calls=[CALL])],
        {"tools": {0: ARGUMENTS}},
    ),
    "words, and a tool for the first time": (
        [said("Look:"), again(content="Look:", tool_calls=[CALL])],
        {"content": "Look:", "tools": {0: ARGUMENTS}},
    ),
}


@pytest.mark.parametrize("what", ONCE_MORE)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stock_client_is_told_it_once(what, size):
    frames, right = ONCE_MORE[what]
    every = b"".join(frames) + DONE
    passed = relayed([every[i : i + size] for i in range(0, len(every), size)], for_stock_client=True)
    assert told(passed) == right


@pytest.mark.parametrize("what", ONCE_MORE)
@pytest.mark.parametrize("is_stock", [True, False])
def test_whoever_reads_events_made_of_lines_of_json_is_told_it_once(what, is_stock):
    frames, right = ONCE_MORE[what]
    lines = [frame.removeprefix(b"data: ").removesuffix(b"\n") for frame in frames]
    for pieces in (lines, [b"".join(lines)]):
        assert told(relayed(pieces, for_stock_client=is_stock)) == right


@pytest.mark.parametrize("what", ONCE_MORE)
def test_an_answer_in_one_piece_has_it_once(what):
    frames, right = ONCE_MORE[what]
    message = message_of(b"".join(frames) + DONE)
    found = {name: message[name] for name in ("content", "refusal", "reasoning_content") if message.get(name)}
    if calls := message.get("tool_calls"):
        found["tools"] = {place: call["function"]["arguments"] for place, call in enumerate(calls)}
    assert found == right


@pytest.mark.parametrize("cut", ["before the blank line", "in the name", "byte by byte"])
def test_a_named_event_that_says_it_again_may_be_split_before_its_end(cut):
    every = b"event: message\n" + again(content="Hel") + b"event: message\n" + again(content="Hello") + DONE
    pieces = {
        "before the blank line": [every[: every.rindex(b"\n\ndata")] + b"\n", b"\n" + DONE],
        "in the name": [every[: every.rindex(b"ssage\n")], every[every.rindex(b"ssage\n") :]],
        "byte by byte": [every[i : i + 1] for i in range(len(every))],
    }[cut]
    assert b"".join(pieces) == every
    assert told(relayed(pieces, for_stock_client=True)) == {"content": "Hello"}
