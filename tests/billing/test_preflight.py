"""decide() before marked views: asked each time anew, failing closed, and only for those who may ask."""

import json

import pytest
from django.http import HttpResponse
from django.test import RequestFactory
from django.views.decorators.http import require_POST
from runcycles.exceptions import CyclesProtocolError

from billing import admin_client
from billing.client import default_client
from billing.errors import BudgetDenied
from billing.middleware import BudgetErrorMiddleware, PreflightMiddleware, preflighted
from billing.preflight import decide
from billing.subjects import scopes_of, subject_for
from tenants.users.models import ApiKey

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


@pytest.mark.on_standin
def test_decide_says_what_reserve_would(workspace):
    ask = {"user_id": None, "app": "test", "action_kind": "test", "action_name": "unit"}
    decide(workspace.tenant, **ask, estimate=100_000_000)
    with pytest.raises(BudgetDenied) as refused:
        decide(workspace.tenant, **ask, estimate=100_000_001)
    assert refused.value.reason == "does_not_fit"
    assert workspace.ledger()["reserved"] == 0


def test_a_call_is_asked_about_under_the_subject_that_pays_for_it(workspace, decided):
    key = workspace.key()
    with workspace.scope():
        key_id = ApiKey.objects.latest("pk").pk
    assert workspace.api(key).summarize("text").status_code == 200
    client = workspace.client(workspace.owner)
    assert client.post("/api/summarize/", {"text": "text"}, content_type="application/json").status_code == 200
    seat = {
        "tenant": workspace.account.subject_tenant,
        "workspace": f"user-{workspace.owner.pk}",
        "app": "summarize",
    }
    asked = [request.subject.model_dump(exclude_none=True) for request in decided]
    assert asked == [{**seat, "agent": f"key-{key_id}"}, seat]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_summary_is_refused_by_a_ledger_below_the_tenant_before_it_works(workspace, globex, upstream, level):
    key = workspace.key()
    with workspace.scope():
        key_id = ApiKey.objects.latest("pk").pk
    tenant, user = workspace.account.subject_tenant, workspace.owner
    scope = scopes_of(subject_for(tenant=tenant, user_id=user.pk, app="summarize", key_id=key_id))[level]
    admin_client.ensure_budget(tenant, scope, allocated=5, overdraft_limit=0)
    refused = workspace.api(key).summarize("text")
    assert (refused.status_code, refused.json()["reason"]) == (402, "does_not_fit")
    assert (refused.json()["budget"]["scope"], refused.json()["budget"]["remaining"]) == (scope, 5)
    assert upstream.calls == []
    assert globex.api().summarize("text").status_code == 200


def test_a_marked_page_is_asked_about_through_what_wraps_it(workspace):
    """As a builder would: a plain view below a decorator of Django's."""

    @require_POST
    @preflighted(app="report", action_kind="test", action_name="report", needs=lambda request: 11)
    def report(request):
        return HttpResponse("worked")

    workspace_key = workspace.key()
    request = RequestFactory().post("/report/", headers={"authorization": f"Bearer {workspace_key}"})
    request.tenant, request.asker = workspace.tenant, None
    middleware = PreflightMiddleware(lambda request: None)
    with workspace.scope():
        assert middleware.process_view(request, report, (), {}) is None
        workspace.leave(10)
        assert middleware.process_view(request, report, (), {}).status_code == 402


def test_a_refusal_that_a_plain_cycles_function_raised_has_the_tenants_figures(workspace):
    request = RequestFactory().post("/api/builders-own/")
    request.tenant = workspace.tenant
    refused = CyclesProtocolError("no", status=409, error_code="BUDGET_EXCEEDED")
    answer = BudgetErrorMiddleware(lambda request: None).process_exception(request, refused)
    assert answer.status_code == 402
    budget = json.loads(answer.content)["budget"]
    assert (budget["scope"], budget["allocated"]) == (workspace.account.scope, 100_000_000)
    assert budget["needed"] is None
