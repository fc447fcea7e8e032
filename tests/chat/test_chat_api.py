"""POST /api/chat/ and /api/summarize/: the contract's lines, each way they can end, and what each has cost."""

import dataclasses
import json
import threading

import pytest
from django.db import connection

from billing.guard import reserve
from billing.plans import PLANS
from tenants.users.models import ApiKey
from tests.support.cast import events_of

pytestmark = pytest.mark.usefixtures("upstream")

# What the fake upstream reports, at 1,000 and 4,000 microcents a token: 10 in, 4 out.
COST = 10 * 1_000 + 4 * 4_000
FACTS = {
    "conversation_id", "question_id", "answer_id", "model", "finish_reason", "usage", "cost", "outcome", "fitted",
    "budget",
}  # fmt: skip
HOLD = {"app": "test", "action_kind": "test", "action_name": "hold"}


@pytest.fixture
def short_wait(settings):
    """Others' money is waited for, but not for long."""
    settings.BUDGET_WAIT_SECONDS = 0.3


def needed_by(api):
    """What "hello" asks to be held at first, as a refusal says. The budget must be empty."""
    return api.chat("hello").json()["budget"]["needed"]


@pytest.mark.on_standin
def test_an_answer_comes_with_what_it_cost_and_what_is_left(workspace):
    response = workspace.api().chat("hello")
    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {"response", *FACTS}
    assert body["response"] == "Hello, world."
    assert body["usage"] == {"input_tokens": 10, "output_tokens": 4}
    assert body["cost"] == {"microcents": COST, "usd": "0.00026"}
    assert body["budget"] == {
        "scope": workspace.account.scope,
        "allocated": 100_000_000,
        "spent": COST,
        "reserved": 0,
        "remaining": 100_000_000 - COST,
        "unit": "USD_MICROCENTS",
    }
    assert (body["model"], body["finish_reason"]) == ("test-model", "stop")
    assert (body["outcome"], body["fitted"]) == ("exact", False)
    assert not response.has_header("X-Budget-Fitted")


@pytest.mark.on_standin
def test_a_stream_has_the_same_facts_after_its_words(workspace):
    response = workspace.api().chat("hello", stream=True)
    assert response["Content-Type"] == "text/event-stream"
    assert response["Cache-Control"] == "no-cache"
    assert response["X-Accel-Buffering"] == "no"
    assert not response.has_header("Content-Length")
    (first, held), *tokens, (last, facts) = events_of(response)
    assert first == "held"
    assert held.keys() == {"call", "reserved", "remaining", "max_tokens", "fitted", "meter", "left_out"}
    assert (held["max_tokens"], held["fitted"]) == (512, False)
    # Whole at first: the model has not shown yet how well its reports agree with what we count.
    assert held["reserved"] >= 512 * 4_000
    assert held["reserved"] + held["remaining"] == 100_000_000
    assert {name for name, _ in tokens} == {"token"}
    assert "".join(data["text"] for _, data in tokens) == "Hello, world."
    assert last == "done"
    assert facts.keys() == FACTS
    assert facts["cost"]["microcents"] == workspace.ledger()["spent"] == COST
    assert facts["budget"]["spent"] == COST
    response.close()
    assert workspace.ledger()["spent"] == COST
    assert workspace.holds() == 0


def test_a_call_is_one_line_in_its_own_tenants_schema(workspace, globex):
    before = len(globex.lines())
    workspace.api().chat("hello")
    (line,) = workspace.lines()
    assert (line.cost, line.tokens_input, line.tokens_output, line.outcome) == (COST, 10, 4, "exact")
    assert (line.app, line.model, line.user_id) == ("chat", "test-model", workspace.owner.pk)
    assert len(globex.lines()) == before


def test_max_tokens_is_always_sent_and_never_above_the_plans_cap(workspace, upstream):
    api = workspace.api()
    for asked, sent in [(None, 512), (5, 5), (100_000, 1_024)]:
        api.chat("hello", **({} if asked is None else {"max_tokens": asked}))
        assert upstream.calls[-1]["max_tokens"] == sent


def test_a_conversation_goes_on_with_what_was_said(workspace, upstream):
    api = workspace.api()
    first = api.chat("my name is Alice").json()["conversation_id"]
    again = api.chat("what is my name?", conversation_id=first).json()["conversation_id"]
    assert again == first
    assert [m["content"] for m in upstream.calls[-1]["messages"]] == [
        "my name is Alice",
        "Hello, world.",
        "what is my name?",
    ]


def test_another_members_and_an_unknown_conversation_are_404(workspace, upstream):
    mine = workspace.api().chat("secret").json()["conversation_id"]
    other = workspace.member("other@example.com")
    for conversation_id in (mine, 10**12):
        response = workspace.api(workspace.key(other)).chat("hello", conversation_id=conversation_id)
        assert (response.status_code, response.json()["error"]) == (404, "not_found")
    assert len(upstream.calls) == 1


@pytest.mark.on_standin
def test_a_summary_comes_with_what_it_cost(workspace):
    response = workspace.api().summarize("a long text")
    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {"summary", "model", "usage", "cost", "outcome", "budget"}
    assert body["outcome"] == "exact"
    assert body["summary"] == "Hello, world."
    assert body["cost"] == {"microcents": COST, "usd": "0.00026"}
    assert body["budget"]["spent"] == COST
    (line,) = workspace.lines()
    assert (line.cost, line.app, line.outcome, line.user_id) == (COST, "summarize", "exact", workspace.owner.pk)


def test_a_key_works_on_the_bare_host_too(workspace):
    key = workspace.key()
    assert workspace.api(key, bare=True).chat("hello").status_code == 200
    assert workspace.api(key, bare=True).summarize("hello").status_code == 200


def test_a_session_needs_its_csrf_token_and_a_key_does_not(workspace, upstream):
    client = workspace.client(workspace.owner)
    plane = workspace.plane(client)
    refused = plane.post("/api/chat/", {"prompt": "hello"})
    assert (refused.status_code, refused.json()["error"]) == (403, "csrf_failed")
    client.handler.enforce_csrf_checks = True
    assert client.post("/api/summarize/", '{"text": "x"}', content_type="application/json").status_code == 403
    assert upstream.calls == []
    token = plane.cookies["csrftoken"].value
    assert plane.post("/api/chat/", {"prompt": "hello"}, headers={"x-csrftoken": token}).status_code == 200


def test_a_chat_is_asked_at_the_plane_and_web_has_none(workspace, upstream):
    client = workspace.client(workspace.owner)
    response = client.post("/api/chat/", '{"prompt": "hello"}', content_type="application/json")
    assert (response.status_code, response.json()["error"]) == (404, "not_found")
    assert upstream.calls == []


def test_a_bad_key_is_401_even_beside_a_good_session(workspace):
    client = workspace.client(workspace.owner)
    assert client.get("/api/budget/", headers={"authorization": "Bearer tk_nonsense"}).status_code == 401
    assert client.get("/api/budget/").status_code == 200


# --- bad input: a typed error, nothing spent, nothing kept ----------------------------------------------------------

BAD_CHAT = [
    "", "{", "[]", "null", '"text"', "1", "{}", '{"prompt": 1}', '{"prompt": null}', '{"prompt": ""}',
    '{"prompt": "   "}', '{"prompt": ["a"]}', '{"prompt": {}}', '{"prompt": "a\\u0000b"}', '{"prompt": "\\ud800"}',
    '{"prompt": "a", "max_tokens": 0}', '{"prompt": "a", "max_tokens": -1}', '{"prompt": "a", "max_tokens": 1.5}',
    '{"prompt": "a", "max_tokens": "5"}', '{"prompt": "a", "max_tokens": true}',
    '{"prompt": "a", "max_tokens": 99999999999999999999}', '{"prompt": "a", "max_tokens": NaN}',
    '{"prompt": "a", "max_tokens": 1e999}', '{"prompt": "a", "conversation_id": -1}',
    '{"prompt": "a", "conversation_id": "1"}', '{"prompt": "a", "conversation_id": 9223372036854775808}',
    '{"prompt": "a", "stream": 1}', '{"prompt": "a", "stream": "true"}', '{"prompt": "a", "model": 1}',
    '{"prompt": "a", "model": ""}', '{"prompt": "a", "model": "a\\u0000"}', '{"prompt": "a", "unknown": 1}',
    '{"prompt": "' + "x" * 20_001 + '"}', '{"a\\ud800": 1, "prompt": "a"}', "[" * 100_000, b"\xff\xfe{}",
    '{"prompt": "a", "max_tokens": ' + "9" * 5_000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_CHAT, ids=range(len(BAD_CHAT)))
def test_a_bad_chat_body_is_400_and_names_its_fields(acme, upstream, body):
    response = acme.api().post("/api/chat/", body)
    assert response.status_code == 400, response.content
    assert response.json()["error"] == "invalid"
    assert response.json()["fields"]
    assert upstream.calls == []
    assert acme.holds() == 0


@pytest.mark.parametrize("body", ["[]", "{}", '{"text": " "}', '{"text": "a", "max_tokens": 0}', '{"prompt": "a"}'])
def test_a_bad_summarize_body_is_400(acme, upstream, body):
    response = acme.api().post("/api/summarize/", body)
    assert (response.status_code, response.json()["error"]) == (400, "invalid")
    assert upstream.calls == []


def test_a_body_over_1_mib_is_413(acme, upstream):
    response = acme.api().post("/api/chat/", json.dumps({"prompt": "x" * (1024 * 1024)}))
    assert (response.status_code, response.json()["error"]) == (413, "too_large")
    assert upstream.calls == []


def test_a_body_that_is_not_called_json_is_415(acme, upstream):
    plane = acme.api().plane
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = plane.post("/api/chat/", '{"prompt": "a"}', content_type=content_type)
        assert (response.status_code, response.json()["error"]) == (415, "not_json")
    assert upstream.calls == []


def test_another_method_is_405_in_the_same_shape(acme):
    response = acme.api().plane.get("/api/chat/")
    assert (response.status_code, response.json()["error"]) == (405, "method_not_allowed")
    assert response["Allow"] == "POST"


def test_errors_have_one_shape(acme):
    for response in (
        acme.api().post("/api/chat/", "{}"),
        acme.api().get("/api/nothing/"),
        acme.api().plane.get("/api/chat/"),
        acme.api().plane.get("/api/nothing/"),
    ):
        assert {"error", "message", "retry_after_ms"} <= response.json().keys()


def test_a_model_without_a_price_is_422_and_never_called(workspace, upstream):
    response = workspace.api().chat("hello", model="unheard-of")
    assert (response.status_code, response.json()["error"]) == (422, "model_not_priced")
    assert upstream.calls == []
    assert workspace.holds() == 0
    assert workspace.ledger()["reserved"] == 0


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.on_standin
def test_an_empty_budget_is_402_with_figures_and_the_model_is_not_called(workspace, upstream):
    workspace.leave(0)
    response = workspace.api().chat("hello")
    assert response.status_code == 402
    body = response.json()
    assert (body["error"], body["reason"]) == ("budget_exceeded", "exhausted")
    assert body["budget"].keys() == {
        "scope", "allocated", "spent", "reserved", "remaining", "needed", "affordable_max_tokens", "unit",
    }  # fmt: skip
    assert body["budget"]["scope"] == workspace.account.scope
    assert body["budget"]["remaining"] == body["budget"]["affordable_max_tokens"] == 0
    assert body["budget"]["needed"] > 0
    assert upstream.calls == []
    assert workspace.holds() == 0
    assert workspace.lines() == []
    with workspace.scope():
        from chat.models import Conversation

        assert not Conversation.objects.exists()


@pytest.mark.on_standin
def test_a_call_that_could_cost_more_than_is_left_is_fitted_and_says_so(workspace, upstream):
    upstream.tokens = ["word "] * 600
    api = workspace.api()
    workspace.leave(0)
    needed = needed_by(api)
    workspace.leave(needed - 500 * 4_000)
    response = api.chat("hello")
    body = response.json()
    assert (response.status_code, body["fitted"], response["X-Budget-Fitted"]) == (200, True, "12")
    assert upstream.calls[-1]["max_tokens"] == body["usage"]["output_tokens"] == 12
    # What ended it was the money.
    assert body["finish_reason"] == "budget"
    assert workspace.lines()[0].cost == body["cost"]["microcents"] == 10 * 1_000 + 12 * 4_000


def test_a_stream_that_was_fitted_says_so_before_its_first_word(workspace, upstream):
    api = workspace.api()
    workspace.leave(0)
    needed = needed_by(api)
    workspace.leave(needed - 500 * 4_000)
    response = api.chat("hello", stream=True)
    (first, held), *_, (last, facts) = events_of(response)
    assert response["X-Budget-Fitted"] == "12"
    assert (first, held["fitted"], held["max_tokens"]) == ("held", True, 12)
    assert (last, facts["fitted"]) == ("done", True)


def test_a_plan_that_does_not_fit_calls_refuses_what_could_cost_more_than_is_left(workspace, upstream, monkeypatch):
    monkeypatch.setitem(PLANS, "trial", dataclasses.replace(PLANS["trial"], fits=False))
    api = workspace.api()
    workspace.leave(0)
    needed = needed_by(api)
    workspace.leave(needed - 1)
    response = api.chat("hello")
    assert (response.status_code, response.json()["reason"]) == (402, "does_not_fit")
    assert response.json()["budget"]["affordable_max_tokens"] == 511
    assert upstream.calls == []


def test_a_budget_below_the_input_does_not_fit_however_short_the_answer(workspace, upstream):
    workspace.leave(1_000)
    response = workspace.api().chat("hello")
    assert (response.status_code, response.json()["reason"]) == (402, "does_not_fit")
    assert response.json()["budget"]["affordable_max_tokens"] == 0
    assert upstream.calls == []
    assert workspace.ledger()["reserved"] == 0


def test_a_budget_that_just_covers_the_call_is_enough(workspace, upstream):
    api = workspace.api()
    workspace.leave(0)
    needed = needed_by(api)
    workspace.leave(needed)
    response = api.chat("hello")
    assert (response.status_code, response.json()["fitted"]) == (200, False)


@pytest.mark.on_standin
def test_money_held_by_others_says_so_once_it_was_waited_for(workspace, upstream, short_wait):
    with reserve(workspace.tenant, **HOLD, estimate=99_999_000):
        response = workspace.api().chat("hello")
    assert (response.status_code, response.json()["reason"]) == (402, "held_by_others")
    assert upstream.calls == []
    assert workspace.ledger()["reserved"] == 0


def test_money_that_others_give_back_in_time_pays_for_the_call(workspace, upstream, settings):
    settings.BUDGET_WAIT_SECONDS = 30
    other = reserve(workspace.tenant, **HOLD, estimate=99_999_000)
    timer = threading.Timer(0.3, other.settle)
    timer.start()
    response = workspace.api().chat("hello")
    timer.join()
    assert (response.status_code, response.json()["fitted"]) == (200, False)
    assert workspace.ledger()["spent"] == COST


@pytest.mark.on_standin
def test_more_calls_under_way_than_a_workspace_may_have_is_429_with_the_number(workspace, upstream, settings):
    settings.TENANT_STREAMS_MAX = 1
    upstream.last_word_after = threading.Event()
    api = workspace.api()
    first = api.chat("hello", stream=True)
    response = api.chat("hello")
    upstream.last_word_after.set()
    assert (response.status_code, response.json()["error"]) == (429, "rate_limited")
    assert (response.json()["limit"], response.json()["in_use"]) == (1, 1)
    assert int(response["Retry-After"]) > 0
    assert events_of(first)[-1][0] == "done"
    assert api.chat("hello").status_code == 200


def test_a_stream_is_refused_before_its_first_byte(workspace, upstream):
    workspace.leave(0)
    response = workspace.api().chat("hello", stream=True)
    assert (response.status_code, response.json()["reason"]) == (402, "exhausted")
    assert response["Content-Type"] == "application/json"


@pytest.mark.on_standin
def test_an_empty_budget_refuses_a_summary_before_any_work(workspace, upstream):
    workspace.leave(0)
    response = workspace.api().summarize("hello")
    assert (response.status_code, response.json()["reason"]) == (402, "exhausted")
    assert response.json()["budget"]["remaining"] == 0
    assert response.json()["budget"]["needed"] > 2_000_000
    assert upstream.calls == []
    assert workspace.holds() == 0
    # What is wrong with the request itself is said first.
    assert workspace.api().post("/api/summarize/", "{").status_code == 400
    assert workspace.api().get("/api/summarize/").status_code == 405


@pytest.mark.on_standin
def test_a_top_up_lets_the_next_call_through(workspace):
    workspace.leave(0)
    assert workspace.api().summarize("hello").status_code == 402
    from django.core.management import call_command

    call_command("top_up", workspace.slug, "0.50", "--key", "invoice-1")
    assert workspace.api().summarize("hello").status_code == 200
    call_command("top_up", workspace.slug, "0.50", "--key", "invoice-1")
    assert workspace.ledger()["remaining"] == 50_000_000 - COST


@pytest.mark.on_standin
def test_a_frozen_account_is_403_and_its_budget_page_still_renders(workspace, upstream):
    from billing.models import Account

    Account.objects.filter(pk=workspace.account.pk).update(status=Account.Status.FROZEN)
    response = workspace.api().chat("hello")
    assert (response.status_code, response.json()["error"]) == (403, "account_on_hold")
    assert workspace.api().summarize("hello").status_code == 403
    assert upstream.calls == []
    assert workspace.client(workspace.owner).get("/budget/").status_code == 200


@pytest.mark.on_standin
def test_a_ledger_frozen_at_the_authority_is_403(workspace, upstream):
    from billing.admin_client import call

    call("POST", "/v1/admin/budgets/freeze", params={"scope": workspace.account.scope, "unit": "USD_MICROCENTS"})
    response = workspace.api().chat("hello")
    assert (response.status_code, response.json()["error"]) == (403, "account_on_hold")
    assert response.json()["scope"] == workspace.account.scope
    assert workspace.api().summarize("hello").json()["error"] == "account_on_hold"
    assert upstream.calls == []


@pytest.mark.on_standin
def test_a_tenant_suspended_at_the_authority_is_403(workspace, upstream):
    from billing.admin_client import call

    call("PATCH", f"/v1/admin/tenants/{workspace.account.subject_tenant}", body={"status": "SUSPENDED"})
    response = workspace.api().chat("hello")
    assert (response.status_code, response.json()["error"]) == (403, "account_on_hold")
    assert workspace.api().summarize("hello").json()["error"] == "account_on_hold"
    assert workspace.api().get("/api/budget/").json()["error"] == "account_on_hold"
    assert upstream.calls == []


@pytest.mark.on_standin
def test_a_key_revoked_at_the_authority_is_our_fault_and_503(workspace, upstream):
    from billing.admin_client import revoke_key

    revoke_key(workspace.account.authority_key_id)
    response = workspace.api().chat("hello")
    assert (response.status_code, response.json()["error"]) == (503, "authority_unavailable")
    assert int(response["Retry-After"]) > 0
    assert upstream.calls == []


# --- the model fails ------------------------------------------------------------------------------------------------


FAILED, BUSY, MISCONFIGURED = (502, "model_failed"), (503, "model_busy"), (502, "model_misconfigured")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "answer", "outcome"),
    [
        ({"status": 400}, FAILED, "none"), ({"status": 429}, BUSY, "none"), ({"status": 401}, MISCONFIGURED, "none"),
        ({"status": 500}, FAILED, "none"), ({"status": 503}, BUSY, "none"), ({"status": 529}, BUSY, "none"),
        ({"html": True}, FAILED, "none"),
        ({"drop": True}, FAILED, "unknown"), ({"cut_after": 0}, FAILED, "unknown"),
        ({"garbage": True}, FAILED, "unknown"),
    ],
)  # fmt: skip
def test_a_model_that_fails_before_its_first_word_is_a_status(workspace, upstream, fault, answer, outcome, stream):
    for name, value in fault.items():
        setattr(upstream, name, value)
    response = workspace.api().chat("hello", stream=stream)
    assert (response.status_code, response.json()["error"]) == answer
    assert upstream.base_url.encode() not in response.content
    assert (response.status_code == 503) == response.has_header("Retry-After")
    (line,) = workspace.lines()
    assert line.outcome == outcome
    # What was refused costs nothing. Where nobody can know, it is the input, and never the hold or its bound.
    assert line.cost == 0 if outcome == "none" else 2_000 <= line.cost <= 30_000
    assert workspace.ledger()["spent"] == line.cost
    assert workspace.ledger()["reserved"] == workspace.holds() == 0
    assert len(upstream.calls) == 1


def test_a_model_that_is_not_there_is_502_and_costs_nothing(workspace, settings):
    settings.LLM_BASE_URL = "http://127.0.0.1:9/v1"
    for response in (workspace.api().chat("hello"), workspace.api().summarize("hello")):
        assert (response.status_code, response.json()["error"]) == (502, "model_failed")
        assert response.json()["message"].endswith("Nothing was charged.")
    assert workspace.ledger()["spent"] == workspace.ledger()["reserved"] == workspace.holds() == 0
    assert [(line.app, line.cost, line.outcome) for line in workspace.lines()] == [
        ("chat", 0, "none"),
        ("summarize", 0, "none"),
    ]


@pytest.mark.parametrize(
    ("fault", "answer", "outcome"),
    [({"status": 500}, FAILED, "none"), ({"status": 503}, BUSY, "none"), ({"drop": True}, FAILED, "unknown")],
)
def test_a_summary_whose_model_fails_costs_what_is_known(workspace, upstream, fault, answer, outcome):
    for name, value in fault.items():
        setattr(upstream, name, value)
    response = workspace.api().summarize("hello")
    assert (response.status_code, response.json()["error"]) == answer
    (line,) = workspace.lines()
    assert (line.outcome, line.cost > 0) == (outcome, outcome == "unknown")
    assert workspace.ledger()["spent"] == line.cost < 50_000
    assert workspace.ledger()["reserved"] == workspace.holds() == 0


def test_a_model_that_breaks_off_ends_the_stream_with_an_error_and_is_charged(workspace, upstream):
    upstream.cut_after = 2
    events = events_of(response := workspace.api().chat("hello", stream=True))
    response.close()
    # Words that come together are told together.
    assert [name for name, _ in events if name != "token"] == ["held", "error"]
    assert "".join(data["text"] for name, data in events if name == "token") == "Hello,"
    assert events[-1][1]["error"] == "model_failed"
    (line,) = workspace.lines()
    assert (line.outcome, line.tokens_output) == ("estimated", 2)
    # The input by what texts usually have, the output by what came.
    assert 2 * 4_000 + 2_000 <= line.cost <= 2 * 4_000 + 30_000
    assert workspace.ledger()["spent"] == line.cost
    assert workspace.ledger()["reserved"] == 0


def test_usage_that_the_model_does_not_report_is_estimated_and_never_zero_nor_the_bound(workspace, upstream):
    upstream.usage = None
    body = workspace.api().chat("hello").json()
    assert 2 <= body["usage"]["input_tokens"] <= 30
    assert body["usage"]["output_tokens"] == 4
    assert body["outcome"] == workspace.lines()[0].outcome == "estimated"


def test_a_model_that_writes_past_max_tokens_is_cut(workspace, upstream):
    upstream.honour_max_tokens = False
    upstream.usage = None
    upstream.tokens = ["x"] * 50
    before = upstream.connections_open
    body = workspace.api().chat("hello", max_tokens=5).json()
    assert (body["usage"]["output_tokens"], body["finish_reason"]) == (5, "length")
    assert upstream.wait_until(lambda up: up.connections_open <= before)


def test_a_summary_that_writes_past_max_tokens_is_cut(workspace, upstream):
    upstream.honour_max_tokens, upstream.usage = False, None
    upstream.tokens = ["x"] * 3_000
    body = workspace.api().summarize("hello", max_tokens=4).json()
    assert body["usage"]["output_tokens"] == 4
    assert workspace.lines()[0].cost <= workspace.lines()[0].estimate


@pytest.mark.parametrize("stream", [False, True])
def test_a_paid_answer_is_given_even_where_it_cannot_be_kept(workspace, upstream, stream):
    def lose_the_table(body):
        with workspace.scope(), connection.cursor() as cursor:
            cursor.execute("ALTER TABLE chat_message RENAME TO chat_message_lost")
        connection.close()
        return {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}

    upstream.usage = lose_the_table
    response = workspace.api().chat("hello", stream=stream)
    assert response.status_code == 200
    if stream:
        assert events_of(response)[-1][0] == "done"
        response.close()
    else:
        assert response.json()["response"] == "Hello, world."
    assert workspace.ledger()["spent"] == COST


def test_a_failed_question_does_not_stand_in_the_conversation_twice(workspace, upstream):
    from chat.models import Conversation, Message

    api = workspace.api()
    conversation = api.chat("first").json()["conversation_id"]
    upstream.status = 500
    assert api.chat("second", conversation_id=conversation).status_code == 502
    assert api.chat("alone").status_code == 502
    upstream.status = None
    assert api.chat("second", conversation_id=conversation).status_code == 200
    with workspace.scope():
        said = list(Message.objects.filter(role="user").order_by("pk").values_list("text", flat=True))
        assert said == ["first", "second"]
        assert Conversation.objects.count() == 1


def test_a_backslash_u_that_somebody_typed_is_text(workspace):
    assert workspace.api().chat("what is \\u0000 in JSON?").status_code == 200


@pytest.mark.parametrize("path", ["chat", "summarize"])
def test_a_report_above_the_hold_is_the_operators_loss_and_not_the_customers(workspace, upstream, caplog, path):
    upstream.usage = {"prompt_tokens": 10, "completion_tokens": 90_000, "total_tokens": 90_010}
    api = workspace.api()
    body = getattr(api, path)("hello", max_tokens=5).json()
    (line,) = workspace.lines()
    assert (line.outcome, body["outcome"]) == ("overrun", "overrun")
    assert line.cost == line.estimate == body["cost"]["microcents"]
    assert line.cost + line.overrun == 10 * 1_000 + 90_000 * 4_000
    ledger = workspace.ledger()
    assert (ledger["spent"], ledger["reserved"]) == (line.cost, 0)
    assert any(record.levelname == "ERROR" and str(line.overrun) in record.getMessage() for record in caplog.records)
    # Nobody has to come and mend the budget before the next call.
    upstream.reset()
    assert getattr(api, path)("hello").status_code == 200


def cap_at(workspace, scope, max_tokens):
    """A ledger at this scope of the owner's, with a cap. Caps reach the calls whose last scope it is, and no others."""
    from billing.admin_client import call, ensure_budget

    path = f"{workspace.account.scope}/workspace:user-{workspace.owner.pk}/{scope}"
    ensure_budget(workspace.account.subject_tenant, path, allocated=50_000_000, overdraft_limit=0)
    params = {"scope": path, "unit": "USD_MICROCENTS"}
    call("PUT", "/v1/x-embedded/budgets/caps", params=params, body={"max_tokens": max_tokens})


@pytest.mark.caps
def test_a_cap_of_zero_allows_no_answer_and_costs_nothing(workspace, upstream):
    key = workspace.key()
    with workspace.scope():
        key_id = ApiKey.objects.latest("pk").pk
    for app in ("chat", "summarize"):
        cap_at(workspace, f"app:{app}/agent:key-{key_id}", 0)
    for response in (workspace.api(key).chat("hello"), workspace.api(key).summarize("hello")):
        assert (response.status_code, response.json()["error"]) == (403, "forbidden")
    assert upstream.calls == []
    assert workspace.ledger()["reserved"] == workspace.ledger()["spent"] == 0
    assert workspace.holds() == 0


@pytest.mark.on_standin
@pytest.mark.caps
def test_a_cap_counts_for_every_message_of_a_conversation(workspace, upstream):
    cap_at(workspace, "app:chat", 3)
    plane = workspace.plane(workspace.client(workspace.owner))
    headers = {"x-csrftoken": plane.cookies["csrftoken"].value}
    said = plane.post("/api/chat/", {"prompt": "hello"}, headers=headers).json()
    again = {"prompt": "and again", "conversation_id": said["conversation_id"]}
    assert plane.post("/api/chat/", again, headers=headers).status_code == 200
    assert [call["max_tokens"] for call in upstream.calls] == [3, 3]
