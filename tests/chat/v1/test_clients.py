"""The stock openai client against a real plane: base URL and key alone, and everything works or says why not."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel

from chat.local_model import NAME
from tests.support.clients import ASK, HELLO, Sent, limit

pytestmark = pytest.mark.usefixtures("upstream")

README = (Path(__file__).resolve().parents[3] / "README.md").read_text()
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def calls_of(*cities):
    """A model's message that asks for the weather of each."""
    asked = [{"name": "weather", "arguments": json.dumps({"city": city})} for city in cities]
    return {"tool_calls": [{"id": f"call-{n}", "type": "function", "function": f} for n, f in enumerate(asked)]}


@pytest.fixture
def key(workspace):
    return workspace.key()


@pytest.fixture
def client(door, key):
    return door.client(key)


# --- answers --------------------------------------------------------------------------------------------------------


def test_a_key_and_a_base_url_are_enough_on_either_host(door, workspace, key, upstream):
    for at in (None, workspace):
        answer = door.client(key, at=at).chat.completions.create(**ASK, seed=7, stop=["x"])
        assert answer.choices[0].message.content == "Hello, world."
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 4)
    sent = upstream.calls[-1]
    assert (sent["seed"], sent["stop"]) == (7, ["x"])
    assert [(line.cost, line.app, line.outcome) for line in workspace.settled(lines=2)] == [
        (26_000, "api", "exact")
    ] * 2


def test_headers_say_what_an_answer_cost_and_what_is_left(client, workspace):
    raw = client.chat.completions.with_raw_response.create(**ASK)
    assert raw.parse().choices[0].finish_reason == "stop"
    said = {name.removeprefix("x-budget-"): text for name, text in raw.headers.items() if name.startswith("x-budget-")}
    ledger = workspace.ledger()
    assert (said["cost"], said["limit"], said["remaining"], said["held"]) == ("0.00026", "1.00", "0.99974", "0.00")
    assert said["scope"] == ledger["scope"]


def test_a_stream_brings_words_usage_and_what_they_cost(client, workspace):
    stream = client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello, world."
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [4]
    last = chunks[-1]
    assert last.choices == []
    budget = last.model_extra["budget"]
    assert (budget["cost"], budget["remaining"], budget["ended"]) == ("0.00026", "0.99974", False)
    # [DONE] comes after the commit: nothing is left to wait for.
    assert (workspace.ledger()["spent"], workspace.holds()) == (26_000, 0)


def test_the_helper_that_gathers_a_stream_takes_ours(client):
    with client.chat.completions.stream(**ASK) as stream:
        words = [event.delta for event in stream if event.type == "content.delta"]
    assert words == ["Hello", ",", " world", "."]
    assert stream.get_final_completion().choices[0].message.content == "Hello, world."


USE = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USE}
REPORTS = {
    "apart": [END | {"usage": None}, {"choices": [], "usage": USE}],
    "with the end": [END],
    "with each word": [{"choices": [], "usage": USE | {"completion_tokens": 0, "total_tokens": 10}}, END],
}


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("more", [{}, {"extra_headers": {"Idempotency-Key": "k"}}], ids=["bought", "and told again"])
def test_the_helper_keeps_the_use_that_the_model_reports(client, upstream, report, more):
    """It takes the use of the last chunk, which said the budget and nothing of it: who asked for it got None."""
    own = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "fp"}
    hello = {"choices": [{"index": 0, "delta": {"content": "data: Hello"}, "finish_reason": None}]}
    chunks = [own | chunk for chunk in [hello, *REPORTS[report]]]
    upstream.raw = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    for _ in range(1 + bool(more)):
        with client.chat.completions.stream(**ASK, stream_options={"include_usage": True}, **more) as stream:
            came = [event.chunk for event in stream if event.type == "chunk"]
        whole = stream.get_final_completion()
        assert whole.usage is not None
        assert whole.usage.to_dict() == USE
        assert (whole.choices[0].message.content, whole.system_fingerprint) == ("data: Hello", "fp")
        # Others add up what they are told.
        assert sum(chunk.usage.completion_tokens for chunk in came if chunk.usage) == 1
        assert [chunk.choices[0].finish_reason for chunk in came if chunk.choices] == [None, "stop"]
        assert (came[-1].choices, came[-1].model_extra["budget"]["outcome"]) == ([], "exact")
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("report", REPORTS)
def test_a_report_goes_out_with_the_name_of_its_event(client, upstream, report):
    """Left behind, the name was to the client an event without data: a JSONDecodeError after a paid answer."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}]}, *REPORTS[report]]
    events = [b"event: message\ndata: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks]
    upstream.raw = b"".join(events) + b"event: message\ndata: [DONE]\n\n"
    came = list(client.chat.completions.create(**ASK, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in came if chunk.choices) == "Hello"
    assert came[-1].usage.to_dict() == USE
    assert came[-1].model_extra["budget"]["outcome"] == "exact"


def test_a_report_of_nothing_takes_the_place_of_no_count_of_ours(client, upstream):
    hello = {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}
    chunks = [hello, {"choices": [], "usage": dict.fromkeys(USE, 0)}]
    upstream.raw = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    came = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert came[-1].model_extra["budget"]["outcome"] == "estimated"
    assert min(came[-1].usage.to_dict().values()) > 0


def test_the_async_client_asks_and_reads_several_at_once(door, key, workspace):
    async def ask(client, stream):
        answer = await client.chat.completions.create(**ASK, stream=stream)
        if not stream:
            return answer.choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices])

    async def run():
        async with door.aclient(key) as client:
            return await asyncio.gather(*(ask(client, n % 2 == 0) for n in range(6)))

    assert asyncio.run(run()) == ["Hello, world."] * 6
    assert len(workspace.settled(lines=6)) == 6


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_goes_back(client, upstream, stream):
    upstream.message = lambda body: calls_of("Paris") if body["messages"][-1]["role"] == "user" else {"content": "Sun."}
    options = {"model": "test-model", "tools": [WEATHER], "tool_choice": "auto"}
    with client.chat.completions.stream(messages=HELLO, **options) as streaming:
        asked = streaming.get_final_completion().choices[0]
    if not stream:
        asked = client.chat.completions.create(messages=HELLO, **options).choices[0]
    (call,) = asked.message.tool_calls
    assert (asked.finish_reason, call.function.name, json.loads(call.function.arguments)) == (
        "tool_calls",
        "weather",
        {"city": "Paris"},
    )
    said = asked.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answer = client.chat.completions.create(messages=[*HELLO, said, result], **options)
    assert answer.choices[0].message.content == "Sun."
    assert upstream.calls[-1]["messages"][-1] == result
    assert upstream.calls[-1]["tools"] == [WEATHER]


def test_parallel_tool_calls_of_a_stream_are_put_together(client, upstream):
    upstream.message = lambda body: calls_of("Paris", "Rome")
    with client.chat.completions.stream(**ASK, tools=[WEATHER], parallel_tool_calls=True) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Rome"]
    assert upstream.calls[-1]["parallel_tool_calls"] is True


def test_an_answer_in_a_shape_is_parsed(client, upstream):
    class City(BaseModel):
        name: str
        people: int

    upstream.message = lambda body: {"content": '{"name": "Rome", "people": 3}'}
    answer = client.chat.completions.parse(**ASK, response_format=City)
    assert answer.choices[0].message.parsed == City(name="Rome", people=3)
    assert upstream.calls[-1]["response_format"]["json_schema"]["name"] == "City"


@pytest.mark.parametrize("odd", [b"id: 1\n", b"retry: 5\n\n", b"data: null\n\n", b"data:\n\n", b"data: [1]\n\n"])
def test_what_says_nothing_in_a_stream_breaks_no_client(client, upstream, workspace, odd):
    """It broke at our own blank line, or at the frame: the answer was paid, and its end never read."""

    def frame(**more):
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [], **more}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    hello = frame(choices=[{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}])
    usage = frame(usage={"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11})
    upstream.raw = odd + hello + b": ping\n\n" + usage + b"data: [DONE]\n\n"
    chunks = list(client.chat.completions.create(**ASK, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"
    assert chunks[-1].model_extra["budget"]["outcome"] == "exact"


def test_a_reader_who_closes_early_pays_for_what_came_and_no_more(client, workspace, upstream):
    upstream.tokens, upstream.last_word_after = ["word"] * 6, threading.Event()
    stream = client.chat.completions.create(**ASK, stream=True)
    for number, _ in enumerate(stream):
        if number == 4:
            break
    stream.close()
    (line,) = workspace.settled(lines=1)
    assert upstream.wait_until(lambda model: model.aborted == 1)
    assert line.outcome == "estimated"
    assert 5 <= line.tokens_output <= 8
    assert 5 * 4_000 < line.cost < 8 * 4_000 + 30 * 1_000


def test_the_block_of_the_readme_runs(door, key, capsys):
    (block,) = re.findall(r"tests/chat/v1/test_clients.py runs this block -->\n```python\n(.*?)```", README, re.DOTALL)
    assert len(block.strip().splitlines()) == 3
    block = block.replace("localhost:8000", f"localhost:{door.plane.port}").replace(NAME, "test-model")
    exec(block, {"KEY": key})
    assert "Hello, world." in capsys.readouterr().out


def test_an_equal_request_under_one_key_is_answered_again_and_charged_once(openai, door, client, workspace, upstream):
    ask = {**ASK, "extra_headers": {"Idempotency-Key": "once"}}
    first = client.chat.completions.with_raw_response.create(**ask)
    again = client.chat.completions.with_raw_response.create(**ask)
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert (len(upstream.calls), len(workspace.settled(lines=1))) == (1, 1)
    sent = Sent()
    other = client.with_options(http_client=door.http(sent))
    with pytest.raises(openai.ConflictError) as refused:
        other.chat.completions.create(**{**ask, "seed": 1})
    assert (refused.value.code, sent.statuses) == ("idempotency_conflict", [409])


def test_an_answer_says_what_is_left_of_its_keys_rates(client, key, workspace):
    limit(workspace, key, requests=5, tokens=100_000)
    raw = client.chat.completions.with_raw_response.create(**ASK)
    assert (raw.headers["x-ratelimit-limit-requests"], raw.headers["x-ratelimit-remaining-requests"]) == ("5", "4")
    assert raw.headers["x-ratelimit-limit-tokens"] == "100000"
    assert raw.headers["x-ratelimit-reset-requests"].endswith("s")


def test_models_are_listed_and_found(openai, client):
    assert {model.id for model in client.models.list()} == {"test-model", "small-model", "embed-model"}
    assert client.models.retrieve("small-model").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_embeddings_are_paid_by_their_input(client, workspace, upstream):
    answer = client.embeddings.create(model="embed-model", input=["one", "two"])
    assert [item.embedding for item in answer.data] == [[0.5, -0.25]] * 2
    assert upstream.calls[-1]["input"] == ["one", "two"]
    (line,) = workspace.settled(lines=1)
    assert line.cost == 1_000


def test_completions_are_paid_as_chat_is(client, workspace):
    answer = client.completions.create(model="test-model", prompt="hello")
    assert answer.choices[0].text == "Hello, world."
    (line,) = workspace.settled(lines=1)
    assert line.cost == 26_000


def test_money_that_ends_is_a_length_and_says_that_it_was_the_money(client, workspace, upstream):
    upstream.tokens = ["word "] * 400
    workspace.leave(1_000_000)
    chunks = list(client.chat.completions.create(**ASK, stream=True, max_tokens=1_000))
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == ["length"]
    assert chunks[-1].model_extra["budget"]["ended"] is True
    workspace.settled(lines=1)
    assert workspace.ledger()["remaining"] >= 0


def test_an_image_goes_where_the_operator_has_priced_it_and_nowhere_else(openai, client, upstream):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
    client.chat.completions.create(model="test-model", messages=messages)
    assert upstream.calls[-1]["messages"] == messages
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="small-model", messages=messages)
    assert refused.value.param.startswith("messages[0].content[1]")
    assert len(upstream.calls) == 1
