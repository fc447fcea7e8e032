"""How an answer of /v1 ends: by the money, by us or by a fault; and answers in one piece."""

from __future__ import annotations

import gzip
import json

import pytest

from billing.engine.loop import here
from chat import llm, whole
from tests.chat.v1.test_relaying import ASK, DONE, frame, said, usage
from tests.support.money import INPUT, OUTPUT, assert_books_agree, on_loop, trust
from tests.support.raw_model import CHUNKED

TRUE = 10 * INPUT + 3 * OUTPUT
WORDS = [said("Hello"), said(" big"), said(" world")]
STOP = frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
REPORT = frame({"choices": [], "usage": usage(10, 3)})
SECRET = "sk-SECRET at http://10.0.0.7"
ERROR = frame({"error": {"message": SECRET}})


def answers(*parts):
    """Sends these bytes in chunks, with silences of so many seconds."""

    def script(line):
        line.send(CHUNKED)
        for part in parts:
            line.chunk(part) if isinstance(part, bytes) else line.wait(part)
        line.end()

    return script


def gives(body, *, head=b"Content-Type: application/json\r\n", status=b"200 OK"):
    """Sends this body in one piece."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def script(line):
        line.send(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n" % (status, len(data), head), data)

    return script


def completion(*texts, reason="stop", **more):
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        for index, text in enumerate(texts)
    ]
    return {"id": "c-1", "object": "chat.completion", "choices": choices, "usage": usage(10, 3), **more}


def own_chunks(response):
    """Ours, which stand after the model's."""
    _, _, end = response.content.rpartition(b"\n\n\n\n")
    assert end.endswith(DONE), response.content
    return [json.loads(each.removeprefix(b"data: ")) for each in end.removesuffix(DONE).strip().split(b"\n\n")]


# --- by the money, or by us -----------------------------------------------------------------------------------------


def test_money_at_its_end_ends_every_answer_that_has_not_ended_itself(workspace, model, ask, settings):
    trust(settings.LLM_MODEL, app="api")
    ended = frame(
        {"id": "c-7", "created": 7, "model": "m", "choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}
    )
    model.script = answers(said("one", 1), ended, *[part for _ in range(40) for part in (said("word " * 8), 0.02)], 30)
    workspace.leave(700_000)
    before = workspace.ledger()["spent"]
    response = ask(stream=True, n=2, max_tokens=300)
    first, last = own_chunks(response)
    assert [(each["index"], each["finish_reason"]) for each in first["choices"]] == [(0, "length")]
    assert (first["id"], first["created"], first["model"]) == (last["id"], last["created"], last["model"])
    assert (last["choices"], last["budget"]["ended"], last["budget"]["outcome"]) == ([], True, "estimated")
    (line,) = workspace.settled(lines=1)
    assert last["budget"]["cost"] == f"{line.cost / 100_000_000:.5f}".rstrip("0")
    assert model.wait_until(lambda m: m.left == 1)
    assert_books_agree(workspace, before=before)


def test_an_answer_past_its_limit_is_cut_and_says_so_but_not_that_the_money_ended(workspace, model, ask):
    model.script = answers(*[said("word " * 10)] * 100, 30)
    first, last = own_chunks(ask(stream=True, max_tokens=20))
    assert [(each["index"], each["finish_reason"]) for each in first["choices"]] == [(0, "length")]
    assert last["budget"]["ended"] is False
    (line,) = workspace.settled(lines=1)
    assert line.tokens_output <= 20


def test_the_models_own_end_of_what_was_fitted_to_the_money_is_the_moneys(workspace, model, ask, settings):
    end = frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    model.script = answers(*WORDS, end, REPORT, DONE)
    workspace.leave(700_000)
    response = ask(stream=True, max_tokens=1_000)
    (last,) = own_chunks(response)
    assert last["budget"]["ended"] is True
    sent = json.loads(model.requests[-1].body)
    assert response["X-Budget-Fitted"] == str(sent["max_tokens"])
    assert sent["max_tokens"] < 700_000 // OUTPUT


def test_a_process_that_ends_says_so_with_an_error_and_what_is_charged(workspace, model, ask):
    model.script = answers(*WORDS, 30)
    response = ask(stream=True)
    parts = response.streaming_content
    body = next(parts)
    on_loop(lambda: [cut() for cut in list(here()._cuts)])
    body += b"".join(parts)
    error = json.loads(body.removesuffix(DONE).rpartition(b"data: ")[2])["error"]
    assert "stopped" in error["message"]
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "estimated"


# --- by a fault -----------------------------------------------------------------------------------------------------

FAULTS = {
    "a frame": ERROR,
    "an event": b"event: error\ndata: " + SECRET.encode() + b"\n\n",
    "a choice": frame({"choices": [{"index": 0, "delta": {}, "error": {"message": SECRET}}]}),
    "a reason": frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "note": SECRET}]}),
}


@pytest.mark.parametrize("apart", [True, False])
def test_an_error_after_words_is_said_in_our_words_after_all_that_came(workspace, model, ask, apart):
    for count, fault in enumerate(FAULTS.values(), start=1):
        parts = [*WORDS, fault, DONE]
        split = [piece for part in parts for piece in (part[:9], 0.01, part[9:])]
        model.script = answers(*split) if apart else answers(b"".join(parts))
        response = ask(stream=True)
        assert response.content.startswith(b"".join(WORDS))
        assert b"SECRET" not in response.content
        assert response.content.count(b"[DONE]") == 1
        (error,) = own_chunks(response)
        assert error["error"]["message"]
        assert workspace.settled(lines=count)[-1].outcome == "estimated"


def test_an_error_before_a_word_is_a_status_whatever_stood_before_it(workspace, model, ask):
    model.script = answers(b": hello\n\n" + frame({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}) + ERROR)
    response = ask(stream=True)
    assert (response.status_code, b"SECRET" in response.content) == (502, False)
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("none", 0)


def test_tools_that_were_asked_for_before_an_error_reach_the_reader(workspace, model, ask):
    call = frame(
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]}}]}
    )
    model.script = answers(call + ERROR)
    response = ask(stream=True)
    assert response.content.startswith(call)
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.tokens_output > 0) == ("estimated", True)


def test_what_the_models_server_declines_is_the_callers_to_mend(workspace, model, ask):
    model.script = gives({"error": {"message": SECRET}}, status=b"400 Bad Request")
    for stream in (True, False):
        response = ask(stream=stream)
        assert (response.status_code, b"SECRET" in response.content) == (400, False)
        assert response["X-Should-Retry"] == "false"
    assert [line.outcome for line in workspace.settled(lines=2)] == ["none", "none"]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"error": {"message": SECRET, "param": "seed", "code": SECRET}}, "model_declined", "seed"),
        ({"error": {"message": SECRET, "param": "messages[0].content"}}, "model_declined", "messages"),
        ({"detail": [{"loc": ["body", "seed"], "msg": SECRET}]}, "model_declined", "seed"),
        ({"error": {"message": SECRET, "param": "sk_SECRET"}}, "model_declined", None),
        ({"error": {"message": f"maximum context length is 9 tokens, {SECRET}"}}, "context_length_exceeded", None),
    ],
)
def test_a_declined_request_is_told_by_the_field_that_it_was_declined_for(workspace, model, ask, body, code, param):
    model.script = gives(body, status=b"400 Bad Request")
    response = ask(seed=7)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert b"SECRET" not in response.content
    assert param is None or param in error["message"]


# --- several answers ------------------------------------------------------------------------------------------------


def test_the_end_of_one_answer_is_not_taken_for_the_end_of_all(workspace, model, ask, monkeypatch):
    monkeypatch.setattr(llm, "LAST_FRAME_SECONDS", 0.1)
    end = [frame({"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]}) for index in (0, 1)]
    # With the end of all comes the report: the clock that runs from there is short.
    parts = [said("one"), said("two", 1), end[0], 0.5, said(" more", 1), end[1] + REPORT]
    model.script = answers(*parts, 30)
    response = ask(stream=True, n=2)
    assert response.content.startswith(b"".join(part for part in parts if isinstance(part, bytes)))
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("exact", TRUE)


def test_all_answers_of_one_call_are_held_and_charged(workspace, model, ask):
    model.script = gives(completion("one", "two", "three", usage=usage(10, 900)))
    response = ask(n=3, max_tokens=300)
    assert len(response.json()["choices"]) == 3
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.tokens_output) == ("exact", 900)
    assert line.estimate >= 900 * OUTPUT


# --- in one piece ---------------------------------------------------------------------------------------------------


def test_a_whole_answer_waits_for_its_price_and_says_it(workspace, model, ask):
    body = json.dumps(completion("Hello"), indent=2).encode() + b"\n"
    model.script = gives(body)
    response = ask()
    assert response.content == body
    assert (response["X-Budget-Cost"], response["X-Budget-Outcome"]) == ("0.00022", "exact")
    assert b"Accept: application/json" in model.requests[0].head.encode()


def test_a_whole_answer_without_usage_is_estimated_and_says_so(workspace, model, ask):
    model.script = gives({"choices": completion("Hello big world")["choices"]})
    assert ask()["X-Budget-Outcome"] == "estimated"
    (line,) = workspace.settled(lines=1)
    assert 3 <= line.tokens_output <= 6


def test_a_report_above_what_is_held_is_not_the_customers_debt(workspace, model, ask):
    model.script = gives(completion("Hello", usage=usage(10, 5_000)))
    response = ask(max_tokens=100)
    assert response["X-Budget-Outcome"] == "overrun"
    (line,) = workspace.settled(lines=1)
    assert line.cost == line.estimate


NO_ANSWERS = {
    "an error": (json.dumps({"error": {"message": SECRET}}).encode(), "none"),
    "an unknown shape": (json.dumps({"detail": SECRET}).encode(), "none"),
    "a page": (b"<html>" + SECRET.encode() + b"</html>", "none"),
    "a sentence": (SECRET.encode(), "none"),
    "nothing": (b"", "unknown"),
    "a part": (json.dumps(completion(SECRET)).encode()[:-20], "unknown"),
    "a nest": (b'{"choices":' + b"[" * 100_000, "unknown"),
}


def test_what_is_no_answer_is_not_passed_on(workspace, model, ask):
    for count, (name, (body, outcome)) in enumerate(NO_ANSWERS.items(), start=1):
        model.script = gives(body)
        response = ask()
        assert (response.status_code, b"SECRET" in response.content) == (502, False), name
        assert workspace.settled(lines=count)[-1].outcome == outcome, name


def test_a_stream_that_nobody_asked_for_is_put_together(workspace, model, ask):
    call = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ":1}"}}
    parts = [
        frame(
            {"id": "c-1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"role": "assistant"}}]}
        ),
        *WORDS,
        *[frame({"choices": [{"index": 0, "delta": {"tool_calls": [each]}}]}) for each in (call, more)],
        STOP,
        REPORT,
        DONE,
    ]
    model.script = answers(*parts)
    body = ask().json()
    (choice,) = body["choices"]
    assert (body["object"], body["usage"], choice["finish_reason"]) == ("chat.completion", usage(10, 3), "stop")
    assert choice["message"]["content"] == "Hello big world"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("exact", TRUE)


def test_a_squeezed_answer_is_passed_on_unsqueezed(workspace, model, ask):
    body = json.dumps(completion("Hello")).encode()
    model.script = gives(gzip.compress(body), head=b"Content-Encoding: gzip\r\nX-Secret: sk-SECRET\r\n")
    response = ask()
    assert response.content == body
    assert not {"x-secret", "content-encoding"} & response.headers.keys()


def test_a_long_answer_is_passed_on_and_paid_without_being_read(workspace, model, ask, monkeypatch):
    monkeypatch.setattr(whole, "_parsed", lambda text: pytest.fail("it keeps the loop from everybody else"))
    text = 'a quote " and "usage": {"prompt_tokens": 1} ' * 20_000
    body = json.dumps(completion(text, usage=usage(10, 400))).encode()
    model.script = gives(body)
    assert ask().content == body
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.tokens_input, line.tokens_output) == ("exact", 10, 400)


def test_an_answer_too_long_to_keep_is_none_and_its_tokens_are_paid(workspace, model, ask, monkeypatch):
    monkeypatch.setattr(whole, "WHOLE_BYTES", 100_000)
    model.script = gives(completion("word " * 50_000))
    assert ask(max_tokens=200).status_code == 502
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.tokens_output) == ("estimated", 200)


def test_a_whole_answer_may_take_as_long_as_its_tokens_do(workspace, model, ask, settings, monkeypatch):
    settings.LLM_DIALECT = {settings.LLM_MODEL: {"first_byte_seconds": 0.2, "idle_seconds": 0.2}}
    monkeypatch.setattr(llm, "SECONDS_A_TOKEN", 0.1)

    def script(line):
        line.wait(0.6 if len(model.requests) == 1 else 30)
        gives(completion("Hello"))(line)

    model.script = script
    assert ask(max_tokens=100).status_code == 200
    assert ask(max_tokens=1).status_code == 502


@pytest.mark.parametrize("stream", [True, False])
def test_one_json_for_a_stream_and_a_stream_for_one_json_are_told_by_what_was_asked(workspace, model, ask, stream):
    model.script = gives(completion("Hello")) if stream else answers(*WORDS, STOP, REPORT, DONE)
    response = ask(stream=stream)
    assert response["content-type"] == ("text/event-stream" if stream else "application/json")
    if stream:
        chunk = json.loads(response.content.partition(b"\n\n")[0].removeprefix(b"data: "))
        assert chunk["choices"][0]["delta"]["content"] == "Hello"


# --- other kinds ----------------------------------------------------------------------------------------------------


def test_embeddings_cost_their_input_and_hold_nothing_else(workspace, model, ask):
    body = {
        "object": "list",
        "data": [{"index": 0, "embedding": [0.1, 0.2]}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    model.script = gives(body)
    response = ask("embeddings", messages=None, input="hello big world")
    assert (response.status_code, response.json()) == (200, body), response.content
    assert model.requests[0].path == "/v1/embeddings"
    assert not {"max_tokens", "stream_options"} & json.loads(model.requests[0].body).keys()
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost, line.tokens_output) == ("exact", 8 * INPUT, 0)
    assert line.estimate <= 400 * INPUT


@pytest.mark.parametrize("name", ["total_tokens", "prompt_tokens", "input_tokens"])
def test_the_one_figure_of_embeddings_is_their_input(workspace, model, ask, name):
    """As Voyage reports it: with a sum alone, all above our estimate was taken for output, and not charged."""
    model.script = gives({"object": "list", "data": [{"index": 0, "embedding": [0.1]}], "usage": {name: 30}})
    assert ask("embeddings", messages=None, input="hello" * 8).status_code == 200
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.tokens_input, line.cost) == ("exact", 30, 30 * INPUT)


def test_embeddings_that_are_long_or_unreported_are_passed_on_and_paid(workspace, model, ask):
    rows = [{"index": index, "embedding": [0.123456789] * 400} for index in range(100)]
    model.script = gives({"object": "list", "data": rows, "usage": {"prompt_tokens": 8, "total_tokens": 8}})
    assert len(ask("embeddings", messages=None, input="hello").json()["data"]) == 100
    model.script = gives({"object": "list", "data": rows[:1]})
    assert ask("embeddings", messages=None, input="hello")["X-Budget-Outcome"] == "estimated"
    first, second = workspace.settled(lines=2)
    assert first.cost == 8 * INPUT
    assert 0 < second.cost < 20 * INPUT


def test_completions_are_texts_and_their_end_is_too(workspace, model, ask):
    text = [
        frame({"id": "t", "object": "text_completion", "choices": [{"index": 0, "text": word * 9}]})
        for word in ("a ", "b ")
    ]
    model.script = answers(*text * 50, 30)
    response = ask("completions", messages=None, prompt="once", stream=True, max_tokens=20)
    assert response.content.startswith(b"".join(text))
    first, last = own_chunks(response)
    assert first["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
    assert {first["object"], last["object"]} == {"text_completion"}


def test_a_route_that_the_model_does_not_have_is_said_to_be_missing(workspace, model, ask):
    model.script = gives({"error": {"message": SECRET}}, status=b"404 Not Found")
    response = ask("embeddings", messages=None, input="hello")
    assert (response.status_code, b"SECRET" in response.content) == (404, False)
    assert ask().status_code == 502, "of a chat it is the operator's to mend"


# --- what is counted ------------------------------------------------------------------------------------------------


def test_what_is_said_of_tokens_and_sounds_is_not_counted_as_written(workspace, model, ask):
    logprobs = {"content": [{"token": "Hello", "top_logprobs": [{"token": "x" * 50}] * 20}]}
    audio = {"id": "a", "data": "A" * 5_000, "transcript": "Hello"}
    parts = [said("Hello", logprobs=logprobs), frame({"choices": [{"index": 0, "delta": {"audio": audio}}]})]
    parts.append(frame({"choices": [{"index": 0, "delta": {"content": "Hello", "logprobs": logprobs}}]}))
    model.script = answers(*parts, STOP, DONE)
    response = ask(stream=True, max_tokens=50)
    assert response.content.startswith(b"".join(parts))
    (line,) = workspace.settled(lines=1)
    assert 3 <= line.tokens_output <= 8


@pytest.mark.parametrize(("wants", "reports"), [(True, False), (True, True), (False, False)])
def test_use_is_reported_once_to_those_who_asked(workspace, model, ask, wants, reports):
    model.script = answers(*WORDS, STOP, *([REPORT] if reports else []), DONE)
    response = ask(stream=True, stream_options={"include_usage": True} if wants else None)
    (last,) = own_chunks(response)
    assert ("usage" in last) == (wants and not reports)
    assert response.content.count(b'"usage"') == int(wants or reports)


@pytest.mark.parametrize("said", [b"a\xff", b"a\tb"])
def test_a_whole_answer_that_is_nearly_json_is_passed_on_as_json(workspace, model, ask, said):
    body = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "%b"}, "logprobs": NaN}], ' % said
    body += b'"usage": {"prompt_tokens": 10, "completion_tokens": 2}}'
    model.script = lambda line: line.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    answer = ask()
    assert answer.status_code == 200
    found = json.loads(answer.content.decode(), parse_constant=lambda name: pytest.fail(name))
    assert found["choices"][0]["message"]["content"] == said.decode("utf-8", "replace")
    assert workspace.settled(lines=1)[0].outcome == "exact"


@pytest.mark.parametrize("body", [b"", b"\r\n"])
def test_a_web_page_without_a_word_is_no_answer_in_one_piece_either(workspace, model, ask, body):
    model.script = gives(body, head=b"Content-Type: text/html\r\n")
    assert ask().status_code == 502
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("none", 0)


STOCK = {"x-stainless-lang": "python"}


def test_the_last_words_wait_for_no_report_that_came_with_them(workspace, model, settings, monkeypatch):
    """They were held back with it, until the model had closed the line and the call was settled."""
    monkeypatch.setattr(llm, "LAST_FRAME_SECONDS", 0.3)
    choice = {"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}
    last = frame({"choices": [choice], "usage": usage(10, 1)})
    model.script = answers(last, 30)
    response = workspace.api(alone=True).post(
        "/v1/chat/completions", {**ASK, "model": settings.LLM_MODEL, "stream": True}, headers=STOCK
    )
    first, *rest = response.streaming_content
    assert json.loads(first.removeprefix(b"data: ")) == {"choices": [choice]}
    (last,) = (json.loads(line[6:]) for line in b"".join(rest).split(b"\n") if line.startswith(b"data: {"))
    assert (last["choices"], last["usage"], last["budget"]["outcome"]) == ([], usage(10, 1), "exact")


def test_a_report_whose_blank_line_comes_later_goes_out_with_the_budget(workspace, model, settings):
    model.script = answers(*WORDS, STOP, REPORT.removesuffix(b"\n"), 0.1, b"\n", 0.1, DONE)
    response = workspace.api(alone=True).post(
        "/v1/chat/completions", {**ASK, "model": settings.LLM_MODEL, "stream": True}, headers=STOCK
    )
    last = json.loads(response.content.removesuffix(DONE).rpartition(b"\n\ndata: ")[2])
    assert (last["usage"], last["budget"]["outcome"]) == (usage(10, 3), "exact")
