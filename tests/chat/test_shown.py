"""Streams whose words come as HTML, too: the same words, the same money, and nothing for those who did not ask."""

import asyncio

import pytest

from chat import shown
from chat.markdown import MOST_CHARS, MOST_WORK, work_of
from tests.support.cast import events_of

WORDS = ["# A\n", "\nfirst *b", "*\n\n", "- c\n- d\n", "\nlast"]


@pytest.fixture
def upstream(upstream):
    upstream.tokens = WORDS
    return upstream


def html_of(events):
    return [data["html"] for name, data in events if name == "block"]


def test_blocks_come_as_they_end_and_the_whole_at_the_end(workspace, upstream):
    events = events_of(workspace.api().chat("hello", stream=True, rendered=True))
    text = "".join(data["text"] for name, data in events if name == "token")
    assert text == "".join(WORDS)
    covered = sum(data["length"] for name, data in events if name == "block")
    assert text[covered:] == "last"
    assert "\n".join(html_of(events)).startswith('<h3 dir="auto">A</h3>\n<p dir="auto">first <em>b</em></p>\n<ul')
    assert events[-1][0] == "done"
    assert events[-1][1]["html"].endswith('</ul>\n<p dir="auto">last</p>')


def test_a_stream_that_did_not_ask_renders_nothing(workspace, upstream, monkeypatch):
    monkeypatch.setattr(shown, "Blocks", None)
    monkeypatch.setattr(shown, "rendered", None)
    for fields in ({}, {"rendered": False}):
        events = events_of(workspace.api().chat("hello", stream=True, **fields))
        assert {name for name, _ in events} == {"held", "token", "done"}
        assert "html" not in events[-1][1]


def test_the_form_is_not_what_is_bought_so_a_repeat_may_ask_for_another(workspace, upstream):
    api = workspace.api()
    first = events_of(api.post("/api/chat/", {"prompt": "a", "stream": True}, headers={"Idempotency-Key": "one"}))
    again = {"prompt": "a", "stream": True, "rendered": True}
    response = api.post("/api/chat/", again, headers={"Idempotency-Key": "one"})
    assert response["Idempotent-Replayed"] == "true"
    events = events_of(response)
    html = events[-1][1].pop("html")
    assert html.startswith("<h3")
    assert events[-1] == first[-1]
    assert len(upstream.calls) == 1


def test_an_answer_without_words_has_the_same_sentence_in_both(workspace, upstream):
    upstream.tokens = []
    events = events_of(workspace.api().chat("hello", stream=True, rendered=True))
    (said,) = [data["text"] for name, data in events if name == "token"]
    assert events[-1][1]["html"] == f'<p dir="auto">{said}</p>'


def test_large_blocks_are_rendered_beside_the_loop(workspace, upstream, monkeypatch):
    threads = []

    async def to_thread(render, *arguments):
        threads.append(render)
        return render(*arguments)

    monkeypatch.setattr(shown.asyncio, "to_thread", to_thread)
    upstream.tokens = ["word " * 1_000, "\n\n", "end"]
    events = events_of(workspace.api().chat("hello", stream=True, rendered=True))
    assert [render.__name__ for render in threads] == ["_feed", "_joined", "rendered"]
    assert len(html_of(events)) == 1
    threads.clear()
    upstream.tokens = ["[" * 2_000, "\n\n", "end"]
    events_of(workspace.api().chat("hello", stream=True, rendered=True))
    assert [render.__name__ for render in threads] == ["_joined", "rendered"], "little of it, and much to read"


@pytest.mark.parametrize("piece", ["*a* " * 250 + "\n\n", "words " * 1_000 + "\n\n", "\n" * 5_000])
def test_of_an_endless_answer_no_more_blocks_are_rendered_than_the_whole_may_have(monkeypatch, piece):
    texts = []
    monkeypatch.setattr(shown, "rendered_block", lambda text: texts.append(text) or "")

    async def sent():
        blocks = shown.Shown()
        return [await blocks.after([piece]) for _ in range(200)]

    assert asyncio.run(sent())[-1] == b""
    assert sum(map(len, texts)) <= MOST_CHARS
    assert sum(map(work_of, texts)) <= MOST_WORK
