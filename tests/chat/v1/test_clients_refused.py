"""What the stock openai client does about each refusal of a real plane: which error it raises, how often it sends."""

from __future__ import annotations

import threading

import pytest

from billing.client import default_client
from tests.support.clients import ASK, HELLO, Sent, limit

pytestmark = pytest.mark.usefixtures("upstream")


@pytest.fixture
def key(workspace):
    return workspace.key()


@pytest.fixture
def client(door, key):
    return door.client(key)


def test_a_refusal_for_money_is_sent_once_and_says_what_would_fit(openai, door, workspace, key, upstream):
    sent = Sent()
    workspace.leave(60_000)  # less than the input's bound, and not too little at a tenth of the price
    ask = {**ASK, "messages": [{"role": "user", "content": "hello " * 20}]}
    with pytest.raises(openai.APIStatusError) as refused:
        door.client(key, sent=sent).chat.completions.create(**ask)
    assert (sent.statuses, upstream.calls) == ([402], [])
    error = refused.value.body
    assert (error["type"], error["code"]) == ("insufficient_budget", "budget_exhausted")
    budget = error["budget"]
    assert (budget["remaining"], budget["affordable_max_tokens"], budget["limit_source"]) == (
        "0.0006",
        0,
        "workspace_budget",
    )
    assert budget["top_up_url"] == "https://pay.example/top-up"
    assert (error["param"], "shorter" in error["message"]) == (None, False)
    (other,) = budget["fits_with"]
    assert other["model"] == "small-model"
    with pytest.raises(openai.APIStatusError) as refused:
        door.client(key).embeddings.create(model="embed-model", input="hello " * 200)
    assert (refused.value.status_code, refused.value.param) == (402, None)
    assert "Ask for less" in refused.value.message
    # It is no guess: what it names is taken, and one token more would not have been held.
    answer = door.client(key).chat.completions.create(**{**ask, **other})
    assert answer.choices[0].finish_reason == "stop"
    assert upstream.calls[-1]["max_tokens"] == other["max_tokens"]


def test_money_that_others_hold_is_asked_for_again_and_then_there(door, workspace, key, upstream):
    """What others hold is a reservation of the workspace's, which ends once the client was told to wait."""
    door.client(key).chat.completions.create(**ASK)  # the authority knows the key
    reservation = default_client().create_reservation(
        {
            "idempotency_key": f"held-{workspace.slug}",
            "subject": {"tenant": workspace.account.subject_tenant},
            "action": {"kind": "test", "name": "hold"},
            "estimate": {"unit": "USD_MICROCENTS", "amount": workspace.ledger()["remaining"]},
            "ttl_ms": 60_000,
        }
    )
    assert reservation.status == 200, reservation.body
    told = []

    class Freeing(Sent):
        def note(self, response):
            super().note(response)
            told.append(dict(response.headers))
            if response.status_code == 429:
                default_client().release_reservation(
                    reservation.body["reservation_id"], {"idempotency_key": f"freed-{workspace.slug}"}
                )

    sent = Freeing()
    answer = door.client(key, sent=sent).chat.completions.create(**ASK)
    assert answer.choices[0].message.content == "Hello, world."
    assert sent.statuses == [429, 200]
    assert (told[0]["x-should-retry"], told[0]["retry-after"]) == ("true", "2")
    assert len(upstream.calls) == 2


@pytest.mark.parametrize(
    ("body", "error", "status", "param"),
    [
        ({"messages": HELLO, "model": ""}, "BadRequestError", 400, "model"),
        ({"messages": HELLO, "model": "no-such-model"}, "UnprocessableEntityError", 422, "model"),
    ],
)
def test_what_cannot_be_asked_is_said_by_its_field_and_once(openai, door, key, upstream, body, error, status, param):
    sent = Sent()
    with pytest.raises(getattr(openai, error)) as refused:
        door.client(key, sent=sent).chat.completions.create(**body)
    assert (sent.statuses, refused.value.param, refused.value.type) == ([status], param, "invalid_request_error")
    assert upstream.calls == []


def test_a_key_opens_its_own_workspace_and_no_other(openai, door, key, workspace, globex, upstream):
    sent, ask = Sent(), ASK
    clients = [
        door.client(key[:-4] + "xxxx", sent=sent),
        door.client("sk-made-up", at=workspace, sent=sent),
        door.client(key, at=globex, sent=sent),
        door.client(globex.key(), at=workspace, sent=sent),
    ]
    said = set()
    for client in clients:
        with pytest.raises(openai.AuthenticationError) as refused:
            client.chat.completions.create(**ask)
        said.add((refused.value.code, refused.value.message))
    assert len(said) == 1  # a stranger does not learn which workspaces there are
    assert refused.value.code == "invalid_api_key"
    assert (sent.statuses, upstream.calls) == ([401] * 4, [])


def test_what_a_key_may_not_do_and_what_is_not_there_is_said_once(openai, door, workspace, upstream):
    sent = Sent()
    reads_only = door.client(workspace.key(scopes=["budget.read"]), sent=sent)
    with pytest.raises(openai.PermissionDeniedError) as refused:
        reads_only.chat.completions.create(**ASK)
    assert refused.value.type == "permission_error"
    with pytest.raises(openai.NotFoundError):
        door.client(workspace.key(), sent=sent).responses.create(model="test-model", input="hello")
    assert (sent.statuses, upstream.calls) == ([403, 404], [])


def test_a_key_that_has_sent_enough_is_told_when_it_may_again(openai, door, key, workspace, upstream):
    limit(workspace, key, requests=1)
    client = door.client(key, max_retries=0)
    client.chat.completions.create(**ASK)
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**ASK)
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert refused.value.body["limit"] == "requests"
    headers = refused.value.response.headers
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("1", "0")
    assert (headers["x-should-retry"], 30 < int(headers["retry-after"]) <= 60) == ("true", True)
    assert len(upstream.calls) == 1


def test_a_key_with_one_call_at_once_waits_for_its_end_by_itself(door, key, workspace, upstream):
    limit(workspace, key, concurrent=1)
    upstream.last_word_after = threading.Event()
    first = door.client(key).chat.completions.create(**ASK, stream=True)
    next(iter(first))

    class Ending(Sent):
        def note(self, response):
            super().note(response)
            if response.status_code == 429:
                first.close()
                workspace.settled(lines=1)
                upstream.tokens, upstream.last_word_after = ["Here."], None

    sent = Ending()
    assert door.client(key, sent=sent).chat.completions.create(**ASK).choices[0].message.content == "Here."
    assert sent.statuses == [429, 200]


def test_a_model_that_surely_did_nothing_is_asked_again_and_one_that_may_have_billed_is_not(
    openai, door, workspace, key, upstream
):
    sent, upstream.status = Sent(), 500
    with pytest.raises(openai.InternalServerError) as failed:
        door.client(key, sent=sent, max_retries=1).chat.completions.create(**ASK)
    assert (sent.statuses, failed.value.code) == ([502, 502], "model_failed")
    assert workspace.ledger()["spent"] == 0
    sent, upstream.status, upstream.drop = Sent(), None, True
    with pytest.raises(openai.InternalServerError) as failed:
        door.client(key, sent=sent).chat.completions.create(**ASK)
    assert (sent.statuses, failed.value.code) == ([502], "model_failed")
    assert len(upstream.calls) == 3
    assert "sk-upstream-secret" not in str(failed.value.body)
    assert str(upstream.base_url) not in str(failed.value.body)


def test_a_stream_that_breaks_is_raised_after_its_words(openai, client, workspace, upstream):
    upstream.cut_after = 2
    words = []
    with pytest.raises(openai.APIError) as broken:
        for chunk in client.chat.completions.create(**ASK, stream=True):
            words += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    assert words == ["Hello", ","]
    assert (broken.value.code, broken.value.type) == ("model_failed", "server_error")
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "estimated"
