"""What a workspace or a key may not call is refused at every door, before any money is held."""

from __future__ import annotations

import pytest

from billing.guard import guarded
from chat.calls import complete
from tenants.http import Forbidden
from tenants.models import Tenant
from tenants.users.models import ApiKey

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def _models(upstream, settings):
    price = settings.LLM_PRICES["test-model"]
    settings.LLM_PRICES = {"test-model": price, "big": price, "small": price}
    settings.MODELS = {"smart": {"fallback": ["big", "small"]}}


def allow(workspace, *models):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(allowed_models=list(models))


def refused(response):
    body = response.json()
    return response.status_code, body["error"], body["model"], body["models"]


def test_a_workspace_is_refused_what_it_may_not_call_and_told_what_it_may(workspace, globex, upstream):
    allow(workspace, "small", "gone")
    api = workspace.api()
    for model in ("big", "smart", "test-model", "no-such-model"):
        assert refused(api.chat("hello", model=model)) == (403, "forbidden", model, ["small"])
    # The default, too, which no request names.
    assert refused(api.chat("hello")) == (403, "forbidden", "test-model", ["small"])
    assert refused(api.summarize("long")) == (403, "forbidden", "test-model", ["small"])
    said = workspace.api(alone=True).post("/v1/chat/completions", {"model": "big", "messages": ASK})
    assert (said.status_code, said.json()["error"]["models"]) == (403, ["small"])
    page = workspace.client(workspace.owner).post("/", {"prompt": "hello"})
    assert page.status_code == 403
    assert upstream.calls == []
    assert workspace.ledger()["reserved"] == workspace.ledger()["spent"] == 0
    assert api.chat("hello", model="small").status_code == 200
    # What is allowed is each workspace's own.
    assert globex.api().chat("hello", model="big").status_code == 200


def test_a_group_is_allowed_by_its_own_name(workspace, upstream):
    allow(workspace, "smart")
    assert workspace.api().chat("hello", model="smart").json()["model"] == "big"
    assert workspace.api().chat("hello", model="big").status_code == 403


def test_a_key_may_call_no_more_than_both_allow(workspace):
    allow(workspace, "big", "small")
    api = workspace.api(workspace.key(allowed_models=["test-model", "small"]))
    assert refused(api.chat("hello", model="big")) == (403, "forbidden", "big", ["small"])
    assert refused(api.chat("hello", model="test-model")) == (403, "forbidden", "test-model", ["small"])
    assert api.chat("hello", model="small").status_code == 200
    # Another key of the same member is not bound by it.
    assert workspace.api().chat("hello", model="big").status_code == 200


def test_code_that_hands_on_a_key_is_held_to_it(workspace, upstream):
    with workspace.scope():
        workspace.key(allowed_models=["small"])
        key = ApiKey.objects.latest("pk")

        @guarded(estimate=60 * 10**6, action_kind="llm", action_name="ask", app="code", key_id=lambda model: key.pk)
        def ask(model):
            return complete(ASK, model=model, app="code")

        for call in (ask, lambda model: complete(ASK, model=model, app="code", key_id=key.pk)):
            with pytest.raises(Forbidden, match="big"):
                call("big")
            assert call("small").model == "small"
        assert complete(ASK, model="big", app="code").model == "big"
    assert len(upstream.calls) == 3
    assert [line.cost for line in workspace.settled(lines=4)].count(0) == 1


def test_a_summary_asked_for_with_a_key_is_held_to_it(workspace, upstream):
    api = workspace.api(workspace.key(allowed_models=["small"]))
    assert refused(api.summarize("long")) == (403, "forbidden", "test-model", ["small"])
    assert upstream.calls == []
    assert workspace.ledger()["spent"] == 0
