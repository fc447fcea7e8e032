"""/healthz and /readyz: what is not ready is named, and a database that is away is waited for once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections
from django.test import Client, RequestFactory

from tenants.middleware import HealthMiddleware

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture
def no_database():
    """The default connection points where nobody listens."""
    given = connections.settings["default"]
    connections["default"].close()
    del connections["default"]
    host, given["HOST"] = given["HOST"], "/nonexistent"
    yield
    connections["default"].close()
    del connections["default"]
    given["HOST"] = host


def test_alive_needs_nothing(client, no_database):
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_database_that_is_away_is_named_soon(client, no_database):
    started = time.monotonic()
    response = client.get("/readyz")
    assert response.status_code == 503
    assert "database: does not answer" in response.json()["not_ready"]
    assert time.monotonic() - started < 8


def test_whoever_asks_often_makes_it_look_once_a_second(client, settings, monkeypatch):
    """A look takes as long as a page or two, and anybody may ask."""
    settings.READINESS_CHECKS = ["tests.tenants.test_readiness.looked"]
    assert HealthMiddleware.KEPT_SECONDS == 1.0
    monkeypatch.setattr(HealthMiddleware, "KEPT_SECONDS", 60.0)  # twenty may take a slow machine longer than one
    looks.clear()
    assert {client.get("/readyz").status_code for _ in range(20)} == {200}
    assert len(looks) == 1
    monkeypatch.setattr(HealthMiddleware, "KEPT_SECONDS", 0.0)
    client.get("/readyz")
    assert len(looks) == 2


def test_a_look_that_hangs_holds_one_thread_and_what_was_found_before_it_is_soon_no_answer(settings):
    settings.READINESS_CHECKS = ["tests.tenants.test_readiness.looked_for_long"]
    health, request = HealthMiddleware(None), RequestFactory().get("/readyz")
    health.KEPT_SECONDS, health.LOOK_SECONDS = 0.0, 60.0
    for known in (503, 200):  # nothing yet; what was found before
        begun.clear()
        long.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(health, request)
            assert begun.wait(30)
            assert health(request).status_code == known
            health.LOOK_SECONDS = 0.0
            assert health(request).status_code == 503
            health.LOOK_SECONDS = 60.0
            long.set()
            assert first.result().status_code == 200


looks: list[int] = []
long, begun = threading.Event(), threading.Event()


def looked():
    looks.append(1)


def looked_for_long():
    begun.set()
    long.wait(30)


@pytest.mark.parametrize(
    ("host", "path"),
    [("localhost", "/"), ("localhost", "/signup/"), ("acme.localhost", "/"), ("acme.localhost", "/login/"),
     ("acme.localhost", "/api/budget/"), ("nobody.localhost", "/api/budget/")],
)  # fmt: skip
def test_every_address_that_needs_it_says_so(acme, no_database, host, path):
    # As a server does, and not as a test client that would rather have the exception.
    client = Client(headers={"host": host}, raise_request_exception=False)
    client.cookies["sessionid"] = "a" * 32
    response = client.get(path)
    assert response.status_code == 503
    assert int(response["Retry-After"]) > 0
    if path.startswith("/api/"):
        assert response.json()["error"] == "unavailable"
