"""A group of models: the next one answers where one failed and billed nothing, at its own price."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from billing.guard import guarded
from chat import streams
from chat.calls import complete, stream
from chat.models import Conversation, Message
from tenants.http import Invalid
from tests.support.cast import events_of
from tests.support.money import assert_books_agree, eventually, is_settled
from tests.support.upstream import FakeUpstream

DEAR, CHEAP = 20 * 1_000 * 10**6, 1_000 * 10**6  # microcents a million tokens of input and of output
ENOUGH_FOR_THE_FIRST = 1_000_000


@pytest.fixture
def second():
    """Another model's server. Together with `upstream`, each says its own words."""
    with FakeUpstream(tokens=["second"]) as server:
        yield server


@pytest.fixture(autouse=True)
def _models(upstream, second, settings):
    upstream.tokens = ["first"]
    settings.MODELS = {
        "fast": _model(upstream.base_url, CHEAP, model="fast-at-home"),
        "big": _model(second.base_url, DEAR),
        "smart": {"fallback": ["fast", "big"]},
    }


def _model(base_url, price, *, model="big", **more):
    dialect = {"base_url": base_url, "model": model}
    return {"price": {"input": price, "output": price}, "context": None, "kinds": ["chat"], "dialect": dialect, **more}


def nobody_listens(settings, model="fast"):
    """The model's address is one that refuses every connection."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings.MODELS[model]["dialect"]["base_url"] = f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def lines_of(workspace):
    return [(line.model, line.outcome, line.cost) for line in workspace.lines()]


# --- the next one answers -------------------------------------------------------------------------------------------


def test_a_group_is_asked_at_its_first_member_under_the_name_that_its_server_knows(workspace, upstream, second):
    answer = workspace.api().chat("hello", model="smart").json()
    assert (answer["response"], answer["model"]) == ("first", "fast")
    assert [call["model"] for call in upstream.calls] == ["fast-at-home"]
    assert second.calls == []
    assert lines_of(workspace) == [("fast", "exact", 11 * 1_000)]


def test_a_group_that_is_asked_for_what_none_of_it_does_is_named_by_its_own_name(workspace):
    response = workspace.api(alone=True).post("/v1/completions", {"model": "smart", "prompt": "hello"})
    assert response.status_code == 400
    assert "smart cannot be asked for completions" in response.json()["error"]["message"]


def test_a_model_for_embeddings_alone_is_not_asked_to_chat(workspace, upstream, second, settings):
    settings.MODELS["fast"]["kinds"] = ["embeddings"]
    refused = workspace.api().chat("hello", model="fast")
    assert (refused.status_code, list(refused.json()["fields"])) == (400, ["model"])
    browser = workspace.client(workspace.owner)
    assert b"fast cannot be asked for" in browser.post("/", {"prompt": "hello", "model": "fast"}).content
    assert workspace.api().post("/api/chat/price/", {"prompt": "hello", "model": "fast"}).status_code == 400
    with workspace.scope(), pytest.raises(Invalid):
        complete([{"role": "user", "content": "hello"}], model="fast")
    assert workspace.api().chat("hello", model="smart").json()["model"] == "big"
    assert upstream.calls == []


@pytest.mark.parametrize("failure", ["unreachable", 429, 500, 503, 400, 401])
@pytest.mark.parametrize("as_stream", [False, True])
def test_where_one_fails_and_bills_nothing_the_next_answers_at_its_own_price(
    workspace, globex, upstream, second, settings, failure, as_stream
):
    eventually(lambda: is_settled(globex))
    before = globex.ledger()
    if failure == "unreachable":
        nobody_listens(settings)
    else:
        upstream.status = failure
    response = workspace.api().chat("hello", model="smart", stream=as_stream)
    facts = events_of(response)[-1][1] if as_stream else response.json()
    assert (response.status_code, facts["model"], facts["cost"]["microcents"]) == (200, "big", 11 * 20_000)
    assert lines_of(workspace) == [("fast", "none", 0), ("big", "exact", 11 * 20_000)]
    assert len(upstream.calls) == (0 if failure == "unreachable" else 1)
    assert len(second.calls) == 1
    assert_books_agree(workspace)
    assert globex.ledger() == before


def test_what_a_stream_says_of_its_money_is_the_next_ones(workspace, upstream):
    upstream.status = 503
    response = workspace.api().chat("hello", model="smart", stream=True)
    held, *_, done = events_of(response)
    assert held[1]["reserved"] > 64 * 20_000
    assert response["X-Conversation-ID"] == str(done[1]["conversation_id"])
    with workspace.scope():
        assert list(Conversation.objects.values_list("pk", flat=True)) == [done[1]["conversation_id"]]


@pytest.mark.parametrize("behaviour", [{"cut_after": 1, "tokens": ["one", "two"]}, {"drop": True}])
def test_what_may_have_been_billed_is_not_asked_again_elsewhere(workspace, upstream, second, behaviour):
    for name, value in behaviour.items():
        setattr(upstream, name, value)
    response = workspace.api().chat("hello", model="smart")
    assert response.status_code == 502
    assert second.calls == []
    (line,) = workspace.lines()
    assert line.model == "fast"
    assert line.cost > 0
    assert_books_agree(workspace)


def test_a_single_model_has_no_other(workspace, upstream, second):
    upstream.status = 503
    assert workspace.api().chat("hello", model="fast").status_code == 503
    assert second.calls == []


def test_the_last_ones_failure_is_the_answer(workspace, upstream, second):
    upstream.status, second.status = 500, 503
    response = workspace.api().chat("hello", model="smart")
    assert (response.status_code, response.json()["error"]) == (503, "model_busy")
    assert lines_of(workspace) == [("fast", "none", 0), ("big", "none", 0)]
    assert_books_agree(workspace)


def test_a_dearer_next_one_that_cannot_be_paid_is_a_402_and_is_not_called(workspace, upstream, second, settings):
    settings.BUDGET_WAIT_SECONDS = 0
    workspace.leave(ENOUGH_FOR_THE_FIRST)
    upstream.status = 503
    response = workspace.api().chat("hello", model="smart")
    assert (response.status_code, response.json()["error"]) == (402, "budget_exceeded")
    assert (len(upstream.calls), second.calls) == (1, [])
    assert eventually(lambda: workspace.holds() == 0)
    assert workspace.ledger()["reserved"] == 0


@pytest.mark.parametrize("is_stream", [False, True])
def test_such_a_refusal_says_what_would_fit(workspace, upstream, second, settings, is_stream):
    settings.BUDGET_WAIT_SECONDS, settings.TOP_UP_URL = 0, "https://pay.example/"
    workspace.leave(ENOUGH_FOR_THE_FIRST)
    upstream.status = 503
    ask = {"model": "smart", "messages": [{"role": "user", "content": "hello"}], "stream": is_stream}
    response = workspace.api(alone=True).post("/v1/chat/completions", ask)
    assert (response.status_code, response["x-should-retry"]) == (402, "false")
    budget = response.json()["error"]["budget"]
    assert [one["model"] for one in budget["fits_with"]] == ["fast", "test-model"]
    assert budget["resets_at"]
    assert budget["top_up_url"] == "https://pay.example/"


def test_whoever_waits_in_silence_is_told_so_and_then_no_other_is_asked(workspace, upstream, second, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.2)
    was_told = threading.Event()
    upstream.parts = [was_told, 'data: {"error": {"message": "overloaded"}}\n\n']
    response = workspace.api().chat("hello", model="smart", stream=True)
    parts = iter(response.streaming_content)
    assert next(parts).startswith(b"event: held")
    while next(parts) != b": waiting\n\n":
        pass
    was_told.set()
    assert [name for name, _ in events_of(response)] == ["error"]
    assert second.calls == []


# --- at every door --------------------------------------------------------------------------------------------------


def test_the_api_of_other_clients_hops_too(workspace, upstream, second):
    upstream.status = 500
    body = {"model": "smart", "messages": [{"role": "user", "content": "hello"}]}
    api = workspace.api(alone=True)
    whole = api.post("/v1/chat/completions", body)
    assert whole.json()["choices"][0]["message"]["content"] == "second"
    streamed = api.post("/v1/chat/completions", {**body, "stream": True})
    assert b'"second"' in streamed.content
    assert [call["model"] for call in second.calls] == ["big", "big"]
    assert_books_agree(workspace)


def test_calls_in_code_hop_too_alone_and_under_a_hold_that_pays_for_them(workspace, upstream):
    upstream.status = 500
    ask = [{"role": "user", "content": "hello"}]

    @guarded(estimate=60 * 10**6, action_kind="llm", action_name="two", app="code")
    def two():
        return [complete(ask, model="smart", app="code"), "".join(stream(ask, model="smart", app="code"))]

    with workspace.scope():
        assert complete(ask, model="smart", app="code").text == "second"
        assert "".join(stream(ask, model="smart", app="code")) == "second"
        answer, words = two()
    assert (answer.text, answer.model, words) == ("second", "big", "second")
    assert lines_of(workspace)[-1] == ("big", "exact", 2 * 11 * 20_000)
    assert_books_agree(workspace)


def test_a_summary_hops_too(workspace, upstream, settings):
    settings.LLM_MODEL = "smart"
    settings.MODELS["big"]["price"] = settings.MODELS["fast"]["price"]
    upstream.status = 500
    summary = workspace.api().summarize("a long text").json()
    assert (summary["summary"], summary["model"]) == ("second", "big")
    assert_books_agree(workspace)


def test_a_conversation_keeps_its_turn(workspace, upstream):
    api = workspace.api()
    conversation = api.chat("hello", model="smart").json()["conversation_id"]
    upstream.status = 500
    again = api.chat("more", model="smart", conversation_id=conversation).json()
    assert (again["conversation_id"], again["model"]) == (conversation, "big")
    with workspace.scope():
        assert Message.objects.filter(conversation_id=conversation).count() == 4


# --- the same request again -----------------------------------------------------------------------------------------


def test_however_often_it_is_repeated_each_model_is_called_once(workspace, upstream, second):
    upstream.status, second.delay_first = 500, 0.3
    api, answers = workspace.api(), []

    def ask():
        answers.append(api.post("/api/chat/", {"prompt": "hi", "model": "smart"}, headers={"idempotency-key": "k"}))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ask()
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}
    assert (len(upstream.calls), len(second.calls)) == (1, 1)
    assert_books_agree(workspace)


def test_a_key_is_free_again_once_the_last_one_failed(workspace, upstream, second):
    upstream.status, second.status = 500, 500
    api, ask = workspace.api(), {"prompt": "hi", "model": "smart"}
    assert api.post("/api/chat/", ask, headers={"idempotency-key": "k"}).status_code == 502
    second.status = None
    assert api.post("/api/chat/", ask, headers={"idempotency-key": "k"}).json()["response"] == "second"


def test_a_key_is_free_again_where_the_next_one_cannot_be_paid(workspace, upstream, second, settings):
    settings.BUDGET_WAIT_SECONDS = 0
    workspace.leave(ENOUGH_FOR_THE_FIRST)
    upstream.status = 503
    api, ask = workspace.api(), {"prompt": "hi", "model": "smart"}
    assert api.post("/api/chat/", ask, headers={"idempotency-key": "k"}).status_code == 402
    upstream.status = None
    assert api.post("/api/chat/", ask, headers={"idempotency-key": "k"}).json()["response"] == "first"


def test_an_answer_under_a_key_is_told_again_though_its_reader_left_during_the_hop(workspace, upstream, second):
    upstream.status, second.delay_first = 500, 0.5
    api = workspace.api()
    headers, ask = {"idempotency-key": "k"}, {"prompt": "hi", "model": "smart"}
    exchange = api.plane.begin("POST", "/api/chat/", ask, headers=headers)
    assert second.wait_until(lambda server: len(server.calls) == 1)
    exchange.leave()
    again = api.post("/api/chat/", ask, headers=headers)
    assert again.json()["response"] == "second"
    assert (len(upstream.calls), len(second.calls)) == (1, 1)
    assert json.loads(again.content)["model"] == "big"
