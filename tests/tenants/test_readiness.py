"""/healthz and /readyz: what is not ready is named, and a database that is away is waited for once."""

import time

import pytest
from django.db import connections
from django.test import Client

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
