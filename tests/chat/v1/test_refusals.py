"""Our errors as OpenAI's clients read them. What those do about each: tests/chat/v1/test_clients_refused.py."""

from __future__ import annotations

import json

import pytest

from billing.errors import (
    AuthorityUnavailable,
    BudgetDenied,
    EmailNotConfirmed,
    HouseDenied,
    IdempotencyConflict,
    IdempotencyLost,
    NoTenantBound,
    NotProvisioned,
    OnHold,
    OutsideItsLimit,
    StillUnderWay,
    TooManyCalls,
    TrialsExhausted,
)
from billing.outcomes import Outcome
from chat.errors import ModelBusy, ModelFailed, ModelMisconfigured, ModelNotPriced
from chat.v1.refusals import error_chunk, refusal
from tenants.http import (
    ApiError,
    Forbidden,
    Invalid,
    MethodNotAllowed,
    NotFound,
    NotJson,
    RateLimited,
    TenantConflict,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

BUDGET = {
    "scope": "tenant:t1/workspace:user-1",
    "allocated": 50_000_000,
    "spent": 44_880_000,
    "reserved": 2_000_000,
    "remaining": 3_120_000,
    "needed": 16_400_000,
    "affordable_max_tokens": 780,
    "unit": "USD_MICROCENTS",
}
NOTHING_KNOWN = {**dict.fromkeys(BUDGET), "needed": 16_400_000, "unit": "USD_MICROCENTS"}


def denied(reason, budget=BUDGET):
    return BudgetDenied(reason=reason, budget=budget)


@pytest.mark.parametrize("reason", ["exhausted", "does_not_fit", "over_limit"])
def test_money_that_is_not_there_is_402_and_never_sent_again(reason):
    status, headers, body = refusal(denied(reason))
    assert (status, headers) == (402, {"x-should-retry": "false"})
    error = body["error"]
    assert (error["type"], error["code"]) == ("insufficient_budget", "budget_exhausted")
    assert error["budget"]["reason"] == reason
    assert error["param"] == ("max_tokens" if reason == "does_not_fit" else None)
    assert error["message"].endswith("$0.0312 is left, and this request could cost up to $0.164.")


@pytest.mark.parametrize(("fits", "advice"), [(780, "a shorter answer"), (0, "less"), (None, "less")])
@pytest.mark.parametrize("scope", ["tenant:t1", "tenant:t1/workspace:user-1"])
def test_a_shorter_answer_is_advised_where_one_is_paid_for(scope, fits, advice):
    """Where the input alone is too dear there is none, nor has an embedding any, which takes no max_tokens at all."""
    error = refusal(denied("does_not_fit", BUDGET | {"scope": scope, "affordable_max_tokens": fits}))[2]["error"]
    assert f"Ask for {advice}" in error["message"]
    assert error["param"] == ("max_tokens" if fits else None)


def test_figures_are_decimal_dollars_and_what_is_not_known_is_null():
    exc = denied("does_not_fit")
    exc.extra |= {"resets_at": "2026-12-01T00:00:00+01:00", "fits_with": [{"model": "small", "max_tokens": 4096}]}
    exc.extra["top_up_url"] = "https://pay.example/"
    error = refusal(exc)[2]["error"]
    assert error["budget"] == {
        "scope": "tenant:t1/workspace:user-1",
        "limit_source": "seat_limit",
        "reason": "does_not_fit",
        "allocated": "0.50",
        "spent": "0.4488",
        "reserved": "0.02",
        "remaining": "0.0312",
        "needed": "0.164",
        "unit": "USD",
        "affordable_max_tokens": 780,
        "resets_at": "2026-12-01T00:00:00+01:00",
        "retry_after_ms": None,
        "fits_with": [{"model": "small", "max_tokens": 4096}],
        "top_up_url": "https://pay.example/",
    }
    assert error["raised_by"] == ["owner", "admin"]
    error = refusal(denied("does_not_fit", NOTHING_KNOWN))[2]["error"]
    known = {name for name, value in error["budget"].items() if value not in (None, [])}
    assert known == {"reason", "needed", "unit"}
    assert "None" not in error["message"]
    error = refusal(denied("over_limit", {**BUDGET, "remaining": -150}))[2]["error"]
    assert error["budget"]["remaining"] == "-0.0000015"
    assert "$0.00 is left" in error["message"]


@pytest.mark.parametrize(
    ("scope", "source"),
    [
        ("tenant:t1", "workspace_budget"),
        ("tenant:t1/workspace:user-1/app:api", "feature_limit"),
        ("tenant:t1/workspace:user-1/app:api/agent:key-1", "key_limit"),
        ("tenant:t1/workspace:user-1/workflow:conversation-1", "conversation_limit"),
    ],
)
def test_a_refusal_names_whose_limit_it_is(scope, source):
    assert refusal(denied("exhausted", {**BUDGET, "scope": scope}))[2]["error"]["budget"]["limit_source"] == source


def test_money_that_others_merely_hold_is_429_and_soon_sent_again():
    status, headers, body = refusal(denied("held_by_others"))
    assert (status, headers) == (429, {"x-should-retry": "true", "retry-after": "2"})
    assert (body["error"]["type"], body["error"]["code"]) == ("insufficient_budget", "budget_held")
    assert body["error"]["budget"]["retry_after_ms"] == 2_000


def test_an_allowance_that_waits_for_a_mail_says_so():
    status, _, body = refusal(EmailNotConfirmed(budget=BUDGET))
    assert (status, body["error"]["confirm_email"]) == (402, True)


def test_the_houses_budget_is_nobodys_to_see():
    status, headers, body = refusal(HouseDenied(denied("exhausted")))
    assert (status, headers["x-should-retry"], body["error"]["code"]) == (503, "false", "unavailable")
    assert "budget" not in body["error"]


@pytest.mark.parametrize(
    ("exc", "status", "kind", "code", "param"),
    [
        (Invalid({"n": ["Ask for 1."], "stop": ["A text."]}), 400, "invalid_request_error", "invalid", "n"),
        (Invalid({"body": ["Send an object."]}), 400, "invalid_request_error", "invalid", None),
        (TenantConflict(), 400, "invalid_request_error", "tenant_conflict", "X-Tenant-ID"),
        (Unauthenticated(), 401, "authentication_error", "invalid_api_key", None),
        (OnHold("tenant:t1"), 403, "permission_error", "account_on_hold", None),
        (Forbidden(needs="chat"), 403, "permission_error", "forbidden", None),
        (Forbidden(model="m"), 403, "permission_error", "forbidden", "model"),
        (Forbidden(param="n"), 403, "permission_error", "forbidden", "n"),
        (OutsideItsLimit(), 403, "permission_error", "forbidden", None),
        (NotFound(), 404, "invalid_request_error", "not_found", None),
        (MethodNotAllowed(), 405, "invalid_request_error", "method_not_allowed", None),
        (IdempotencyConflict(), 409, "conflict_error", "idempotency_conflict", None),
        (IdempotencyLost(5), 409, "conflict_error", "idempotency_lost", None),
        (TooLarge(), 413, "invalid_request_error", "too_large", None),
        (NotJson(), 415, "invalid_request_error", "not_json", None),
        (ModelNotPriced("m", priced=["n"]), 422, "invalid_request_error", "model_not_priced", "model"),
        (ApiError(), 500, "server_error", "internal_error", None),
        (ModelMisconfigured(), 502, "server_error", "model_misconfigured", None),
        (ModelFailed(outcome=Outcome.UNKNOWN), 502, "server_error", "model_failed", None),
        (NoTenantBound(), 503, "server_error", "unavailable", None),
    ],
)
def test_what_the_same_request_cannot_mend_is_not_sent_again(exc, status, kind, code, param):
    found, headers, body = refusal(exc)
    assert (found, headers["x-should-retry"]) == (status, "false")
    assert "retry-after" not in headers
    error = body["error"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    assert isinstance(error["message"], str)


@pytest.mark.parametrize(
    ("exc", "status", "after"),
    [
        (TooManyCalls(limit=2, in_use=2), 429, "1"),
        (RateLimited(retry_after_ms=1_200), 429, "2"),
        (ModelFailed(), 502, None),
        (ModelBusy(retry_after_ms=7_000), 503, "7"),
        (AuthorityUnavailable(), 503, "2"),
        (NotProvisioned(), 503, "2"),
        (Unavailable(), 503, "2"),
        (StillUnderWay(), 503, "2"),
    ],
)
def test_what_passes_by_itself_and_cost_nothing_is_sent_again(exc, status, after):
    found, headers, _ = refusal(exc)
    assert (found, headers["x-should-retry"], headers.get("retry-after")) == (status, "true", after)


def test_a_client_is_not_left_waiting_for_an_hour():
    _, headers, body = refusal(TrialsExhausted())
    assert headers == {"x-should-retry": "false", "retry-after": "3600"}
    assert (body["error"]["type"], body["error"]["code"]) == ("rate_limit_error", "rate_limit_exceeded")


def test_a_busy_model_that_may_have_billed_is_not_asked_again_by_itself():
    exc = ModelBusy()
    exc.charged_as(Outcome.UNKNOWN, None)
    assert refusal(exc)[1]["x-should-retry"] == "false"


def test_the_one_line_that_clients_show_names_the_fields_and_no_log_in():
    error = refusal(Invalid({"n": ["Ask for 1 to 8."], "stop": ["Send a text."]}))[2]["error"]
    assert error["message"] == "n: Ask for 1 to 8. stop: Send a text."
    assert error["fields"] == {"n": ["Ask for 1 to 8."], "stop": ["Send a text."]}
    assert "log in" not in refusal(Unauthenticated())[2]["error"]["message"]
    assert refusal(Unauthenticated())[1]["www-authenticate"] == "Bearer"


def test_a_stream_that_has_begun_is_told_in_one_frame_of_the_same():
    exc = ModelFailed(outcome=Outcome.ESTIMATED)
    frame = error_chunk(exc)
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    assert frame.count(b"\n") == 2
    assert json.loads(frame.removeprefix(b"data: ")) == refusal(exc)[2]
