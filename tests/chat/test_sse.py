"""The bytes of server-sent events."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.sse import comment, event


def read(data: bytes) -> tuple[str, object]:
    """As a browser reads it: lines end at CR, LF or CRLF, an event at an empty line."""
    text = data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    name, body, *rest = text.split("\n")
    assert rest == ["", ""]
    assert name.startswith("event: ")
    assert body.startswith("data: ")
    return name.removeprefix("event: "), json.loads(body.removeprefix("data: "))


def test_an_event_is_a_name_and_one_line_of_json():
    assert event("token", {"text": "Hi"}) == b'event: token\ndata: {"text":"Hi"}\n\n'


def test_a_comment_is_a_line_that_readers_skip():
    assert comment("waiting") == b": waiting\n\n"


@given(st.text(st.characters(codec=None)))
def test_whatever_a_model_says_arrives_as_it_was(text):
    assert read(event("token", {"text": text})) == ("token", {"text": text})


@pytest.mark.parametrize("text", ["a\r\nb", "a\u2028b\u2029c", "a\x00b", "event: done\n\ndata: {}", "\ud83d", "\x85"])
def test_no_text_ends_its_line_early(text):
    data = event("token", {"text": text})
    assert len(data.splitlines()) == 3
    assert len(data.decode().splitlines()) == 3
    assert read(data) == ("token", {"text": text})


def test_a_comment_cannot_become_an_event():
    assert comment("a\n\nevent: done\ndata: {}") == b": a event: done data: {}\n\n"


@pytest.mark.parametrize("name", ["", "token\ndata: {}", "token\r"])
def test_a_name_that_would_break_the_format_is_refused(name):
    with pytest.raises(ValueError, match="one line"):
        event(name, {})


def test_what_json_cannot_say_is_refused():
    with pytest.raises(ValueError):
        event("done", {"cost": float("nan")})
