"""The authority stopped, or hung, under a warm key: 503 within 5 seconds, no model call, and pages still render."""

import json
import socket
import threading
import time

import pytest

from billing import signing_up
from billing.client import default_client, install_default_client
from billing.engine.authority import AT_ONCE
from billing.models import Account
from tests.support.gate import Gate, warm
from tests.support.money import eventually
from tests.support.plane import PlaneResponse

pytestmark = pytest.mark.usefixtures("upstream")

# Half of production's: a machine that stands still for two seconds is no reason to be later than five.
PATIENCE = 1.0
PATHS = [("/api/chat/", {"prompt": "hello"}), ("/api/summarize/", {"text": "hello"})]


@pytest.fixture
def stopped(settings):
    """Nobody listens where the authority should be."""
    yield from _authority_at(settings, "http://127.0.0.1:9")


@pytest.fixture
def hung(settings):
    """A server that takes every connection and never answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    taken, done = [], threading.Event()

    def take():
        listener.settimeout(0.1)
        while not done.is_set():
            try:
                taken.append(listener.accept()[0])
            except TimeoutError:
                continue

    thread = threading.Thread(target=take)
    thread.start()
    yield from _authority_at(settings, f"http://127.0.0.1:{listener.getsockname()[1]}")
    done.set()
    thread.join()
    for connection in [*taken, listener]:
        connection.close()


def _authority_at(settings, url):
    before = (settings.CYCLES_BASE_URL, settings.CYCLES_ADMIN_URL, settings.CYCLES_READ_TIMEOUT)
    settings.CYCLES_BASE_URL = settings.CYCLES_ADMIN_URL = url
    settings.CYCLES_READ_TIMEOUT = PATIENCE
    install_default_client()
    yield
    settings.CYCLES_BASE_URL, settings.CYCLES_ADMIN_URL, settings.CYCLES_READ_TIMEOUT = before
    install_default_client()


@pytest.mark.parametrize("state", ["stopped", "hung"])
@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_no_call_is_made_that_nobody_could_check(request, workspace, upstream, state, path, body, stream):
    api = workspace.api()
    warm(workspace)
    request.getfixturevalue(state)
    if stream and path == "/api/chat/":
        body = {**body, "stream": True}
    started = time.monotonic()
    response = api.post(path, body)
    assert time.monotonic() - started < 5
    assert (response.status_code, response.json()["error"]) == (503, "authority_unavailable")
    assert int(response["Retry-After"]) > 0
    assert response.json()["retry_after_ms"] > 0
    assert upstream.calls == []
    # A hold is written when its money is held, so that one whose answer was lost has no row: it is recovered by name.
    assert workspace.holds() == 0
    assert workspace.lines() == []


@pytest.mark.parametrize("state", ["stopped", "hung"])
def test_pages_still_render_and_say_that_figures_are_unknown(request, workspace, state):
    client = workspace.client(workspace.owner)
    request.getfixturevalue(state)
    for path in ("/", "/budget/", "/settings/keys/"):
        started = time.monotonic()
        response = client.get(path)
        assert response.status_code == 200
        assert time.monotonic() - started < 5
    page = client.get("/budget/").content.decode()
    assert "—" in page
    response = client.get("/api/budget/")
    assert (response.status_code, response.json()["error"]) == (503, "authority_unavailable")


@pytest.mark.parametrize("state", ["stopped", "hung"])
def test_readiness_names_what_is_missing(request, app, client, state):
    request.getfixturevalue(state)
    response = client.get("/readyz")
    assert response.status_code == 503
    assert any(problem.startswith("authority") for problem in response.json()["not_ready"])


def test_a_sign_up_waits_for_the_authority_and_goes_on_by_itself(
    authority, client, stopped, settings, sign_ups, monkeypatch
):
    monkeypatch.setattr(signing_up, "READY_SECONDS", 0.05)
    body = {"name": "Patient", "slug": "patient", "email": "p@patient.example", "password": "correct horse battery"}
    bare = {"content_type": "application/json", "headers": {"host": "localhost"}}
    made = client.post("/api/signup/", json.dumps(body), **bare)
    assert (made.status_code, made.json()["status"]) == (202, "pending")
    path = made.json()["status_url"].removeprefix("http://localhost:8000")

    def status():
        return client.get(path, headers={"host": "localhost"}).json()

    # Whoever knows all that was typed knows no more than a stranger: only the status address goes on.
    again = client.post("/api/signup/", json.dumps(body), **bare)
    assert (again.status_code, again.json()["error"]) == (409, "slug_taken")
    assert status() == {"status": "pending"}
    settings.CYCLES_BASE_URL, settings.CYCLES_ADMIN_URL = authority.runtime_url, authority.admin_url
    assert eventually(lambda: Account.objects.get(tenant__slug="patient").status == Account.Status.ACTIVE, seconds=60)
    assert status()["api_key"].startswith("tk_")


@pytest.mark.on_standin
def test_an_authority_that_is_killed_and_comes_back_is_used_again(workspace, upstream, authority):
    api = workspace.api()
    assert api.chat("hello").status_code == 200
    authority.stop()
    assert api.chat("hello").status_code == 503
    authority.start()
    assert api.chat("hello").status_code == 200
    assert len(upstream.calls) == 2
    assert default_client().get_balances(tenant=workspace.account.subject_tenant).is_success


@pytest.mark.on_standin
def test_an_authority_that_is_frozen_in_its_tracks_is_503(workspace, upstream, authority, settings):
    settings.CYCLES_READ_TIMEOUT = PATIENCE
    api = workspace.api()
    warm(workspace)
    authority.pause()
    try:
        started = time.monotonic()
        response = api.chat("hello")
        assert time.monotonic() - started < 5
        assert response.status_code == 503
        assert upstream.calls == []
    finally:
        authority.resume()
    assert api.chat("hello").status_code == 200


def test_an_admin_plane_that_hangs_takes_no_places_from_those_who_pay(workspace, globex, upstream, settings):
    settings.BUDGET_WAIT_SECONDS = 0.2
    api, neighbour = workspace.api(), globex.api()
    assert neighbour.chat("hello").status_code == 200
    workspace.leave(0)
    with Gate(settings.CYCLES_ADMIN_URL, only=[workspace]) as gate:
        settings.CYCLES_ADMIN_URL = gate.url
        go_on = threading.Event()

        def hang(came):
            go_on.wait(60)

        gate.act = hang
        # Each asks there for the figures of its refusal.
        asked = [api.plane.begin("POST", "/api/chat/", {"prompt": "hello"}) for _ in range(AT_ONCE + 6)]
        assert eventually(lambda: len(gate.came) >= AT_ONCE)
        assert neighbour.chat("hello").status_code == 200
        go_on.set()
        assert {PlaneResponse(exchange).status_code for exchange in asked} == {402}
