"""The answers of /v1: as the model's server sent them, each with its price, and never an error's words."""

from __future__ import annotations

import json

import pytest

from chat import llm
from chat.chunks import storable, words_of
from tests.chat.test_relay import is_passed_on_as_it_came, until_done
from tests.support.money import assert_books_agree
from tests.support.odd_answers import odd_answers

pytestmark = pytest.mark.usefixtures("upstream")

ASK = {"model": "test-model", "messages": [{"role": "user", "content": "hello"}]}
DONE = b"data: [DONE]\n\n"
CASES = [case for case in odd_answers() if case.status == 200]
STREAMED = [case for case in CASES if sum(map(len, case.pieces())) < 200_000]
WHOLE = [
    case for case in STREAMED if b"".join(case.pieces()).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"<")
]
WHOLE = [case for case in WHOLE if "each chunk" not in case.about and "lines of JSON" not in case.about]
OF_CHUNKS = [case for case in STREAMED if case.right["ends"] == "done" and case not in WHOLE]


def ask(workspace, path="chat/completions", **fields):
    return workspace.api(alone=True).post(f"/v1/{path}", {**ASK, **fields})


def chunks_of(body):
    return [json.loads(line.removeprefix(b"data: ")) for line in body.split(b"\n") if line.startswith(b"data: {")]


def frame(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def said(text, index=0, **more):
    return frame({"choices": [{"index": index, "delta": {"content": text}, **more}]})


def usage(tokens_input, tokens_output):
    return {"prompt_tokens": tokens_input, "completion_tokens": tokens_output}


# --- the odd answers ------------------------------------------------------------------------------------------------


def assert_settled_right(line, case):
    right = case.right
    assert line.outcome == right["outcome"], case.about
    if "between" in right:
        # Where only the sum was reported, what is not input is output, and ours is a guess of either.
        spare = 10 if "total" in case.about else 0
        assert right["between"][0] - spare <= line.tokens_output <= right["between"][1] + spare, case.about
    elif right["outcome"] == "exact":
        assert (line.tokens_input, line.tokens_output) == (right.get("input", 10), right["output"]), case.about


def assert_passed_on_right(response, case):
    ends, body = case.right["ends"], response.content
    if ends not in ("done", "cut", "error"):
        assert response.status_code >= 500, case.about
        assert response.json()["error"]["message"]
        return
    assert response.status_code == 200, case.about
    assert body.endswith(DONE)
    last = json.loads(body.removesuffix(DONE).rpartition(b"\n\ndata: ")[2])
    assert ("error" if ends == "error" else "budget") in last, case.about
    if is_passed_on_as_it_came(case):
        assert body.startswith(until_done(b"".join(case.pieces()))), case.about
        assert body.count(b"[DONE]") == 1


@pytest.fixture
def play(workspace, upstream, settings, monkeypatch):
    """Ask a model of its own, of which nothing is learned yet, that answers as a case says; the answer and its line."""

    def ask_for(case, **fields):
        upstream.play(case)
        # Where more is to come it is waited for. Where nothing is, it is not, and all before comes at once.
        stays_open = upstream.parts[-1:] == [{"wait_s": 40}]
        monkeypatch.setattr(llm, "LAST_FRAME_SECONDS", 0.1 if stays_open else 60.0)
        if stays_open:
            upstream.parts = [b"".join(upstream.parts[:-1]), upstream.parts[-1]]
        price = settings.LLM_PRICES["test-model"]
        settings.LLM_PRICES = {**settings.LLM_PRICES, case.name: price}
        before = len(workspace.lines())
        response = ask(workspace, model=case.name, max_tokens=case.max_tokens, **fields)
        assert response.content
        *_, line = workspace.settled(lines=before + 1)
        return response, line

    return ask_for


def test_every_odd_answer_is_passed_on_as_it_came_and_paid_right(workspace, play):
    for case in STREAMED:
        response, line = play(case, stream=True)
        assert_passed_on_right(response, case)
        assert_settled_right(line, case)
    assert_books_agree(workspace)


def test_every_odd_answer_in_one_piece_is_passed_on_as_it_came_and_paid_right(workspace, play):
    for case in WHOLE:
        response, line = play(case)
        if case.right["ends"] == "done":
            assert response.content == b"".join(case.pieces()), case.about
            assert response["X-Budget-Outcome"] == case.right["outcome"]
        else:
            assert response.status_code == 502, case.about
            assert not {"SECRET", "rate limit", "quota"} & set(response.content.decode().split())
        assert_settled_right(line, case)
    assert_books_agree(workspace)


def test_every_odd_stream_that_came_for_one_piece_is_one_answer_with_all_its_words(workspace, play):
    for case in OF_CHUNKS:
        response, line = play(case)
        assert response.status_code == 200, case.about
        message = next(choice for choice in response.json()["choices"] if choice["index"] == 0)["message"]
        words = words_of(message["content"]) + words_of(message.get("refusal"))
        assert storable(words) == case.right["text"], case.about
        assert_settled_right(line, case)
    assert_books_agree(workspace)


def test_every_odd_stream_that_breaks_off_is_no_answer_in_one_piece(workspace, play):
    """A part of it would be taken for all."""
    for case in [case for case in STREAMED if case.right["ends"] == "error"]:
        response, line = play(case)
        assert response.status_code == 502, case.about
        # Of JSON without events nothing is read before its end, which a reset keeps away.
        assert line.outcome == ("unknown" if "lines of JSON" in case.about else case.right["outcome"]), case.about
    assert_books_agree(workspace)
