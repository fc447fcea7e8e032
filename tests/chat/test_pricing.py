"""What a call costs, and which models have a price."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.guard import guarded
from billing.prices import PER, UNLIMITED_TOKENS, Price, Usage, affordable_tokens, cost, estimate
from chat.calls import complete
from chat.checks import default_has_a_price
from chat.errors import ModelNotPriced
from chat.local_model import NAME
from chat.passed import Kind
from chat.pricing import callable_models, context_for, kinds_for, members_of, price_for

MINI = Price(input=15_000_000, output=60_000_000)  # $0.15 and $0.60 a million
PRICES = {"acme-mini": {"input": 15_000_000, "output": 60_000_000}}

tokens = st.integers(0, 10**7)
sides = st.integers(0, 10**12)
parts = st.none() | sides
prices = st.builds(Price, input=sides, output=sides, cached_input=parts, reasoning=parts)
# Whatever a provider may write of its parts.
odd_parts = st.integers(-(10**8), 10**8)
usages = st.builds(Usage, tokens_input=tokens, tokens_output=tokens, cached=odd_parts, reasoning=odd_parts)
PARTED = Price(input=100 * PER, output=200 * PER, cached_input=10 * PER, reasoning=300 * PER)


def test_a_default_model_without_a_price_is_warned_of_before_it_serves(settings):
    settings.LLM_MODEL, settings.LLM_PRICES, settings.MODELS = (
        "acme-mini",
        PRICES,
        {"smart": {"fallback": ["acme-mini"]}},
    )
    assert default_has_a_price(None) == []
    settings.LLM_MODEL = "smart"
    assert default_has_a_price(None) == []
    settings.LLM_MODEL = "acme-minni"
    (warning,) = default_has_a_price(None)
    assert (warning.id, "acme-minni" in warning.msg) == ("chat.W001", True)


def test_a_call_costs_the_sum_of_both_sides_rounded_up_once():
    assert cost(Usage(1_000, 500), MINI) == 45_000
    # 0.4 and 0.4 of a microcent are one microcent, not two.
    assert cost(Usage(4, 4), Price(input=100_000, output=100_000)) == 1
    assert cost(Usage(0, 0), MINI) == 0


def test_figures_beyond_a_floats_precision_stay_exact():
    assert cost(Usage(9_007_199_254_740_993, 0), Price(input=1_000_000, output=0)) == 9_007_199_254_740_993


def test_parts_have_prices_of_their_own_and_without_one_their_wholes():
    assert cost(Usage(10, 20), PARTED) == 10 * 100 + 20 * 200
    assert cost(Usage(10, 20, cached=8, reasoning=15), PARTED) == 2 * 100 + 8 * 10 + 5 * 200 + 15 * 300
    assert cost(Usage(10, 20, cached=8, reasoning=15), Price(100 * PER, 200 * PER)) == 10 * 100 + 20 * 200
    # A price of nothing is a price.
    assert cost(Usage(10, 0, cached=10), Price(100 * PER, 0, cached_input=0)) == 0


@given(usages, prices)
def test_a_part_is_never_more_than_its_whole_nor_less_than_nothing(usage, price):
    cheapest = Price(min(price.input, price.of_cached), min(price.output, price.of_reasoning))
    plain = Usage(usage.tokens_input, usage.tokens_output)
    assert cost(plain, cheapest) <= cost(usage, price) <= cost(plain, price.dearest)
    # What is written of the parts beyond what there is changes nothing.
    written = Usage(
        usage.tokens_input,
        usage.tokens_output,
        cached=min(max(usage.cached, 0), usage.tokens_input),
        reasoning=min(max(usage.reasoning, 0), usage.tokens_output),
    )
    assert cost(usage, price) == cost(written, price)


@given(usages, tokens, tokens, prices)
def test_more_tokens_never_cost_less(usage, more_input, more_output, price):
    more = replace(usage, tokens_input=usage.tokens_input + more_input, tokens_output=usage.tokens_output + more_output)
    assert cost(usage, price) <= cost(more, price)


@given(usages, tokens, prices)
def test_no_answer_within_max_tokens_costs_more_than_the_estimate(usage, max_tokens, price):
    within = replace(usage, tokens_output=min(usage.tokens_output, max_tokens))
    assert cost(within, price) <= estimate(tokens_input=usage.tokens_input, max_tokens=max_tokens, price=price)


@given(st.integers(-(10**6), 10**13), tokens, prices)
def test_affordable_tokens_fit_and_one_more_might_not(budget, tokens_input, price):
    affordable = affordable_tokens(budget, tokens_input, price)
    if affordable:
        assert estimate(tokens_input=tokens_input, max_tokens=affordable, price=price) <= budget
    if price.dearest.output and affordable < UNLIMITED_TOKENS:
        assert estimate(tokens_input=tokens_input, max_tokens=affordable + 1, price=price) > budget


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


def test_a_group_costs_what_its_first_member_does_and_takes_what_some_member_takes(settings):
    settings.LLM_MODEL, settings.LLM_PRICES = "acme-mini", PRICES
    small = {"price": {"input": 1, "output": 2}, "context": 4_096, "kinds": ["embeddings"], "dialect": {}}
    settings.MODELS = {"small": small, "smart": {"fallback": ["small", "acme-mini"]}, "one": {"fallback": ["small"]}}
    assert callable_models() == ["acme-mini", "one", "small", "smart"]
    assert (members_of("smart"), members_of("small")) == (["small", "acme-mini"], ["small"])
    assert price_for("smart") == Price(input=1, output=2)
    assert (kinds_for("one"), kinds_for("smart")) == ({Kind.EMBEDDINGS}, set(Kind))
    assert (context_for("one"), context_for("smart"), context_for("acme-mini")) == (4_096, None, None)


def test_a_default_without_a_price_is_refused_and_not_recommended(settings):
    settings.LLM_MODEL, settings.LLM_PRICES = "unpriced", {}
    with pytest.raises(ModelNotPriced) as refused:
        price_for("unpriced")
    assert "Use" not in refused.value.message


# --- as it is charged ---

CACHED, THOUGHT = (
    {"prompt_tokens_details": {"cached_tokens": 8}},
    {"completion_tokens_details": {"reasoning_tokens": 3}},
)
COUNTS = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}


@pytest.mark.parametrize(
    ("said", "cost", "parts"),
    [
        ({**CACHED, **THOUGHT}, 2 * 100 + 8 * 10 + 1 * 200 + 3 * 300, (8, 3)),
        ({}, 10 * 100 + 4 * 200, (0, 0)),  # the details are not given: the full rate
        ({"prompt_tokens_details": {"cached_tokens": 10**6}}, 10 * 10 + 4 * 200, (10, 0)),
        ({"prompt_tokens_details": {"cached_tokens": -8}}, 10 * 100 + 4 * 200, (0, 0)),
    ],
)
def test_cached_input_and_reasoning_are_charged_at_their_own_prices(
    workspace, model, upstream, settings, said, cost, parts
):
    settings.LLM_PRICES = {model: asdict(PARTED)}
    upstream.usage = {**COUNTS, **said}
    answer = workspace.api().chat("hello", max_tokens=20).json()
    (line,) = workspace.settled(lines=1)
    assert answer["cost"]["microcents"] == line.cost == workspace.ledger()["spent"] == cost
    assert (line.tokens_cached, line.tokens_reasoning) == parts
    # Held for thoughts alone, which are the dearest.
    assert line.estimate >= 20 * 300 + 10 * 100


def test_the_budget_page_says_which_tokens_were_cached(workspace, model, upstream):
    upstream.usage = {**COUNTS, **CACHED}
    workspace.api().chat("hello")
    workspace.settled(lines=1)
    page = workspace.client(workspace.owner).get("/budget/").content.decode()
    assert "8 cached" in page
    assert "reasoning" not in page


def test_answers_under_one_hold_are_each_charged_by_their_own_parts(workspace, model, upstream, settings):
    settings.LLM_PRICES = {model: asdict(PARTED)}
    letter = [{"role": "user", "content": "A letter."}]

    @guarded(100_000)
    def write():
        for said in ({**COUNTS, **CACHED}, {**COUNTS, **THOUGHT}):
            upstream.usage = said
            complete(letter, max_tokens=20)

    with workspace.scope():
        write()
    (line,) = workspace.lines()
    assert line.cost == (2 * 100 + 8 * 10 + 4 * 200) + (10 * 100 + 1 * 200 + 3 * 300)
    assert (line.tokens_input, line.tokens_cached, line.tokens_output, line.tokens_reasoning) == (20, 8, 8, 3)
