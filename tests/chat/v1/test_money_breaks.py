"""What a provider could bill for a request, field by field, beside what is held for it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from billing.engine.habits import Habits
from billing.engine.rules import Sample, Samples
from chat.buying import Wanted, terms_for
from chat.history import most_bytes
from chat.passed import Kind
from chat.rendered import calls_bound
from chat.v1.reading import read
from tests.support.money import reservations_of

PRICE = {"input": 1_000_000_000, "output": 4_000_000_000}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def said(settings):
    settings.LLM_DIALECT = {"test-model": {"extra_fields": ["instruction"]}}


def chat(*messages):
    return read(Kind.CHAT, {"model": "test-model", "messages": list(messages)})


def test_what_stands_beside_several_prompts_is_held_for_with_each_of_them(said):
    ask = {"model": "test-model", "prompt": ["a", "b"] * 50, "suffix": "x" * 1_000}
    assert read(Kind.COMPLETIONS, ask).bound == 100 * (1_000 + 1)
    # A list of numbers is one prompt, and not one for each.
    assert read(Kind.COMPLETIONS, {**ask, "prompt": [1, 2, 3]}).bound == 1_000 + 3
    ask |= {"suffix": None, "instruction": "x" * 1_000}
    assert read(Kind.COMPLETIONS, ask).bound >= 100 * 1_000
    del ask["prompt"], ask["suffix"]
    assert read(Kind.EMBEDDINGS, {**ask, "input": ["a"] * 100}).bound >= 100 * 1_000


@pytest.mark.parametrize("text", ["\x01\x02\x1b" * 100, '"\\\n' * 100, "größer <b>&</b> ☃" * 20, "plain"])
def test_a_tools_words_have_room_as_json(text):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    written = json.dumps([{"type": "text", "text": text}])
    for sign in "<>&'":
        written = written.replace(sign, f"\\u{ord(sign):04x}")
    for message in (
        {"role": "tool", "tool_call_id": "c"},
        {"role": "ipython"},
        {"role": "assistant", "tool_calls": [call]},
    ):
        for content in (text, [{"type": "text", "text": text}]):
            passed = chat(*HELLO, {**message, "content": content})
            whole = written if isinstance(content, list) else written[len('[{"type": "text", "text": ') : -2]
            assert passed.bound >= len(whole) + len("hello")
            # What is charged where nobody reports stays as the words are.
            assert passed.size < len(text.encode()) + 400
    # Other messages are as they were: nobody writes them as JSON.
    assert chat({"role": "user", "content": text}).bound == most_bytes(text) + len("user")


@pytest.mark.parametrize("number", ["1e300", "-2.5E+0307", "1e7", "7e-300"])
def test_a_number_in_a_call_has_room_for_all_its_digits(number):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": f'{{"a": {number}}}'}}
    bare = {**call, "function": {"name": "f", "arguments": '{"a": }'}}
    assert calls_bound([call]) - calls_bound([bare]) >= len(f"{float(number):.6f}")


def test_a_long_exponent_is_no_work_and_no_failure():
    arguments = "1e" + "9" * 100_000
    assert calls_bound([{"function": {"name": "f", "arguments": arguments}}]) < 2 * len(arguments)


def test_what_a_template_adds_is_not_learned_from_what_has_none(settings):
    settings.LLM_DIALECT, settings.LLM_PRICES = {}, {"test-model": PRICE}
    engine = SimpleNamespace(habits=Habits(SimpleNamespace()))
    payer = SimpleNamespace(models=None, plan="trial", subject_tenant="acme")

    def terms(passed):
        return terms_for(engine, payer, Wanted(passed=passed, model="test-model", app="api"), "test-model")

    before = terms(chat(*HELLO * 50)).bound
    for passed in (
        read(Kind.COMPLETIONS, {"model": "test-model", "prompt": "a"}),
        read(Kind.EMBEDDINGS, {"model": "test-model", "input": "a"}),
    ):
        for _ in range(30):
            engine.habits.learn("test-model", terms(passed).app, Sample(1, 25, 1, 4, 100))
        assert terms(chat(*HELLO * 50)).bound == before
        # Of themselves they have learned it.
        assert terms(passed).bound < before


@pytest.fixture
def trusted(monkeypatch):
    """A model that has shown twenty times that its streams say all that is billed."""
    habit = Samples([Sample(12, 40, 4, 13, 100)] * 20).habit()
    assert habit.trusted
    monkeypatch.setattr(Habits, "of", lambda *_: habit)


@pytest.mark.parametrize(
    ("more", "is_whole"),
    [
        ({}, False),
        ({"reasoning_effort": "none", "stop": ["\nObservation:"]}, False),
        ({"reasoning_effort": "high"}, True),
        ({"stop": ["a text as long as a whole answer, which its reader is never shown"]}, True),
        ({"instruction": {"think": True}}, True),
    ],
)
def test_what_may_be_written_out_of_sight_is_held_for_whole(workspace, upstream, said, trusted, more, is_whole):
    """Thoughts that no chunk shows are billed all the same: a first slice covered 64 tokens of them."""
    upstream.usage = {"prompt_tokens": 10, "completion_tokens": 900, "total_tokens": 910}
    ask = {"model": "test-model", "messages": HELLO, "max_tokens": 900, "stream": True, **more}
    response = workspace.api(alone=True).post("/v1/chat/completions", ask)
    assert b"[DONE]" in response.content
    (line,) = workspace.lines()
    assert line.outcome == "exact"
    assert (len(reservations_of(workspace)) == 1) is is_whole


@pytest.mark.parametrize(
    ("price", "dialect", "is_whole"),
    [
        ({}, {}, False),
        ({"reasoning": 40}, {}, True),
        ({}, {"max_tokens_name": "max_completion_tokens"}, True),
    ],
)
def test_a_model_that_may_think_by_itself_is_held_for_whole(
    workspace, upstream, settings, trusted, price, dialect, is_whole
):
    """It answers easy questions without a thought, and so looks as if its streams said all that is billed."""
    settings.LLM_PRICES, settings.LLM_DIALECT = {"test-model": {**PRICE, **price}}, {"test-model": dialect}
    upstream.usage = {"prompt_tokens": 10, "completion_tokens": 900, "total_tokens": 910}
    ask = {"model": "test-model", "messages": HELLO, "max_tokens": 900, "stream": True}
    response = workspace.api(alone=True).post("/v1/chat/completions", ask)
    assert b"[DONE]" in response.content
    (line,) = workspace.lines()
    assert line.outcome == "exact"
    assert (len(reservations_of(workspace)) == 1) is is_whole


def test_a_field_that_passes_by_a_word_is_read_as_nothing_else(settings):
    settings.LLM_DIALECT = {"test-model": {"extra_fields": ["stop", "reasoning_effort"]}}
    ask = {"model": "test-model", "input": "a", "stop": 7, "reasoning_effort": ["high"]}
    assert not read(Kind.EMBEDDINGS, ask).hides


@pytest.mark.parametrize("echo", [True, False])
def test_nothing_is_learned_of_an_answer_that_repeats_its_prompt(workspace, upstream, monkeypatch, echo):
    """Its many bytes for a token made the next reader, who left, pay next to nothing; and a model look trustworthy."""
    learned = []
    monkeypatch.setattr(Habits, "learn", lambda _self, *sample: learned.append(sample))
    body = {"choices": [{"index": 0, "text": "x" * 4_000 + "y", "finish_reason": "length"}]}
    body["usage"] = {"prompt_tokens": 1_000, "completion_tokens": 1, "total_tokens": 1_001}
    upstream.parts, upstream.part_headers = [json.dumps(body)], {"Content-Type": "application/json"}
    ask = {"model": "test-model", "prompt": "x" * 4_000, "max_tokens": 1, "echo": echo}
    assert workspace.api(alone=True).post("/v1/completions", ask).status_code == 200
    assert bool(learned) is not echo
    assert read(Kind.COMPLETIONS, ask).hides is echo
