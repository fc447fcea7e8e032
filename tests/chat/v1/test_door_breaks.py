"""Faults that were found at the doors of /v1, and what stands in their place."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from django.test import Client

from chat.passed import Kind
from tenants.models import Tenant
from tenants.origins import NotAnOrigin, origin_of
from tenants.users.allowing import allow_workspace
from tests.support.clients import limit
from tests.support.money import eventually
from tests.support.plane import PlaneClient

pytestmark = pytest.mark.usefixtures("upstream")

CHAT = "/v1/chat/completions"
ASK = {"model": "test-model", "messages": [{"role": "user", "content": "hello"}]}


def client_of(workspace):
    return PlaneClient(headers={"host": "localhost", "authorization": f"Bearer {workspace.key()}"})


def test_a_small_body_without_a_length_takes_no_large_ones_room_while_it_streams(workspace, upstream, monkeypatch):
    from chat.v1 import app

    monkeypatch.setattr(app, "BODIES_BYTES", 10 * 1024 * 1024)
    upstream.last_word_after = threading.Event()
    client = client_of(workspace)
    small = json.dumps({**ASK, "stream": True}).encode()
    streams = [client.post(CHAT, [small[:10], small[10:]]) for _ in range(2)]
    assert [stream.status_code for stream in streams] == [200, 200]
    assert client.post(CHAT, {**ASK, "user": "x" * 150_000}).status_code == 200
    upstream.last_word_after.set()
    for stream in streams:
        assert b"[DONE]" in stream.content
    assert eventually(lambda: app._in_flight == {})


def test_the_large_bodies_of_one_workspace_leave_room_for_anothers(workspace, globex, upstream, monkeypatch):
    from chat.v1 import app

    monkeypatch.setattr(app, "BODIES_BYTES", 1_000_000)
    upstream.last_word_after = threading.Event()
    large = {**ASK, "user": "x" * 150_000, "stream": True}
    client, neighbour = client_of(workspace), client_of(globex)
    streams = [client.post(CHAT, large) for _ in range(5)]
    said = [stream.status_code for stream in streams]
    streams.append(neighbour.post(CHAT, large))
    upstream.last_word_after.set()
    assert [*said, streams[-1].status_code] == [200, 200, 200, 503, 503, 200]
    assert (streams[4]["Retry-After"], streams[4]["x-should-retry"]) == ("2", "true")
    for stream in streams:
        assert stream.status_code == 503 or b"[DONE]" in stream.content
    assert eventually(lambda: app._in_flight == {})


def test_a_large_body_is_read_beside_the_loop(workspace, upstream, monkeypatch):
    from chat.v1 import app

    readers, read = [], app.read

    def seen(*asked):
        readers.append(threading.current_thread().name.partition("_")[0])
        return read(*asked)

    monkeypatch.setattr(app, "read", seen)
    client = client_of(workspace)
    assert [client.post(CHAT, {**ASK, "user": "x" * size}).status_code for size in (10, 150_000)] == [200, 200]
    assert readers[0] != "v1-reader"
    assert readers[1] == "v1-reader"


def test_whoever_leaves_while_a_large_body_is_read_gives_its_room_back_with_its_memory(monkeypatch):
    from chat.v1 import app

    is_begun, is_read = threading.Event(), threading.Event()
    monkeypatch.setattr(app, "read", lambda *asked: is_begun.set() or is_read.wait(10))

    async def leave():
        reading = asyncio.create_task(app._passed(Kind.CHAT, b"{}" + b" " * app.SMALL_BYTES))
        assert await asyncio.to_thread(is_begun.wait, 10)
        reading.cancel()
        await asyncio.wait([reading], timeout=0.05)
        assert not reading.done()
        is_read.set()
        await asyncio.wait([reading], timeout=10)
        assert reading.cancelled()

    asyncio.run(leave())


@pytest.mark.parametrize("path", ["/chat/completions", "/models", "/v1", "//v1/models"])
def test_a_client_whose_base_url_lacks_its_end_is_told_so(workspace, path):
    """All of a page stood in the exception that its user saw."""
    key = {"HTTP_AUTHORIZATION": f"Bearer {workspace.key()}"}
    for host in ("localhost", workspace.host):
        response = Client(HTTP_HOST=host).post(path, {}, "application/json", **key)
        assert response.status_code == 404
        assert "ends with /v1" in response.json()["message"]
    page = Client(HTTP_HOST="localhost").get(path)
    assert (page.status_code, page["Content-Type"]) == (404, "text/html; charset=utf-8")


def sent_twice(client, **twice):
    """The request with headers of the same name, as a raw socket may send it."""
    from config.asgi import application

    async def doubled(scope, receive, send):
        more = [(name.encode(), value.encode()) for name, values in twice.items() for value in values]
        await application({**scope, "headers": [*scope["headers"], *more]}, receive, send)

    return PlaneClient(headers=client.headers, application=doubled).post(CHAT, ASK)


def test_two_idempotency_keys_are_none(workspace, upstream):
    response = sent_twice(client_of(workspace), **{"idempotency-key": ["k-1", "k-2"]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert upstream.calls == []


@pytest.mark.parametrize("more", [{}, {"stream": True}], ids=["whole", "streamed"])
def test_a_repeat_says_nothing_of_the_rates_of_the_key_that_bought_it(workspace, upstream, more):
    """Its member's other key is told the same answer, and what was left to the first key may be a day old."""
    bought, other = workspace.key(), workspace.key()
    limit(workspace, bought, requests=1, tokens=100_000)
    answers = []
    for key in (bought, other, bought):
        client = PlaneClient(headers={"host": "localhost", "authorization": f"Bearer {key}", "idempotency-key": "k"})
        answers.append(client.post(CHAT, {**ASK, **more}))
        assert answers[-1].content == answers[0].content
    assert len(upstream.calls) == 1
    assert answers[0].has_header("x-ratelimit-limit-requests")
    for again in answers[1:]:
        assert again["idempotent-replayed"] == "true"
        assert [name for name in again.headers if name.startswith("x-ratelimit")] == []


def test_two_origins_are_none(workspace):
    page = "https://app.example"
    Tenant.objects.filter(pk=workspace.tenant.pk).update(allowed_origins=[page])
    client = client_of(workspace)
    assert sent_twice(client, origin=[page]).has_header("access-control-allow-origin")
    response = sent_twice(client, origin=["https://evil.example", page])
    assert not response.has_header("access-control-allow-origin")
    assert "Origin" in response["Vary"]


@pytest.mark.parametrize(
    ("written", "browsers"),
    [
        ("https://faß.example", "https://xn--fa-hia.example"),
        ("https://ς.example", "https://xn--3xa.example"),
        ("https://BÜCHER.example", "https://xn--bcher-kva.example"),
    ],
)
def test_an_origin_names_the_domain_that_browsers_open(written, browsers):
    assert origin_of(written) == browsers


def test_a_letter_that_nobody_sees_makes_no_other_domain():
    with pytest.raises(NotAnOrigin):
        origin_of("https://a\u200db.example")


def test_models_are_compared_with_what_is_allowed_and_not_with_what_a_process_kept(workspace, rf):
    """Another owner's change has been made since this request's tenant was read."""
    from tenants.audit.models import AuditEvent

    request = rf.post("/")
    request.tenant, request.user = Tenant.objects.get(pk=workspace.tenant.pk), workspace.owner
    Tenant.objects.filter(pk=workspace.tenant.pk).update(allowed_models=["org/large"])
    with workspace.scope():
        assert allow_workspace(request, None)
        (event,) = AuditEvent.objects.filter(event="settings.models_allowed")
    assert Tenant.objects.get(pk=workspace.tenant.pk).allowed_models is None
    assert event.details["before"] == ["org/large"]
