"""How a model is spoken to, and what its refusals mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from billing.outcomes import SENTENCES, Outcome
from billing.prices import Usage
from chat.dialect import Dialect, dialect_for, failure_of_status, request_body
from chat.errors import ConversationBusy, ModelBusy, ModelFailed, ModelMisconfigured
from chat.history import Message

ASK: list[Message] = [{"role": "user", "content": "Grüße an acme"}]


@pytest.fixture(autouse=True)
def _configured(settings):
    settings.LLM_BASE_URL, settings.LLM_API_KEY = "https://models.example.com/v1", "sk-common"
    settings.LLM_DIALECT = {}


# Settings


def test_a_model_without_settings_is_spoken_to_as_most_are(settings):
    assert dialect_for("acme-mini") == Dialect(
        base_url="https://models.example.com/v1",
        api_key="sk-common",
        max_tokens_name="max_tokens",
        stream_options=True,
        first_byte_seconds=60.0,
        idle_seconds=60.0,
        bills_after_cut=True,
    )


def test_a_models_own_settings_count_for_it_alone(settings):
    own = {"max_tokens_name": "max_completion_tokens", "stream_options": False, "idle_seconds": 7}
    settings.LLM_DIALECT = {"acme-mini": own}
    dialect = dialect_for("acme-mini")
    assert (dialect.max_tokens_name, dialect.stream_options, dialect.idle_seconds) == tuple(own.values())
    assert dialect_for("globex-large").max_tokens_name == "max_tokens"
    settings.LLM_DIALECT = {}
    assert dialect_for("acme-mini").max_tokens_name == "max_tokens"
    assert own == {"max_tokens_name": "max_completion_tokens", "stream_options": False, "idle_seconds": 7}


def test_the_common_key_is_never_handed_to_another_host(settings):
    settings.LLM_DIALECT = {"acme-mini": {"base_url": "https://elsewhere.example/v1"}}
    assert dialect_for("acme-mini").api_key == ""
    settings.LLM_DIALECT = {"acme-mini": {"base_url": "https://elsewhere.example/v1", "api_key": "sk-own"}}
    assert dialect_for("acme-mini").api_key == "sk-own"
    settings.LLM_DIALECT = {"acme-mini": {"base_url": settings.LLM_BASE_URL}}
    assert dialect_for("acme-mini").api_key == "sk-common"


@pytest.mark.parametrize(
    ("base_url", "bills"),
    [
        ("http://127.0.0.1:8081/v1", False),
        ("http://[::1]:8081/v1", False),
        ("http://localhost:8081", False),
        ("http://model.localhost", False),
        ("https://api.openai.com/v1", False),
        ("https://API.OpenAI.com/v1", False),
        ("https://acme.openai.azure.com/openai", False),
        ("https://openai.azure.com.elsewhere.example/v1", True),
        ("https://not-api.openai.com/v1", True),
        ("http://10.0.0.7:8000/v1", True),
        ("https://api.groq.com/openai/v1", True),
    ],
)
def test_only_hosts_known_to_stop_are_taken_to_stop_when_cut(settings, base_url, bills):
    settings.LLM_BASE_URL = base_url
    assert dialect_for("acme-mini").bills_after_cut is bills
    settings.LLM_DIALECT = {"acme-mini": {"bills_after_cut": not bills}}
    assert dialect_for("acme-mini").bills_after_cut is not bills


# The request


def test_a_call_is_always_a_limited_stream_that_reports():
    body = json.loads(request_body(ASK, model="acme-mini", max_tokens=7, dialect=dialect_for("acme-mini")))
    assert body == {
        "model": "acme-mini",
        "messages": ASK,
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_model_gets_the_names_that_it_takes(settings):
    settings.LLM_DIALECT = {"acme-mini": {"max_tokens_name": "max_completion_tokens", "stream_options": False}}
    body = json.loads(request_body(ASK, model="acme-mini", max_tokens=7, dialect=dialect_for("acme-mini")))
    assert body == {"model": "acme-mini", "messages": ASK, "max_completion_tokens": 7, "stream": True}


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_a_call_without_a_limit_is_never_written(max_tokens):
    with pytest.raises(ValueError, match="max_tokens"):
        request_body(ASK, model="acme-mini", max_tokens=max_tokens, dialect=dialect_for("acme-mini"))


# Refusals


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *[(status, ModelMisconfigured) for status in (301, 307, 308, 401, 402, 403, 404, 405, 407, 410)],
        *[(status, ModelBusy) for status in (429, 503, 529)],
        *[(status, ModelFailed) for status in (204, 400, 408, 409, 413, 422, 499, 500, 502, 504, 520)],
    ],
)
def test_a_refusal_is_sorted_by_who_can_do_something(status, kind):
    failure = failure_of_status(status, {"X": "y"})
    assert type(failure) is kind
    assert failure.outcome is Outcome.NONE


def test_only_a_wrong_request_is_told_that_a_shorter_text_may_help():
    assert "shorter" in failure_of_status(400, {}).message
    assert not any("shorter" in failure_of_status(status, {}).message for status in (401, 404, 429, 500, 503))


def test_a_retry_after_that_is_a_date_is_counted_from_now():
    then = datetime.now(UTC) + timedelta(seconds=30)
    failure = failure_of_status(503, {"retry-after": format_datetime(then, usegmt=True)})
    left = (then - datetime.now(UTC)).total_seconds()
    assert (left - 1) * 1_000 <= failure.retry_after_ms <= 30_000  # a date has no fractions of a second


@pytest.mark.parametrize(
    ("given", "wait"),
    [
        ("7", 7_000), ("1.5", 1_500), ("0", 1_000), ("-3", 2_000), ("", 2_000), ("soon", 2_000), ("1e9", 2_000),
        ("99999999999999999999", 3_600_000), ("٣", 2_000), (".", 2_000), ("Mon, 99 Foo 2026", 2_000),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 1_000), ("Wed, 21 Oct 99999 07:28:00 GMT", 2_000),
    ],
)  # fmt: skip
def test_a_retry_after_is_read_within_reason(given, wait):
    assert failure_of_status(429, {"Retry-After": given}).retry_after_ms == wait


# Errors


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_failure_says_of_the_money_what_its_line_says(outcome):
    failure = ModelFailed(usage=Usage(1, 2), outcome=outcome)
    assert failure.body()["message"] == f"The language model did not finish its answer; try again. {SENTENCES[outcome]}"
    assert str(failure) == failure.message
    assert failure.reached is (outcome != Outcome.NONE)


def test_a_failure_that_is_settled_in_another_way_says_so():
    failure = ModelBusy(retry_after_ms=7_000)
    failure.charged_as(Outcome.ESTIMATED, Usage(3, 4))
    assert (failure.usage, failure.reached) == (Usage(3, 4), True)
    assert failure.body() == {
        "error": "model_busy",
        "message": "The language model is busy just now; try again in a moment. "
        "Only what had come so far is charged, by an estimate.",
        "retry_after_ms": 7_000,
    }


def test_each_error_has_the_status_that_users_rely_on():
    errors = [ModelFailed(), ModelMisconfigured(), ModelBusy(), ConversationBusy()]
    assert [(error.status, error.code, error.retry_after_ms) for error in errors] == [
        (502, "model_failed", None),
        (502, "model_misconfigured", None),
        (503, "model_busy", 2_000),
        (409, "conversation_busy", 2_000),
    ]
