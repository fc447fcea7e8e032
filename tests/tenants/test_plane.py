"""The plane's frame, with views that buy nothing: what reaches a view, what becomes of a failure, who is told when."""

import asyncio
import time

import pytest
from django.test import Client

from tenants.context import current_tenant
from tenants.users.sessions import SESSION_TENANT
from tests.support.plane import run
from tests.support.plane_urls import Words


@pytest.fixture
def program(plane, acme):
    """A program with a key of acme, on acme's host."""
    return plane(headers={"host": acme.host, "authorization": f"Bearer {acme.key()}"})


def until(said, last):
    deadline = time.monotonic() + 30
    while (said or [""])[-1] != last:
        assert time.monotonic() < deadline, said
        time.sleep(0.01)


def test_a_view_knows_who_asks_by_key(plane, acme, alice):
    key = acme.key(alice)
    for headers in ({"host": acme.host}, {"host": "localhost", "x-tenant-id": "acme"}):
        client = plane(headers={**headers, "authorization": f"Bearer {key}"})
        for body in (client.post("/api/chat/", {"prompt": "x"}).json(), client.get("/api/plain/").json()):
            assert (body["tenant"], body["bound"], body["user"]) == ("acme", "acme", alice.email)
            assert body["auth"] == alice.pk
            assert body["key_id"]
            assert not body["by_session"]
    assert current_tenant() is None


def test_a_view_knows_who_asks_by_session_and_csrf_applies(plane, acme, alice):
    browser = acme.client(alice, csrf=False)
    client = plane(headers={"host": acme.host})
    client.cookies = browser.cookies
    body = client.get("/api/plain/").json()
    assert (body["user"], body["by_session"], body["key_id"]) == (alice.email, True, None)
    refused = client.post("/api/plain/")
    assert (refused.status_code, refused.json()["error"]) == (403, "csrf_failed")
    token = client.cookies["csrftoken"].value
    assert client.post("/api/plain/", headers={"x-csrftoken": token}).status_code == 200
    other = client.post("/api/plain/", headers={"x-csrftoken": token, "origin": "http://evil.example"})
    assert other.json()["error"] == "csrf_failed"
    assert (
        client.post("/api/plain/", headers={"x-csrftoken": token, "origin": f"http://{acme.host}"}).status_code == 200
    )


def test_answers_vary_on_what_chose_them_and_are_kept_by_nobody(program):
    for response in (program.get("/api/plain/"), program.get("/api/nothing/"), program.get("/api/stream/?name=vary")):
        assert response["Vary"] == "Host, X-Tenant-ID, Authorization, Cookie"
        assert response["Cache-Control"] == "private, no-store"
        assert response["X-Content-Type-Options"] == "nosniff"
        response.close()


@pytest.mark.parametrize("path", ["/", "/nothing/", "/api/", "/api/nothing/", "/api/sync/", "/admin/", "/api/chat"])
def test_anything_else_is_404_in_json_also_to_a_stranger(plane, program, acme, path):
    for client in (program, plane(headers={"host": acme.host}), plane(headers={"host": "localhost"})):
        response = client.get(path)
        assert (response.status_code, response.json()["error"]) == (404, "not_found")


def test_another_method_is_405_in_json(program):
    response = program.get("/api/chat/")
    assert (response.status_code, response.json()["error"], response["Allow"]) == (405, "method_not_allowed", "POST")


def test_health_answers_on_any_host(plane):
    client = plane(headers={"host": "127.0.0.1"})
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("crash", 500, "internal_error"),
        ("down", 503, "unavailable"),
        ("full", 503, "unavailable"),
        ("ours", 403, "forbidden"),
        ("djangos", 403, "forbidden"),
    ],
)
def test_what_a_view_raises_is_said_in_json_and_without_a_stack(program, how, status, code):
    response = program.get(f"/api/fails/?how={how}")
    assert (response.status_code, response.json()["error"]) == (status, code)
    assert b"Traceback" not in response.content
    assert b"secret" not in response.content
    assert response.has_header("Retry-After") == (status == 503)


def test_a_lost_database_is_503_before_any_view(plane, acme, settings):
    settings.PLANE_SQL = "tests.tenants.test_plane.lost"
    response = plane(headers={"host": acme.host}).get("/api/plain/")
    assert (response.status_code, response.json()["error"]) == (503, "unavailable")
    response = plane(headers={"host": acme.host}).get("/readyz")
    assert (response.status_code, response.json()["not_ready"]) == (503, ["database: does not answer"])


async def lost(sql, params):
    import psycopg

    raise psycopg.OperationalError("server closed the connection unexpectedly")


def test_the_orm_cannot_be_used_on_the_loop(program, caplog):
    response = program.get("/api/orm/")
    assert (response.status_code, response.json()["error"]) == (500, "internal_error")
    assert "SynchronousOnlyOperation" in caplog.text


def test_the_async_orm_does_not_answer_with_publics_rows(program, caplog):
    response = program.get("/api/async-orm/")
    assert (response.status_code, response.json()["error"]) == (500, "internal_error")
    assert "WrongSchema" in caplog.text


def test_a_sync_view_is_said_in_the_log(program, caplog):
    assert program.get("/api/sync/").status_code == 404
    assert "async views alone" in caplog.text


@pytest.mark.filterwarnings("ignore:coroutine 'plain' was never awaited")
@pytest.mark.parametrize(("forgot", "says"), [("await", "add an 'await'"), ("response", "returned None")])
def test_a_view_that_forgot_its_await_or_its_answer_is_said_in_the_log(program, caplog, forgot, says):
    assert program.get(f"/api/unfinished/?forgot={forgot}").status_code == 500
    assert says in caplog.text


def test_no_request_takes_a_thread_or_a_connection_of_django(plane, program, acme):
    """Neither where all goes well nor where it does not: a thread's ORM would read another schema."""
    paths = ["/api/plain/", "/api/nothing/", "/api/fails/?how=crash", "/api/fails/?how=down", "/api/sync/"]

    async def threads_made():
        from asgiref.sync import SyncToAsync
        from django.db import connections

        return len(SyncToAsync.context_to_thread_executor), connections.all(initialized_only=True)

    import threading

    program.get("/api/plain/")
    before = threading.active_count()
    for path in paths:
        program.get(path)
        plane(headers={"host": acme.host}).get(path)
    assert threading.active_count() == before
    assert run(threads_made()) == (0, [])


@pytest.mark.parametrize("parts", [False, True])
def test_a_body_is_read_and_bounded(program, parts):
    def send(size):
        body = b"x" * size
        return program.post("/api/plain/", [body[:1000], body[1000:]] if parts else body)

    assert send(100_000).json()["body"] == 100_000
    assert send(1024 * 1024).status_code == 200
    refused = send(1024 * 1024 + 1)
    assert (refused.status_code, refused.json()["error"]) == (413, "too_large")
    json = program.post("/api/chat/", b'{"prompt": "' + b"x" * 1024 * 1024 + b'"}')
    assert (json.status_code, json.json()["error"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"prompt": 7}', 400),
        (b'{"prompt": "\\u0000"}', 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "\xff"}', 400),
        (b'{"prompt": ' + b"[" * 100_000, 400),
        (b'{"prompt": "\xc3\xa9"}', 200),
        (b'{"prompt": "\\u00e9"}', 200),
    ],
)
def test_json_is_read_as_strictly_as_in_web(program, body, status):
    assert program.post("/api/chat/", body).status_code == status
    assert program.post("/api/chat/", body, content_type="text/plain").status_code == 415


@pytest.mark.parametrize("query", ["a=%FF%FE", "name=\xff", "%00=%00"])
def test_an_odd_query_is_no_failure_of_ours(program, query):
    assert program.get(f"/api/plain/?{query}").status_code == 200


def test_a_readers_going_ends_the_stream_at_once(program):
    response = program.get("/api/stream/?name=going")
    words = response.streaming_content
    assert [next(words) for _ in range(3)] == [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    response.close()
    assert Words.told["going"][-2:] == ["word 3 for acme", "closed"]


def test_a_reader_who_goes_before_the_first_byte_ends_the_stream_too(program):
    response = program.get("/api/stream/?name=early")
    response.close()
    until(Words.told["early"], "closed")


def test_a_reader_who_goes_while_the_view_works_cancels_it(program):
    exchange = program.begin("GET", "/api/slow/?name=view")
    said = Words.told.setdefault("view", [])
    until(said, "asked")
    exchange.leave()
    assert said == ["asked", "cancelled"]


def test_a_cancellation_that_is_not_the_readers_is_passed_on(program):
    """A server that cancels its tasks at the end of its grace must not be told that all went well."""
    exchange = program.begin("GET", "/api/slow/?name=server")
    said = Words.told.setdefault("server", [])
    until(said, "asked")
    exchange._done.cancel()
    until(said, "cancelled")
    with pytest.raises(asyncio.CancelledError):
        raise exchange._sent.get(timeout=10)


def test_the_lifespan_starts_and_stops_what_settings_name(plane, settings):
    from config.asgi import application

    settings.PLANE_STARTUP, settings.PLANE_SHUTDOWN = (f"tests.tenants.test_plane.{n}" for n in ("start", "fail"))
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "lifespan"}

    run(application({"type": "lifespan"}, receive, send))
    assert started == ["started"]
    assert sent == [
        {"type": "lifespan.startup.complete"},
        {"type": "lifespan.shutdown.failed", "message": "It does not stop."},
    ]


started: list[str] = []


async def start():
    await asyncio.sleep(0)
    started.append("started")


async def fail():
    raise RuntimeError("It does not stop.")


def test_web_describes_the_planes_calls_beside_its_own(acme, monkeypatch):
    from config.api import plane_api, public_api, tenant_api
    from tests.support.plane_urls import api

    for host, described in ((acme.host, tenant_api), ("localhost", public_api)):
        assert described._beside is plane_api
        monkeypatch.setattr(described, "_beside", api)
        schema = Client(headers={"host": host}).get("/api/openapi.json").json()
        assert schema["paths"]["/api/chat/"]["post"]["operationId"] == "tests_support_plane_urls_ask"
        assert "/api/budget/{slug}/" in schema["paths"]
        assert {"Ask", "Balances"} <= set(schema["components"]["schemas"])


def test_a_session_is_tied_to_its_tenant(plane, acme, globex, alice, bob):
    """The same id, the same password hash, a row of the same session in the neighbour's schema: still nobody."""
    from django.contrib.sessions.models import Session

    from tenants.users.models import User

    browser = acme.client(alice)
    cookie = browser.cookies["sessionid"].value
    with acme.scope():
        row, twin = Session.objects.get(pk=cookie), User.objects.get(pk=alice.pk)
    with globex.scope():
        row.save(force_insert=True)
        User.objects.filter(pk=twin.pk).exclude(pk=bob.pk).delete()
        if not User.objects.filter(pk=twin.pk).update(password=twin.password):
            twin.save(force_insert=True)
    assert row.get_decoded()[SESSION_TENANT] == acme.tenant.pk
    for workspace, status in ((acme, 200), (globex, 401)):
        client = plane(headers={"host": workspace.host})
        client.cookies["sessionid"] = cookie
        assert client.get("/api/plain/").status_code == status
