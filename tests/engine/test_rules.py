"""How much is held and what was probably used: laws that hold for every figure."""

from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from billing.engine.rules import (
    KEPT_SAMPLES,
    LEAST_COUNTED,
    LEAST_OUTPUT,
    MOST_PERCENT,
    SPARE_TOKENS,
    TRUSTED_AFTER,
    USUAL_INPUT_RATIO,
    USUAL_OUTPUT_RATIO,
    Habit,
    Sample,
    Samples,
    first_output,
    is_full,
    likely_tokens,
    next_output,
    percent_of,
    shares,
    wants_more,
    with_spare,
)
from billing.prices import PER, UNLIMITED_TOKENS, Price, Usage, affordable_tokens, cost, estimate

tokens = st.integers(0, 200_000)
limits = st.integers(1, 200_000)
money = st.integers(0, 10**14)
prices = st.builds(Price, input=st.integers(0, 10**12), output=st.integers(0, 10**12))
samples = st.builds(
    Sample,
    tokens_input=st.integers(1, 10**6),
    bytes_input=st.integers(0, 10**7),
    tokens_output=st.integers(0, 10**6),
    bytes_output=st.integers(0, 10**7),
    percent=st.integers(0, 10**4),
)


@given(cost=money, amounts=st.lists(money, min_size=1, max_size=12))
def test_output_ratiosfill_the_amounts_in_order_and_never_pass_them(cost, amounts):
    parts = shares(cost, amounts)
    assert len(parts) == len(amounts)
    assert all(0 <= part <= amount for part, amount in zip(parts, amounts, strict=True))
    assert sum(parts) == min(cost, sum(amounts))
    for earlier, amount, later in zip(parts, amounts, parts[1:], strict=False):
        assert later == 0 or earlier == amount


@given(first=limits, most=limits)
def test_slices_double_until_the_limit_and_end_exactly_there(first, most):
    held, steps = min(first, most), 0
    while held < most:
        more = next_output(held, most)
        assert 1 <= more <= held
        held, steps = held + more, steps + 1
    assert held == most
    assert next_output(held, most) == 0
    assert steps <= 18


@given(counted=tokens, held=limits, most=limits)
def test_what_is_not_full_is_covered_even_if_a_fifth_more_is_reported(counted, held, most):
    if held < most and not is_full(counted, held, most):
        assert counted * MOST_PERCENT <= held * 100


@given(counted=tokens, held=limits, most=limits)
def test_more_is_asked_for_before_a_slice_is_full(counted, held, most):
    if is_full(counted, held, most):
        assert wants_more(counted, held, most)


@given(counted=tokens, most=limits)
def test_a_whole_hold_is_never_full(counted, most):
    assert not is_full(counted, most, most)
    assert not wants_more(counted, most, most)


@given(habit=st.builds(Habit, output=st.integers(LEAST_OUTPUT, 10**6), trusted=st.booleans()), most=limits)
def test_a_first_hold_never_passes_what_was_asked_for(habit, most):
    assert first_output(habit, most, whole=True) == most
    held = first_output(habit, most, whole=False)
    assert 1 <= held <= most
    assert held == most or (habit.trusted and held >= LEAST_OUTPUT)


@given(st.lists(samples, max_size=KEPT_SAMPLES))
def test_a_habit_of_any_samples_is_usable(some):
    habit = Samples(some).habit()
    assert habit.input_ratio >= 0
    assert habit.output_ratio >= 0
    assert habit.output >= LEAST_OUTPUT
    honest = len(some) >= TRUSTED_AFTER and all(one.percent <= MOST_PERCENT for one in some)
    assert habit.trusted == honest


@given(st.lists(st.tuples(samples, st.integers(1, 30)), max_size=12))
def test_what_is_learned_report_by_report_is_what_the_newest_say(some):
    """In any order of them, and with each old one gone for good."""
    learned, came = Samples(), []
    for sample, times in some:
        for _ in range(times):
            learned.add(sample)
            came.insert(0, sample)
    newest = came[:KEPT_SAMPLES]
    ratios = [one.tokens_input / one.bytes_input for one in newest if one.bytes_input]
    output_ratios = [min(1.0, one.tokens_output / one.bytes_output) for one in newest if one.bytes_output]
    inputs, outputs = (sorted(getattr(one, name) for one in newest) for name in ("tokens_input", "tokens_output"))
    assert learned.habit() == Samples(newest).habit()
    assert learned.habit() == Habit(
        input_ratio=median(ratios) if ratios else USUAL_INPUT_RATIO,
        output_ratio=median(output_ratios) if output_ratios else USUAL_OUTPUT_RATIO,
        output=max(LEAST_OUTPUT, with_spare(outputs[(len(outputs) - 1) * 4 // 5])) if outputs else LEAST_OUTPUT,
        trusted=len(newest) >= TRUSTED_AFTER and all(one.percent <= MOST_PERCENT for one in newest),
        least_input=inputs[len(inputs) // 10] if inputs else None,
    )


def test_a_model_is_trusted_after_twenty_reports_and_not_while_one_far_above_our_count_is_remembered():
    fine = Sample(10, 36, 20, 80, 100)
    assert not Samples([fine] * (TRUSTED_AFTER - 1)).habit().trusted
    assert Samples([fine] * TRUSTED_AFTER).habit().trusted
    liar = Sample(10, 36, 200, 80, percent_of(200, 20))
    assert not Samples([liar, *[fine] * 40]).habit().trusted
    assert not Samples([*[fine] * (KEPT_SAMPLES - 1), liar]).habit().trusted
    learned = Samples([liar])
    for _ in range(KEPT_SAMPLES):
        assert not learned.habit().trusted
        learned.add(fine)
    assert learned.habit().trusted


@given(reported=st.integers(0, 10**6), counted=tokens)
def test_a_percentage_is_rounded_against_trust(reported, counted):
    percent = percent_of(reported, counted)
    assert percent * max(counted, LEAST_COUNTED) >= (reported - SPARE_TOKENS) * 100


@given(reported=st.integers(0, 10**6), counted=tokens)
def test_a_fair_report_is_never_above_the_slices_of_its_count(reported, counted):
    if percent_of(reported, counted) <= MOST_PERCENT:
        held = LEAST_OUTPUT
        while is_full(counted, held, 10**9):
            held += next_output(held, 10**9)
        assert reported <= held


def test_a_short_call_of_a_tool_takes_no_trust_away():
    assert percent_of(20, 8) <= MOST_PERCENT  # {"city": "Paris"} and what is billed around it
    assert percent_of(LEAST_OUTPUT, 1) > MOST_PERCENT


def test_one_odd_report_does_not_move_what_is_charged_when_nobody_reports():
    fine = [Sample(10, 36, 20, 80, 100)] * 20
    odd = Sample(1_000_000, 36, 20, 80, 100)
    assert Samples([odd, *fine]).habit().input_ratio == Samples(fine).habit().input_ratio
    assert likely_tokens(36, Samples([odd, *fine]).habit().input_ratio) == 10


@given(budget=money, tokens_input=tokens, price=prices)
def test_what_is_affordable_can_be_paid_and_one_token_more_cannot(budget, tokens_input, price):
    output = affordable_tokens(budget, tokens_input, price)
    if output:
        assert estimate(tokens_input=tokens_input, max_tokens=output, price=price) <= budget
    if price.output and budget * PER >= tokens_input * price.input and output < UNLIMITED_TOKENS:
        assert estimate(tokens_input=tokens_input, max_tokens=output + 1, price=price) > budget


@given(one=tokens, more=tokens, price=prices)
def test_slices_add_up_to_the_whole_estimate(one, more, price):
    """A slice is the difference of two estimates, so that rounding never makes them more than the whole."""
    first = cost(Usage(10, one), price)
    second = cost(Usage(10, one + more), price) - first
    assert second >= 0
    assert first + second == cost(Usage(10, one + more), price)


@given(counted=tokens)
def test_the_spare_grows_with_the_count(counted):
    assert with_spare(counted) >= counted + 2
    assert with_spare(counted + 1) >= with_spare(counted)
