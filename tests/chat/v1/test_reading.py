"""What is passed on of a request, what is refused by name, and the most that it can cost."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from decimal import Decimal

import pytest

from chat.dialect import dialect_for, passed_on
from chat.history import most_bytes
from chat.passed import Kind
from chat.v1.reading import read
from tenants.bodies import read_object
from tenants.http import Invalid

HELLO = [{"role": "user", "content": "hello"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
ANSWERS = {
    "temperature": 0.3, "top_p": 0.9, "presence_penalty": 0.1, "frequency_penalty": 0.2, "logit_bias": {"50256": -100},
    "stop": ["\n"], "seed": 7, "user": "u-1", "n": 2, "metadata": {"a": "b"},
}  # fmt: skip
SHELL = {"type": "custom", "custom": {"name": "shell", "format": {"type": "grammar", "grammar": {"syntax": "regex"}}}}
CHAT = {
    **ANSWERS, "messages": HELLO, "tools": [WEATHER, SHELL], "tool_choice": "auto", "parallel_tool_calls": False,
    "response_format": {"type": "json_object"}, "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low",
}  # fmt: skip
COMPLETION = {**ANSWERS, "prompt": "hello", "suffix": "!", "logprobs": 1}
EMBEDDING = {"input": ["hello", "world"], "dimensions": 8, "encoding_format": "float", "user": "u-1"}


@pytest.fixture
def said(settings):
    """What the operator says of test-model."""

    def say(**words):
        settings.LLM_DIALECT = {"test-model": words}

    say()
    return say


def chat(**more):
    return read(Kind.CHAT, {"model": "test-model", "messages": HELLO, **more})


def refused(**more):
    with pytest.raises(Invalid) as found:
        chat(**more)
    return list(found.value.extra["fields"])


@pytest.mark.parametrize(
    ("path", "body"), [("chat/completions", CHAT), ("completions", COMPLETION), ("embeddings", EMBEDDING)]
)
def test_every_listed_field_is_at_the_model_as_it_was_sent(workspace, upstream, path, body):
    response = workspace.api(alone=True).post(f"/v1/{path}", {"model": "test-model", **body})
    assert response.status_code == 200, response.content
    sent = upstream.calls[-1]
    assert {name: sent[name] for name in body} == body


def test_a_custom_tool_costs_what_is_said_of_it(said):
    longer = {**SHELL, "custom": {**SHELL["custom"], "description": "x" * 1_000}}
    assert chat(tools=[longer]).bound - chat(tools=[SHELL]).bound >= 1_000
    assert refused(tools=[{**SHELL, "container": {}}]) == ["tools[0].container"]


@pytest.mark.parametrize(
    "field",
    ["best_of", "service_tier", "web_search_options", "prediction", "modalities", "audio", "a_field_of_tomorrow"],
)
def test_what_could_cost_more_is_refused_by_name_and_passes_with_the_operators_word(said, field):
    value = 2 if field == "best_of" else {"a": 1}
    assert refused(**{field: value}) == [field]
    said(extra_fields=[field])
    passed = chat(**{field: value})
    assert passed.body[field] == value
    assert passed.n == (2 if field == "best_of" else 1)


def test_a_hosted_tool_and_an_image_need_a_word_too(said):
    search = {"type": "web_search_preview"}
    seen = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, IMAGE]}]
    assert refused(tools=[WEATHER, search]) == ["tools[1].type"]
    assert refused(messages=seen) == ["messages[0].content[1].image_url"]
    assert refused(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]) == [
        "messages[0].content[0].input_audio"
    ]
    words = chat(messages=[{"role": "user", "content": [{"type": "text", "text": "what is it?"}]}]).bound
    said(hosted_tools=["web_search_preview"], image_tokens=1_105)
    assert chat(tools=[WEATHER, search]).body["tools"] == [WEATHER, search]
    passed = chat(messages=seen)
    assert passed.fixed == 1_105
    # Its bytes are no text; what sets it off from the words is.
    assert words + 1_105 <= passed.bound <= words + 1_105 + 64


@pytest.mark.parametrize(
    "url",
    ["data:application/pdf;base64,JVBERi0=", "data:video/mp4;base64,AAAA", "file:///etc/passwd", "gs://a/b.mp4", ""],
)
def test_what_is_no_image_is_not_bought_at_the_price_of_one(said, url):
    said(image_tokens=1_105)
    assert refused(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]) == [
        "messages[0].content[0].image_url"
    ]


def test_an_image_may_say_its_detail_and_nothing_that_makes_it_larger(said):
    said(image_tokens=1_105)

    def seen(**more):
        image = {"url": "HTTPS://example.com/a.png", "detail": "high", **more}
        return [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]

    assert chat(messages=seen()).fixed == 1_105
    assert refused(messages=seen(max_pixels=10**9)) == ["messages[0].content[0].image_url.max_pixels"]


def test_a_group_is_asked_what_each_of_its_members_has_a_word_for(said, settings):
    price = {"input": 1, "output": 1}
    settings.MODELS = {
        "one": {"price": price, "kinds": ["chat"], "context": None, "dialect": {"extra_fields": ["best_of"]}},
        "two": {"price": price, "kinds": ["chat"], "context": None, "dialect": {}},
        "both": {"fallback": ["one", "two"]},
    }
    assert read(Kind.CHAT, {"model": "one", "messages": HELLO, "best_of": 2}).n == 2
    with pytest.raises(Invalid):
        read(Kind.CHAT, {"model": "both", "messages": HELLO, "best_of": 2})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", [0, -1, 129, 1.5, True, "2"]),
        ("max_tokens", [0, -1, 1.5, "7", False]),
        ("stream", ["yes", 1]),
        ("stop", [7, [1], ["a"] * 17]),
        ("top_logprobs", [21, -1]),
        ("messages", [[], {}, "hello", None]),
        ("stream_options", [True, []]),
        ("response_format", ["json"]),
        ("tools", [{}, ["weather"]]),
    ],
)
def test_what_decides_the_hold_is_checked(said, field, values):
    for value in values:
        assert refused(**{field: value})[0].partition("[")[0] == field


def test_a_message_without_content_is_counted_and_looked_at_too(said):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "x" * 5_000}}
    assert chat(messages=[*HELLO, {"role": "assistant", "tool_calls": [call]}]).bound > 5_000
    assert chat(messages=[*HELLO, {"role": "assistant", "refusal": "x" * 5_000}]).bound > 5_000
    assert refused(messages=[{"role": "user", "a_field_of_tomorrow": "x"}]) == ["messages[0].a_field_of_tomorrow"]


def test_what_a_message_or_a_tool_holds_beside_is_refused_by_name(said):
    assert refused(messages=[{**HELLO[0], "audio": {"id": "a"}}]) == ["messages[0].audio"]
    assert refused(tools=[{**WEATHER, "cache_control": {"type": "ephemeral"}}]) == ["tools[0].cache_control"]
    part = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}
    assert refused(messages=[{"role": "user", "content": [part]}]) == ["messages[0].content[0].cache_control"]
    # As the stock client writes an answer down that it got.
    got = {"role": "assistant", "content": "hi", "refusal": None, "annotations": [], "audio": None, "tool_calls": None}
    assert chat(messages=[*HELLO, {**got, "function_call": None}]).messages == 2


def test_a_completions_limit_has_its_one_name_and_what_is_echoed_is_not_its_output(said):
    said(max_tokens_name="max_completion_tokens")
    passed = read(Kind.COMPLETIONS, {"model": "test-model", "prompt": ["abc", "de"], "n": 2, "echo": True})
    sent = passed_on(passed, model="test-model", max_tokens=7, dialect=dialect_for("test-model"))
    assert json.loads(sent.body)["max_tokens"] == 7
    assert sent.most == 4 * 7 + 2 * 5
    with pytest.raises(Invalid) as found:
        read(Kind.COMPLETIONS, {"model": "test-model", "prompt": "a", "max_completion_tokens": 7})
    assert list(found.value.extra["fields"]) == ["max_completion_tokens"]


@pytest.mark.parametrize("indent", [None, 4])
def test_tools_have_room_however_they_are_written_for_a_model(said, indent):
    nested = {"type": "object", "properties": {}}
    for _ in range(6):
        nested = {"type": "object", "properties": {"größe<&>'": nested, "b": {"enum": [1e15, 2, 3]}}}
    tools = [{"type": "function", "function": {"name": "f", "description": "☃" * 9, "parameters": nested}}] * 3
    written = json.dumps(tools, indent=indent)
    for sign in "<>&'":
        written = written.replace(sign, f"\\u{ord(sign):04x}")
    assert chat(tools=tools).bound >= len(written)


def test_an_infinite_number_is_no_json():
    with pytest.raises(Invalid):
        read_object(b'{"temperature": 1e400}')


def test_two_limits_that_differ_are_refused_and_null_is_as_if_it_was_not_sent(said):
    assert refused(max_tokens=5, max_completion_tokens=6) == ["max_tokens"]
    assert chat(max_tokens=None, max_completion_tokens=6, n=None, service_tier=None).max_tokens == 6


def test_the_hold_is_multiplied_by_the_answers_that_are_asked_for(workspace, upstream, settings):
    settings.BUDGET_WAIT_SECONDS = 0.1
    workspace.leave(1)

    def needed(**more):
        response = workspace.api(alone=True).post(
            "/v1/chat/completions", {"model": "test-model", "messages": HELLO, "max_tokens": 100, **more}
        )
        assert response.status_code == 402
        return Decimal(response.json()["error"]["budget"]["needed"])

    # 400 tokens at 4,000 microcents; the input is the same.
    assert needed(n=5) - needed() == Decimal("0.016")
    assert upstream.calls == []


@pytest.mark.parametrize(("more", "status"), [({}, 200), ({"tools": [WEATHER]}, 402)])
def test_money_that_covers_what_the_models_own_server_counts_is_enough(workspace, upstream, settings, more, status):
    settings.BUDGET_WAIT_SECONDS, upstream.tokenizer = 0.1, 10
    workspace.leave(100_000)
    long = [{"role": "user", "content": "x" * 2_000}]
    body = {"model": "test-model", "messages": long, "max_tokens": 5, **more}
    assert workspace.api(alone=True).post("/v1/chat/completions", body).status_code == status
    assert workspace.ledger()["remaining"] >= 0


def test_what_passes_by_the_operators_word_is_not_left_out_of_the_count(workspace, upstream, settings, said):
    said(extra_fields=["documents"])
    settings.BUDGET_WAIT_SECONDS, upstream.tokenizer = 0.1, 10
    workspace.leave(100_000)
    body = {"model": "test-model", "messages": HELLO, "max_tokens": 5, "documents": [{"text": "x" * 2_000}]}
    assert workspace.api(alone=True).post("/v1/chat/completions", body).status_code == 402
    assert upstream.calls == []


def test_a_bound_is_never_less_than_the_bytes_of_what_a_model_may_read(said):
    arabic = "\ufdfa" * 10
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"q": arabic})}}
    messages = [
        {"role": "developer", "content": arabic},
        {"role": "user", "content": [{"type": "text", "text": "größer"}], "name": "alice"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c"},
    ]
    passed = chat(messages=messages, tools=[WEATHER])
    assert passed.messages == 4
    assert passed.bound >= 2 * most_bytes(arabic) + len("größer".encode()) + len(json.dumps([WEATHER]))


def test_escaped_letters_of_a_call_are_bounded_as_a_template_writes_them(said):
    letters = "\ufdfa" * 1_000
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"q": letters})}}
    passed = chat(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert passed.bound >= most_bytes(letters)


def test_tokens_as_numbers_are_counted_as_they_are(said):
    passed = read(Kind.EMBEDDINGS, {"model": "test-model", "input": [[1, 2, 3], [4]]})
    assert (passed.bound, passed.messages, passed.max_tokens) == (4, 2, None)
    written = read(Kind.COMPLETIONS, {"model": "test-model", "prompt": ["a", "b"], "n": 3})
    assert written.n == 6


def test_no_body_whatever_raises_anything_but_a_refusal(said):
    chance = random.Random(7)

    names = ["role", "content", "type", "text", "image_url", "url", "function", "tool_calls", "name", "n"]
    plain = [None, True, 0, -1, 1.5, "x", "\ufdfa", "user", "text", "function"]

    def anything(depth=0):
        kind = chance.randrange(4) if depth < 4 else 0
        if kind == 1:
            return [anything(depth + 1) for _ in range(chance.randrange(3))]
        if kind == 2:
            return {chance.choice(names): anything(depth + 1) for _ in range(3)}
        return chance.choice(plain)

    fields = [*CHAT, *COMPLETION, *EMBEDDING, "best_of", "stream", "stream_options", "max_tokens", "function_call"]
    for _ in range(1_000):
        body = {chance.choice(fields): anything() for _ in range(4)}
        for kind in Kind:
            with suppress(Invalid):
                read(kind, {"model": "test-model", **body})
