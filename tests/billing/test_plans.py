"""Plans: what is wrong with one is said where it is written, and an account without one buys nothing."""

import pytest

from billing.models import Account
from billing.plans import HOUSE, PLANS, Plan, by_name, default_of, plan_of
from chat.calls import complete
from tenants.http import Forbidden

GOOD = {"name": "pro", "allowance": 1, "overdraft": 0, "max_tokens": 1_024}


@pytest.mark.parametrize(
    "odd",
    [
        {"allowance": -1},
        {"allowance": 0.5},
        {"allowance": True},
        {"overdraft": None},
        {"max_tokens": "1024"},
        {"max_tokens": -1},
        {"name": ""},
        {"name": "a plan with a name that is too long"},
        {"name": "pro\x00"},
        {"name": None},
    ],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused_where_it_is_written(odd):
    assert Plan(**GOOD).name == "pro"
    with pytest.raises(ValueError, match=r"Plan .*(whole number|1 to 20 letters)"):
        Plan(**{**GOOD, **odd})


def test_a_plan_that_would_be_taken_for_another_is_refused_where_it_is_written():
    """Accounts of a plan `house` had no cap and no allowance, whatever it said; of two of a name one counted."""
    for plans in ([Plan(**{**GOOD, "name": "house"})], [Plan(**GOOD), Plan(**{**GOOD, "allowance": 2})]):
        with pytest.raises(ValueError, match=r"'(house|pro)' .* rename it"):
            by_name(plans)
    assert by_name(list(PLANS.values())) == PLANS


def test_who_names_no_plan_gets_none_that_is_sold():
    """Such workspaces were made without end: TRIAL_POOL_USD counts those of the plans by sign-up alone."""
    plans = by_name([Plan(**GOOD), Plan(**{**GOOD, "name": "free", "by_sign_up": True})])
    assert default_of(plans, "free") == "free"
    for name in ("pro", "trial"):
        with pytest.raises(ValueError, match=f"DEFAULT_PLAN is '{name}': write one of PLANS that says by_sign_up"):
            default_of(plans, name)


def test_an_account_whose_plan_is_gone_buys_nothing_and_the_error_says_what_to_do(workspace, upstream, monkeypatch):
    assert plan_of("house") is HOUSE
    monkeypatch.delitem(PLANS, "trial")
    with workspace.scope(), pytest.raises(LookupError, match=r"'trial', and PLANS in billing/plans\.py lacks it"):
        complete([{"role": "user", "content": "Hello."}], app="poems")
    assert upstream.calls == []
    assert workspace.settled() == []


def test_a_plan_that_allows_no_tokens_allows_no_answer_at_any_door(workspace, upstream, monkeypatch):
    """/v1 asked the model all the same, with nothing held for its words."""
    monkeypatch.setitem(PLANS, "paused", Plan(**{**GOOD, "name": "paused", "max_tokens": 0}))
    Account.objects.filter(pk=workspace.account.pk).update(plan="paused")
    api, ask = workspace.api(alone=True), [{"role": "user", "content": "Hello."}]
    doors = [
        api.chat("Hello."),
        api.chat("Hello.", stream=True),
        api.summarize("a long text"),
        *(
            api.post("/v1/chat/completions", {"model": "test-model", "messages": ask, "stream": stream, "n": n})
            for stream in (False, True)
            for n in (1, 2)
        ),
    ]
    assert [response.status_code for response in doors] == [403] * len(doors)
    with workspace.scope(), pytest.raises(Forbidden):
        complete(ask, app="poems")
    assert upstream.calls == []
    assert workspace.settled() == []
