"""History as strict models take it, and how many tokens it can be."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.history import Message, as_taken, prompt_bound, prompt_bytes


def said(*turns: str) -> list[Message]:
    """said("u: Hi", "a: Yes") and so on."""
    roles = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    return [{"role": roles[turn[0]], "content": turn[3:]} for turn in turns]


@pytest.mark.parametrize(
    ("given_turns", "taken"),
    [
        (["u: Hi"], ["u: Hi"]),
        (["s: Be kind", "u: Hi", "a: Yes?", "u: Why"], ["s: Be kind", "u: Hi", "a: Yes?", "u: Why"]),
        # The history was cut at an answer.
        (["a: Yes?", "u: Why"], ["u: Why"]),
        (["s: Be kind", "a: Yes?", "a: Well?", "u: Why"], ["s: Be kind", "u: Why"]),
        # An answer without words, and a question that was never answered.
        (["u: Hi", "a: ", "u: Why"], ["u: Hi\n\nWhy"]),
        (["u: Hi", "a:  \n\t", "u: Why"], ["u: Hi\n\nWhy"]),
        (["u: Hi", "u: Why"], ["u: Hi\n\nWhy"]),
        # Two tabs.
        (["u: Hi", "u: Ho", "a: One", "a: Two", "u: Why"], ["u: Hi\n\nHo", "a: One\n\nTwo", "u: Why"]),
        # Nothing to answer at the end.
        (["u: Hi", "a: Yes?"], ["u: Hi"]),
        # What is not at the beginning is taken there, and by the name that all models know.
        (["u: Hi", "s: Be brief", "u: Why"], ["s: Be brief", "u: Hi\n\nWhy"]),
        (["d: Be kind", "s: Be brief", "u: Why"], ["s: Be kind\n\nBe brief", "u: Why"]),
        (["s:  ", "u: Why"], ["u: Why"]),
        # Nothing to ask.
        (["s: Be kind"], []),
        (["a: Yes?"], []),
        (["u: "], []),
        ([], []),
    ],
)
def test_a_history_is_put_as_strict_models_take_it(given_turns, taken):
    assert as_taken(said(*given_turns)) == said(*taken)


messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant"]),
            "content": st.sampled_from(["", " ", "a", "b"]),
        }
    ),
    max_size=12,
)


@given(messages)
def test_any_history_comes_out_in_turns_and_loses_no_question(history):
    before = [dict(message) for message in history]
    taken = as_taken(history)
    roles = [message["role"] for message in taken]
    if roles[:1] == ["system"]:
        roles = roles[1:]
    assert roles == ["user" if number % 2 == 0 else "assistant" for number in range(len(roles))]
    assert not roles or roles[-1] == "user"
    assert all(message["content"].strip() for message in taken)
    asked = [message["content"] for message in history if message["role"] == "user" and message["content"].strip()]
    assert asked == [part for m in taken if m["role"] == "user" for part in m["content"].split("\n\n")]
    assert as_taken(taken) == taken
    assert history == before, "what is stored must not be changed"


def test_no_text_has_more_tokens_than_its_bound():
    plain = prompt_bound([{"role": "user", "content": ""}])
    assert prompt_bound([{"role": "user", "content": "a" * 10}]) == plain + 10
    assert prompt_bound([{"role": "user", "content": "é"}]) == plain + 2
    assert prompt_bound([{"role": "user", "content": "\ufdfa"}]) == plain + 33
    assert prompt_bound([{"role": "user", "content": "\ud83d"}]) >= plain + 3
    assert prompt_bound([]) > 0


def test_the_bytes_of_a_prompt_have_the_markers_of_each_message_in_them():
    one = prompt_bytes([{"role": "user", "content": ""}])
    assert one > 0
    assert prompt_bytes(said("u: é", "u: aaaa")) == 2 * one + 6
    assert prompt_bytes([{"role": "user", "content": "\ud83d"}]) == one + 3
    assert prompt_bytes([]) == 0


@given(
    st.lists(
        st.sampled_from("eo\u1e69é각ㄱ\u1100\u1161\u0301\u0316\u0323\u0345\u03b1\u0344\ufdfa 字"),
        min_size=1,
        max_size=60,
    )
)
def test_a_long_text_has_no_more_tokens_than_its_bound_wherever_it_is_cut(pattern):
    """It is measured piece by piece, and a mark beyond a cut may undo what was composed before it."""
    text = ("".join(pattern) * 1_500)[:1_500]
    bound = prompt_bound([{"role": "user", "content": text}]) - prompt_bound([{"role": "user", "content": ""}])
    forms = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFKC"))]
    longest = max(len(form.encode()) for form in forms)
    assert longest <= bound <= longest * 1.2 + 100


@pytest.mark.parametrize("before", range(490, 510))
def test_a_mark_beyond_a_cut_is_room_for_what_it_undoes(before):
    """é alone is two bytes; with a dot below it is the letter and its dot, three, and the accent, two."""
    text = "a" * before + "\u00e9\u0323"
    bound = prompt_bound([{"role": "user", "content": text}]) - prompt_bound([{"role": "user", "content": ""}])
    assert bound >= len(unicodedata.normalize("NFC", text).encode()) == before + 5


def test_a_prompt_of_marks_is_measured_in_a_moment():
    """One of 20,000 took 0.65 s of the plane's loop, and each later call of its conversation as much again."""
    began = time.thread_time()
    prompt_bound([{"role": "user", "content": "a" + "\u0301\u0316" * 9_999}])
    assert time.thread_time() - began < 0.1


@given(messages)
def test_the_bound_is_above_the_bytes(history):
    assert prompt_bound(history) > prompt_bytes(history)


@pytest.mark.parametrize("letters", ["\u0300\u0316", "\uff9e\u0f71", "\ufdfa"])
def test_the_bound_of_a_million_odd_letters_is_known_in_a_moment(letters):
    text = letters * (1_000_000 // len(letters))
    began = time.thread_time()
    bound = prompt_bound([{"role": "user", "content": text}])
    # By normal forms it took about a second.
    assert time.thread_time() - began < 0.5
    assert bound >= len(text.encode())


@pytest.mark.parametrize(
    "letters", ["\u0f73\u0316", "\uff9e\u0f71", "각\u11a8", "e\u0301\u0323…", "\ufdfa\u0301", "½\u0958", "\u0300\u0316"]
)
def test_no_normal_form_has_more_bytes_than_the_bound(letters):
    text = letters * 400
    bound = prompt_bound([{"role": "user", "content": text}]) - prompt_bound([{"role": "user", "content": ""}])
    assert bound >= max(len(unicodedata.normalize(form, text).encode()) for form in ("NFC", "NFKC"))
