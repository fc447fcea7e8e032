"""What a model's answer says: every odd answer is read right, however its bytes are split."""

from __future__ import annotations

import json
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.outcomes import Outcome
from billing.prices import Usage
from chat.answer import Answer, used
from chat.dialect import failure_of_status
from chat.frames import FRAME_BYTES, read_json
from tests.support.odd_answers import odd_answers

CASES = odd_answers()
STREAMS = [case for case in CASES if case.status == 200]
SHORT = [case for case in STREAMS if sum(map(len, case.pieces())) < 20_000]
PROMPT_TOKENS = 10


def frame(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def words(text: object, **more: object) -> bytes:
    return frame({"choices": [{"index": 0, "delta": {"content": text}}], **more})


STOP = frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"


def read(pieces, *, content_type="text/event-stream", max_tokens=None):
    answer = Answer(content_type=content_type, max_tokens=max_tokens)
    shown = "".join([answer.feed(piece) for piece in pieces]) + answer.close()
    return answer, shown


def read_case(case, pieces=None):
    return read(
        case.pieces() if pieces is None else pieces,
        content_type=case.headers.get("Content-Type", ""),
        max_tokens=case.max_tokens,
    )


def what_was_used(answer, case):
    return used(answer, tokens_input=PROMPT_TOKENS, max_output=case.max_tokens, cut=answer.is_over)


def how_it_ends(answer):
    if answer.error:
        return "error" if answer.has_begun else 502
    if answer.is_page:
        return 502
    if answer.is_over:
        return "cut"
    if answer.is_done or answer.said_all:
        return "done"
    return "error" if answer.has_begun else "nothing"


def facts(answer, shown, case):
    """All that a reading comes to."""
    return shown, what_was_used(answer, case), how_it_ends(answer), answer.finish_reason, answer.stand_in()


# The odd answers


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case.name)
def test_an_odd_answer_is_read_right(case):
    answer, shown = read_case(case)
    usage, outcome = what_was_used(answer, case)
    right = case.right
    assert (shown, outcome, how_it_ends(answer)) == (right["text"], right["outcome"], right["ends"]), case.about
    assert usage.tokens_input == right.get("input", PROMPT_TOKENS)
    if "between" in right:
        assert right["between"][0] <= usage.tokens_output <= right["between"][1]
        assert outcome != Outcome.EXACT
    else:
        assert usage.tokens_output == right["output"]
        assert outcome in (Outcome.EXACT, Outcome.NONE)
    assert answer.text == shown


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case.name)
def test_an_odd_answer_says_what_else_is_to_be_known(case):
    answer, _shown = read_case(case)
    usage, _outcome = what_was_used(answer, case)
    said = {
        "finish_reason": answer.finish_reason,
        "hidden": answer.hidden,
        "cached": usage.cached,
        "reasoning": usage.reasoning,
        "stand_in": bool(answer.stand_in()),
    }
    right = {name: value for name, value in case.right.items() if name in said}
    assert {name: said[name] for name in right} == right
    if case.right["ends"] == "done" and "hidden" not in right:
        assert not answer.hidden


@pytest.mark.parametrize("case", [case for case in STREAMS if "done_within" in case.right], ids=lambda case: case.name)
def test_an_answer_that_has_said_all_is_not_waited_for_although_its_connection_stays_open(case):
    answer = Answer(max_tokens=case.max_tokens)
    for piece in case.pieces():
        assert not answer.said_all or answer.finish_reason
        answer.feed(piece)
    assert answer.said_all
    assert not answer.is_done


@pytest.mark.parametrize("case", [case for case in CASES if case.status != 200], ids=lambda case: case.name)
def test_a_refusal_costs_nothing_and_says_who_can_do_something(case):
    failure = failure_of_status(case.status, case.headers)
    assert (failure.status, failure.code) == (case.right["ends"], case.right["code"])
    assert failure.retry_after_ms == case.right.get("retry_after_ms")
    assert (failure.outcome, failure.usage, failure.reached) == (Outcome.NONE, None, False)
    assert failure.body()["message"].endswith("Nothing was charged.")
    assert "Incorrect" not in repr(failure.body())


# However it is split


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.name)
def test_the_bytes_may_come_one_by_one(case):
    every = b"".join(case.pieces())
    together, apart = read_case(case, [every]), read_case(case, [every[i : i + 1] for i in range(len(every))])
    assert facts(*apart, case) == facts(*together, case)


@given(st.sampled_from(SHORT), st.randoms(use_true_random=False))
def test_the_bytes_may_be_split_anywhere(case, chance):
    every = b"".join(case.pieces())
    cuts = sorted(chance.choices(range(len(every) + 1), k=8))
    pieces = [every[start:end] for start, end in zip([0, *cuts], [*cuts, len(every)], strict=True)]
    assert facts(*read_case(case, pieces), case) == facts(*read_case(case, [every]), case)


@given(st.text(min_size=1), st.integers(0, 300), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_text_arrives_whole(text, cut, line_end):
    chunk = json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False)
    every = f"data: {chunk}{line_end}{line_end}".encode("utf-8", "surrogatepass")
    answer, shown = read([every[:cut], every[cut:]])
    assert shown == text.replace("\x00", "")
    assert answer.billed_bytes == len(text.encode())


written = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)  # which does not equal itself
    | st.text(st.characters(), max_size=12),  # with halves of surrogate pairs
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(written, st.booleans(), st.none() | st.tuples(st.integers(0, 200), st.binary(max_size=3)))
def test_a_value_reads_as_the_standard_library_reads_it_or_is_none_for_both(value, is_ascii, spoilt):
    text = json.dumps(value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    if spoilt is not None:
        place, put_in = spoilt
        text = text[:place] + put_in + text[place + 1 :]
    try:
        said = text.decode("utf-8", "replace")
        by_the_library = json.loads(said, strict=False, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        with pytest.raises((ValueError, RecursionError)):
            read_json(text)
    else:
        assert repr(read_json(text)[0]) == repr(by_the_library)  # 1 is not 1.0, nor 0.0 -0.0


@pytest.mark.parametrize("depth", [150, 190, 300])
def test_a_deep_nest_reads_as_the_standard_library_reads_it(depth):
    text = b"[" * depth + b"]" * depth
    assert repr(read_json(text)[0]) == repr(json.loads(text))


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_no_bytes_at_all_break_the_reading(pieces):
    answer, _shown = read(pieces)
    used(answer, tokens_input=5, max_output=20)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PROTOCOL = [
    "choices",
    "delta",
    "message",
    "content",
    "usage",
    "error",
    "index",
    "finish_reason",
    "text",
    "total_tokens",
]
near_chunks = st.recursive(
    json_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(PROTOCOL), inner, max_size=6),
    max_leaves=30,
)


@given(st.lists(near_chunks, max_size=5), st.sampled_from(["data: ", ""]))
def test_no_json_at_all_breaks_the_reading(values, before):
    sent = "".join(f"{before}{json.dumps(value)}\n\n" for value in values).encode()
    answer, shown = read([sent])
    usage, _outcome = used(answer, tokens_input=5, max_output=20)
    assert min(usage.tokens_input, usage.tokens_output, answer.billed_bytes, answer.deltas) >= 0
    assert "\x00" not in shown
    shown.encode()


# Counting


def test_a_delta_counts_for_one_token_at_least_and_long_ones_by_their_bytes():
    assert read([words("a"), words("b"), words("c")])[0].counted() == 3
    assert read([words("a" * 41)])[0].counted() == 11
    assert read([words("中" * 3)])[0].counted() == 3
    assert read([words("a" * 41)])[0].counted(tokens_per_byte=0.5) == 21
    assert read([words("")])[0].counted() == 0


def test_a_nest_without_a_bottom_is_counted_without_recursion():
    thought = "x"
    for _ in range(400):
        thought = [{"deeper": thought}]
    answer, _shown = read([frame({"choices": [{"delta": {"thought": thought}}]})])
    assert (answer.deltas, answer.billed_bytes, answer.hidden) == (1, 1, True)


def test_no_estimate_is_above_what_was_allowed():
    answer, _shown = read([words("abcd")] * 20)
    assert used(answer, tokens_input=7, max_output=6, cut=True) == (Usage(7, 6), Outcome.ESTIMATED)


def test_a_report_above_what_was_allowed_is_still_what_was_reported():
    answer, _shown = read([words("a"), STOP, frame({"usage": {"prompt_tokens": 9, "completion_tokens": 900}}), DONE])
    assert used(answer, tokens_input=7, max_output=6) == (Usage(9, 900), Outcome.EXACT)


def test_a_reader_who_leaves_before_anything_came_is_charged_the_estimated_input():
    usage = Usage(7, 0)
    assert used(Answer(), tokens_input=7, max_output=6, cut=True) == (usage, Outcome.ESTIMATED)
    assert used(Answer(), tokens_input=7, max_output=6, cut=False) == (usage, Outcome.UNKNOWN)


def test_a_running_report_is_exact_only_when_the_answer_is_whole():
    running = words("Hello", usage={"prompt_tokens": 10, "completion_tokens": 4})
    answer = Answer()
    answer.feed(running)
    assert used(answer, tokens_input=7, max_output=9, cut=True) == (Usage(10, 4), Outcome.ESTIMATED)
    answer.feed(STOP)
    assert used(answer, tokens_input=7, max_output=9, cut=True) == (Usage(10, 4), Outcome.EXACT)


def test_a_report_of_the_input_before_the_first_word_is_no_end():
    answer = Answer()
    answer.feed(frame({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 0}}))
    assert not answer.said_all
    role = {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
    answer.feed(frame({**role, "usage": {"prompt_tokens": 10, "completion_tokens": 1}}))
    assert not answer.said_all
    answer.feed(words("Hello", usage={"prompt_tokens": 10, "completion_tokens": 1}))
    assert not answer.said_all


@pytest.mark.parametrize("usage", [{"prompt_tokens": 10, "completion_tokens": 1}, {"total_tokens": 10}])
def test_a_report_before_any_word_is_not_taken_for_the_end(usage):
    answer = Answer()
    answer.feed(frame({"choices": [], "usage": usage}))
    assert not answer.is_ending
    answer.feed(words("Hello"))
    answer.feed(frame({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 2}}))
    assert answer.is_ending


def test_a_total_bounds_an_input_that_we_think_is_larger():
    answer, _shown = read([words("a"), words("b"), words("c"), STOP, frame({"usage": {"total_tokens": 13}}), DONE])
    assert used(answer, tokens_input=50, max_output=9) == (Usage(10, 3), Outcome.ESTIMATED)


reports = st.dictionaries(
    st.sampled_from(["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"]),
    st.integers(-5, 1000) | st.none() | st.booleans() | st.floats() | st.integers(10**8 + 1),
    max_size=4,
)


@given(st.lists(reports, max_size=6))
def test_reports_in_any_order_merge_to_the_largest_of_each(given_reports):
    def largest(*names, least):
        values = [report[name] for report in given_reports for name in names if name in report]
        return max((value for value in values if type(value) is int and least <= value <= 10**8), default=None)

    tokens = largest("prompt_tokens", "input_tokens", least=1), largest("completion_tokens", "output_tokens", least=0)
    expected = None if None in tokens else Usage(*tokens)
    for _ in range(3):
        answer, _shown = read([frame({"choices": [], "usage": report}) for report in given_reports])
        assert answer.report() == expected
        random.Random(1).shuffle(given_reports)


# Limits


@pytest.mark.parametrize("piece", [b"x" * 65_536, b"data: x\n" * 8_192, b"{\n" * 32_768], ids=["line", "lines", "bare"])
def test_a_frame_without_an_end_does_not_fill_the_memory(piece):
    answer = Answer()
    answer.feed(words("Hello"))
    tracemalloc.start()
    for _ in range(200):
        answer.feed(piece)
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.is_broken
    assert peak < 8 * FRAME_BYTES
    assert answer.close() == ""
    assert used(answer, tokens_input=7, max_output=9) == (Usage(7, 2), Outcome.ESTIMATED)


def test_nothing_of_an_errors_words_is_kept():
    answer, shown = read([frame({"error": {"message": "key sk-SECRET of acme"}}), words("SECRET")])
    assert answer.error
    kept = [getattr(answer, name) for name in Answer.__slots__ if name not in ("frames", "_words")]
    assert "sk-SECRET" not in repr(kept) + shown
