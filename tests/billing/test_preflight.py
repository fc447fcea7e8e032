"""decide() before marked views: asked each time anew, failing closed, and only for those who may ask."""

import pytest

from billing.client import default_client
from billing.errors import BudgetDenied
from billing.preflight import decide

pytestmark = pytest.mark.usefixtures("upstream")


@pytest.fixture
def decided(monkeypatch):
    """The requests that went to decide; the real authority still answers them."""
    seen = []
    client = default_client()
    ask = client.decide
    monkeypatch.setattr(client, "decide", lambda request: seen.append(request) or ask(request))
    return seen


def test_a_summary_is_asked_about_under_a_fresh_key_each_time(workspace, decided):
    api = workspace.api()
    for _ in range(2):
        assert api.summarize("text").status_code == 200
    assert len({request.idempotency_key for request in decided}) == 2
    assert {request.subject.tenant for request in decided} == {workspace.account.subject_tenant}


def test_a_chat_reserves_at_once_and_is_not_asked_about(workspace, decided):
    assert workspace.api().chat("hello").status_code == 200
    assert decided == []


def test_a_stranger_is_401_and_nothing_is_asked(workspace, decided):
    workspace.leave(0)
    client = workspace.client()
    assert client.post("/api/summarize/", '{"text": "x"}', content_type="application/json").status_code == 401
    assert decided == []


def test_a_database_that_is_lost_while_asking_is_503(workspace, monkeypatch):
    from django.db import OperationalError

    from billing import middleware

    def lose(*args, **kwargs):
        raise OperationalError

    monkeypatch.setattr(middleware, "decide", lose)
    response = workspace.api().summarize("text")
    assert (response.status_code, response.json()["error"]) == (503, "unavailable")


def test_a_refusal_is_not_remembered_after_a_top_up(workspace, decided):
    workspace.leave(0)
    assert workspace.api().summarize("text").status_code == 402
    workspace.leave(10_000_000)
    assert workspace.api().summarize("text").status_code == 200


def test_decide_says_what_reserve_would(workspace):
    ask = {"app": "test", "action_kind": "test", "action_name": "unit"}
    decide(workspace.tenant, **ask, estimate=100_000_000)
    with pytest.raises(BudgetDenied) as refused:
        decide(workspace.tenant, **ask, estimate=100_000_001)
    assert refused.value.reason == "does_not_fit"
    assert workspace.ledger()["reserved"] == 0
