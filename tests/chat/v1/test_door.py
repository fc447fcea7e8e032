"""The door of /v1: who asks, which addresses there are, what a body may be, and what every answer says beside it."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from billing.ledgers import ledgers_of
from tenants.models import Domain, Tenant
from tenants.users.models import ApiKey
from tests.support.plane import PlaneClient

pytestmark = pytest.mark.usefixtures("upstream")

CHAT = "/v1/chat/completions"
ASK = {"model": "test-model", "messages": [{"role": "user", "content": "hello"}]}


def asked(host, key=None, body=ASK, **headers):
    sent = {"host": host, **({"authorization": f"Bearer {key}"} if key else {}), **headers}
    return PlaneClient(headers=sent).post(CHAT, body)


def code_of(response):
    return response.status_code, response.json()["error"]["code"]


def test_a_key_opens_its_workspace_alone_by_its_host_and_by_the_header(workspace):
    key = workspace.key()
    for response in (
        asked("localhost", key),
        asked(workspace.host, key),
        asked("localhost", key, **{"x-tenant-id": workspace.slug}),
        asked(workspace.host, key, **{"x-tenant-id": workspace.slug.upper()}),
        asked(f"{workspace.host.upper()}.:8000", key),
        asked(workspace.host, workspace.old_key()),
        asked("localhost", workspace.old_key(), **{"x-tenant-id": workspace.slug}),
    ):
        assert response.status_code == 200, response.content


def test_a_strangers_and_a_neighbours_key_buy_nothing(workspace, globex, upstream):
    key, foreign = workspace.key(), globex.key()
    assert code_of(asked(workspace.host, foreign)) == (401, "invalid_api_key")
    assert code_of(asked("localhost", foreign, **{"x-tenant-id": workspace.slug})) == (401, "invalid_api_key")
    assert code_of(asked("localhost", key, **{"x-tenant-id": "nobody-here"})) == (401, "invalid_api_key")
    assert code_of(asked(globex.host, key, **{"x-tenant-id": workspace.slug})) == (400, "tenant_conflict")
    assert code_of(asked("localhost", "no key at all")) == (401, "invalid_api_key")
    assert code_of(asked("localhost", workspace.old_key())) == (400, "tenant_required")
    assert code_of(asked("localhost")) == (401, "invalid_api_key")
    assert code_of(asked("nobody.localhost", key)) == (404, "not_found")
    assert upstream.calls == []


def test_a_session_counts_for_nothing(workspace, upstream):
    browser = workspace.plane(workspace.client(workspace.owner))
    token = browser.cookies["csrftoken"].value if "csrftoken" in browser.cookies else "x"
    response = browser.post(CHAT, ASK, headers={"x-csrftoken": token})
    assert code_of(response) == (401, "invalid_api_key")
    assert upstream.calls == []


def test_a_key_that_may_not_chat_is_refused_before_its_body_is_read(workspace, upstream):
    reader = workspace.key(scopes=["budget:read"])
    viewer = workspace.key(workspace.member("viewer@x.example", "viewer"))
    expired = workspace.key(expires_at=timezone.now() - timedelta(seconds=1))
    for key, status in ((reader, 403), (viewer, 403), (expired, 401)):
        assert asked("localhost", key, b"{").status_code == status
    revoked = workspace.key()
    with workspace.scope():
        ApiKey.objects.filter(prefix=revoked.split("_")[2]).update(revoked_at=timezone.now())
    assert asked("localhost", revoked, b"{").status_code == 401
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("status", "found"),
    [("suspended", (403, "account_on_hold")), ("closed", (401, "invalid_api_key")), ("pending", (503, None))],
)
def test_a_workspace_that_is_not_open_buys_nothing(workspace, upstream, status, found):
    key = workspace.key()
    Tenant.objects.filter(pk=workspace.tenant.pk).update(status=status)
    response = asked("localhost", key)
    assert response.status_code == found[0]
    assert found[1] is None or response.json()["error"]["code"] == found[1]
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/responses", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/", 404),
        ("POST", "/v1/chat//completions", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
    ],
)
def test_an_address_that_is_not_there_says_what_is(workspace, method, path, status):
    client = PlaneClient(headers={"host": "localhost", "authorization": f"Bearer {workspace.key()}"})
    response = client.request(method, path, ASK if method == "POST" else b"")
    assert response.status_code == status
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert ("chat/completions" in error["message"]) == (status == 404)
    assert response.has_header("Allow") == (status == 405)


def test_who_asks_for_the_responses_api_is_told_how_to_use_the_other(workspace):
    """The AI SDK and pydantic-ai do, unless they are told not to."""
    client = PlaneClient(headers={"host": "localhost", "authorization": f"Bearer {workspace.key()}"})
    for path in ("/v1/responses", "/v1/responses/resp_1/cancel"):
        response = client.request("POST", path, ASK)
        assert response.status_code == 404
        assert "openai.chat(model)" in response.json()["error"]["message"]
    assert "openai.chat" not in client.request("POST", "/v1/responsesx", ASK).json()["error"]["message"]


def test_a_body_that_is_none_is_refused_in_the_clients_shape(workspace, upstream, settings):
    key = workspace.key()
    settings.API_BODY_BYTES = 2_000_000
    client = PlaneClient(headers={"host": "localhost", "authorization": f"Bearer {key}"})
    large = json.dumps({**ASK, "user": "x" * 2_000_000}).encode()
    assert client.post(CHAT, ASK, content_type="text/plain").status_code == 415
    for body, status, param in (
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"model": 7}', 400, "model"),
        ({**ASK, "model": "unknown"}, 422, "model"),
        ({**ASK, "messages": [{"role": "user", "content": "\x00"}]}, 400, "messages"),
        (large, 413, None),
        ([large[:1_000_000], large[1_000_000:]], 413, None),
    ):
        response = client.post(CHAT, body)
        assert (response.status_code, response.json()["error"]["param"]) == (status, param), response.content
    assert "2 MiB" not in response.json()["error"]["message"]
    assert "1 MiB" in response.json()["error"]["message"]
    assert upstream.calls == []
    # More than a call of /api/ may send.
    long = {**ASK, "messages": [{"role": "user", "content": "hello", "name": "x" * 1_500_000}]}
    assert client.post(CHAT, long).status_code in (200, 402)


def test_bodies_of_a_process_together_have_a_limit_too(workspace, monkeypatch):
    from chat.v1 import app

    monkeypatch.setattr(app, "BODIES_BYTES", 100_000)
    client = PlaneClient(headers={"host": "localhost", "authorization": f"Bearer {workspace.key()}"})
    response = client.post(CHAT, {**ASK, "user": "x" * 150_000})
    assert (response.status_code, response["Retry-After"]) == (503, "2")
    assert client.post(CHAT, ASK).status_code == 200


def test_every_answer_is_private_and_says_which_it_is(workspace):
    for response in (asked("localhost", workspace.key()), asked("localhost")):
        assert response["Cache-Control"] == "private, no-store"
        assert {"Host", "X-Tenant-ID", "Authorization"} <= set(response["Vary"].split(", "))
        assert response["X-Content-Type-Options"] == "nosniff"
        assert response["X-Frame-Options"] == "DENY"
        assert len(response["X-Request-Id"]) == 32
        assert not response.cookies
    assert response["WWW-Authenticate"] == "Bearer"


def test_success_says_what_the_call_was_charged_and_what_is_left(workspace):
    response = asked("localhost", workspace.key())
    ledger = workspace.ledger()
    assert response["X-Budget-Cost"] == "0.00026"
    assert response["X-Budget-Remaining"] == f"{ledger['remaining'] / 100_000_000:.8f}".rstrip("0")
    assert response["X-Budget-Limit"] == "1.00"
    assert response["X-Budget-Held"] == "0.00"
    assert response["X-Budget-Scope"] == workspace.account.scope
    assert response["X-Budget-Resets-At"]


def test_models_are_those_that_this_key_may_ask(workspace, settings):
    settings.LLM_PRICES = {**settings.LLM_PRICES, "org/large": {"input": 100, "output": 200}}
    key = workspace.key()
    client = PlaneClient(headers={"host": "localhost", "authorization": f"Bearer {key}"})
    assert {"test-model", "org/large"} <= {model["id"] for model in client.get("/v1/models").json()["data"]}
    found = client.get("/v1/models/org/large").json()
    assert found["object"] == "model"
    assert found["pricing"]["input"] == "0.000001"
    assert code_of(client.get("/v1/models/unknown")) == (404, "model_not_found")
    with workspace.scope():
        ApiKey.objects.filter(prefix=key.split("_")[2]).update(allowed_models=["org/large"])
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["org/large"]
    assert client.request("HEAD", "/v1/models").content == b""
    assert code_of(client.get("/v1/models/test-model")) == (404, "model_not_found")
    assert client.post(CHAT, ASK).status_code == 403
    stranger = PlaneClient(headers={"host": "localhost"})
    assert stranger.get("/v1/models").status_code == 401


def test_a_reader_who_leaves_before_the_first_byte_of_a_stream_pays_once(workspace, upstream):
    upstream.delay_first = 0.5
    client = workspace.api(alone=True).plane
    reader = client.begin("POST", CHAT, {**ASK, "stream": True})
    assert upstream.wait_until(lambda up: up.calls)
    reader.leave()
    assert len(workspace.settled(lines=1)) == 1
    (ledger,) = ledgers_of([workspace.account.scope])
    assert ledger.reserved == 0


# --- from a browser -------------------------------------------------------------------------------------------------

PAGE = "https://app.example"


@pytest.fixture
def named(workspace):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(allowed_origins=[PAGE])
    return workspace


def preflight(host, origin=PAGE):
    headers = {"host": host, "origin": origin, "access-control-request-method": "POST"}
    headers["access-control-request-headers"] = "authorization,content-type,x-stainless-os"
    return PlaneClient(headers=headers).request("OPTIONS", CHAT)


def test_a_named_page_may_ask_and_another_may_not(named, globex):
    for host in (named.host, "localhost"):
        response = preflight(host)
        assert response.status_code == 204
        assert response["Access-Control-Allow-Origin"] == PAGE
        assert "POST" in response["Access-Control-Allow-Methods"]
        assert "x-stainless-os" in response["Access-Control-Allow-Headers"]
        assert {"Host", "Origin"} <= set(response["Vary"].split(", "))
        assert not response.has_header("Access-Control-Allow-Credentials")
        assert not preflight(host, "https://evil.example").has_header("Access-Control-Allow-Origin")
    assert not preflight(globex.host).has_header("Access-Control-Allow-Origin")


def test_an_answer_is_readable_for_the_pages_of_the_keys_own_workspace(named, globex):
    key, foreign = named.key(), globex.key()
    for response in (asked("localhost", key, origin=PAGE), asked(named.host, "bad", origin=PAGE)):
        assert response["Access-Control-Allow-Origin"] == PAGE
        assert "x-budget-cost" in response["Access-Control-Expose-Headers"]
        assert "Origin" in response["Vary"]
    for response in (asked("localhost", foreign, origin=PAGE), asked("localhost", key, origin="https://evil.example")):
        assert response.status_code == 200
        assert not response.has_header("Access-Control-Allow-Origin")


# --- the same request again -----------------------------------------------------------------------------------------


def again(workspace, key, body=ASK, name="k-1"):
    return asked("localhost", key, body, **{"idempotency-key": name})


@pytest.mark.parametrize("more", [{}, {"stream": True}], ids=["whole", "streamed"])
def test_a_repeat_is_the_same_answer_to_the_byte_and_charged_once(workspace, upstream, more):
    key, body = workspace.key(), {**ASK, **more}
    first, second = again(workspace, key, body), again(workspace, key, body)
    assert first.content == second.content
    assert second["Idempotent-Replayed"] == "true"
    assert second["Content-Type"] == first["Content-Type"]
    assert len(upstream.calls) == 1
    assert len(workspace.lines()) == 1
    assert code_of(again(workspace, key, {**body, "seed": 1})) == (409, "idempotency_conflict")
    others = again(workspace, workspace.key(workspace.member("other@x.example")), body)
    assert others.content
    assert not others.has_header("Idempotent-Replayed")


def test_what_failed_for_nothing_is_tried_anew_and_a_bad_key_is_named(workspace, upstream):
    key = workspace.key()
    upstream.status = 500
    assert again(workspace, key).status_code == 502
    upstream.status = None
    assert again(workspace, key).status_code == 200
    refused = again(workspace, key, name="a,b")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_an_answer_goes_on_when_its_first_reader_leaves(workspace, upstream):
    upstream.delay_between = 0.1
    key = workspace.key()
    headers = {"host": "localhost", "authorization": f"Bearer {key}", "idempotency-key": "k-2"}
    reader = PlaneClient(headers=headers).begin("POST", CHAT, {**ASK, "stream": True})
    assert upstream.wait_until(lambda up: up.calls)
    reader.leave()
    repeat = again(workspace, key, {**ASK, "stream": True}, "k-2")
    assert b"world" in repeat.content
    assert len(upstream.calls) == 1


def test_an_old_address_of_a_workspace_still_answers_programs(workspace):
    old = Domain.objects.create(tenant=workspace.tenant, domain="formerly.localhost", is_primary=False)
    assert asked(old.domain, workspace.key()).status_code == 200
