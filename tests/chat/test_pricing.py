"""What a call costs, and which models have a price."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.prices import UNLIMITED_TOKENS, Price, Usage, affordable_tokens, cost, estimate
from chat.errors import ModelNotPriced
from chat.local_model import NAME
from chat.pricing import callable_models, price_for

MINI = Price(input=15_000_000, output=60_000_000)  # $0.15 and $0.60 a million
PRICES = {"acme-mini": {"input": 15_000_000, "output": 60_000_000}}

tokens = st.integers(0, 10**7)
sides = st.integers(0, 10**12)
prices = st.builds(Price, input=sides, output=sides)


def test_a_call_costs_the_sum_of_both_sides_rounded_up_once():
    assert cost(Usage(1_000, 500), MINI) == 45_000
    # 0.4 and 0.4 of a microcent are one microcent, not two.
    assert cost(Usage(4, 4), Price(input=100_000, output=100_000)) == 1
    assert cost(Usage(0, 0), MINI) == 0


def test_figures_beyond_a_floats_precision_stay_exact():
    assert cost(Usage(9_007_199_254_740_993, 0), Price(input=1_000_000, output=0)) == 9_007_199_254_740_993


@given(tokens, tokens, tokens, prices)
def test_no_answer_within_max_tokens_costs_more_than_the_estimate(used, output, max_tokens, price):
    most = estimate(tokens_input=used, max_tokens=max_tokens, price=price)
    assert cost(Usage(used, min(output, max_tokens)), price) <= most


@given(st.integers(-(10**6), 10**13), tokens, prices)
def test_affordable_tokens_fit_and_one_more_would_not(budget, tokens_input, price):
    affordable = affordable_tokens(budget, tokens_input, price)
    if affordable:
        assert cost(Usage(tokens_input, affordable), price) <= budget
    if price.output and affordable < UNLIMITED_TOKENS:
        assert cost(Usage(tokens_input, affordable + 1), price) > budget


def test_a_free_answer_is_unlimited_unless_its_input_cannot_be_paid():
    free_output = Price(input=1_000_000, output=0)
    assert affordable_tokens(100, 100, free_output) == UNLIMITED_TOKENS
    assert affordable_tokens(99, 100, free_output) == 0


def test_the_embedded_model_has_a_price_of_its_own(settings):
    settings.LLM_MODEL, settings.LLM_PRICES = NAME, {}
    assert cost(Usage(1, 1), price_for(NAME)) == 1_000 + 4_000


def test_an_operators_price_goes_before_the_embedded_models_own(settings):
    settings.LLM_MODEL, settings.LLM_PRICES = NAME, {NAME: {"input": 7, "output": 8}}
    assert price_for(NAME) == Price(input=7, output=8)


def test_the_default_and_the_priced_models_can_be_called_and_the_default_comes_first(settings):
    settings.LLM_MODEL, settings.LLM_PRICES = NAME, PRICES
    assert callable_models() == [NAME, "acme-mini"]
    assert price_for("acme-mini") == MINI
    settings.LLM_MODEL = "acme-mini"
    assert callable_models() == ["acme-mini"]


def test_a_model_that_is_not_callable_is_refused_with_those_that_are(settings):
    settings.LLM_MODEL, settings.LLM_PRICES = NAME, PRICES
    with pytest.raises(ModelNotPriced) as refused:
        price_for("globex-large")
    body = refused.value.body()
    assert (refused.value.status, body["error"], body["retry_after_ms"]) == (422, "model_not_priced", None)
    assert all(word in body["message"] for word in ("globex-large", NAME, "acme-mini", "LLM_PRICES"))


def test_the_embedded_models_price_is_not_for_sale_where_another_model_is_the_default(settings):
    settings.LLM_MODEL, settings.LLM_PRICES = "acme-mini", PRICES
    with pytest.raises(ModelNotPriced):
        price_for(NAME)


def test_a_default_without_a_price_is_refused_and_not_recommended(settings):
    settings.LLM_MODEL, settings.LLM_PRICES = "unpriced", {}
    with pytest.raises(ModelNotPriced) as refused:
        price_for("unpriced")
    assert "Use" not in refused.value.message
