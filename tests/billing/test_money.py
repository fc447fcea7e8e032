"""Money: exact for machines, short for the eye."""

import pytest

from billing.money import microcents, usd, usd_for_the_eye
from billing.templatetags.money import usd_filter


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0.00"), (1, "0.00000001"), (100_000_000, "1.00"), (150_000_000, "1.50"), (123_456_789, "1.23456789"),
        (-1, "-0.00000001"), (-150_000_000, "-1.50"), (9_223_372_036_854_775_807, "92233720368.54775807"),
    ],
)  # fmt: skip
def test_dollars_are_exact_with_2_to_8_places(amount, text):
    assert usd(amount) == text
    assert microcents(text) == amount


@pytest.mark.parametrize("text", ["0.000000001", "NaN", "Infinity", "1.123456789"])
def test_what_is_no_whole_number_of_microcents_is_refused(text):
    with pytest.raises(ValueError):
        microcents(text)


def test_for_the_eye_small_amounts_are_not_rounded_away():
    assert usd_for_the_eye(123_456_789) == "1.23"
    assert usd_for_the_eye(98_765_432_100_000_000) == "987,654,321.00"
    assert usd_for_the_eye(1_234_567) == "0.0123"
    assert usd_for_the_eye(12_345) == "0.000123"
    assert usd_for_the_eye(0) == "0.00"
    assert usd_for_the_eye(1_234_501, at_most=True) == usd_for_the_eye(1_240_000, at_most=True) == "0.0124"
    assert usd_for_the_eye(100_000_001, at_most=True) == "1.01"


def test_unknown_is_a_dash_and_not_zero():
    assert usd_filter(None) == "—"
    assert usd_filter(0) == "$0.00"
    assert usd_filter(-150) == "−$0.0000015"
