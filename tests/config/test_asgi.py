"""The plane as uvicorn serves it: bodies are bounded whatever they announce, and a reader's going is noticed."""

import json
import socket
import time

import pytest

from tests.support.plane import PlaneProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plane(app, database_url, authority):
    settings = "tests.support.plane_settings"
    with PlaneProcess(database_url=database_url, authority=authority, DJANGO_SETTINGS_MODULE=settings) as plane:
        yield plane


@pytest.fixture
def program(plane, acme):
    with plane.client(acme, acme.key()) as client:
        yield client


def chunked(body):
    """A body without a length: httpx sends an iterator in chunks."""
    return (body[at : at + 65_536] for at in range(0, len(body), 65_536))


@pytest.mark.parametrize("send", [bytes, chunked])
def test_a_body_is_read_and_bounded_and_the_connection_goes_on(program, send):
    kind = {"Content-Type": "application/json"}
    for size, status in ((100_000, 200), (1_100_000, 413), (8_000_000, 413), (10, 200)):
        body = json.dumps({"prompt": "x" * size}).encode()
        response = program.post("/api/chat/", content=send(body), headers=kind)
        assert response.status_code == status
        if status == 413:
            assert response.json()["error"] == "too_large"


def test_a_stream_comes_word_by_word_and_ends_when_its_reader_goes(program):
    with program.stream("GET", "/api/stream/", params={"name": "socket"}) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert "Content-Length" not in response.headers
        words = response.iter_raw()
        assert b"data: 1" in next(words)
    assert ends(program, "socket", "closed")


def test_a_view_is_cancelled_when_its_reader_goes(plane, program, acme):
    with socket.create_connection(("127.0.0.1", plane.port), timeout=10) as reader:
        head = f"GET /api/slow/?name=view HTTP/1.1\r\nHost: {acme.host}\r\nAuthorization: Bearer {acme.key()}\r\n\r\n"
        reader.sendall(head.encode())
        assert ends(program, "view", "asked")
    assert ends(program, "view", "cancelled")


def ends(program, name, last):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (program.get("/api/told/").json().get(name) or [""])[-1] == last:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "X-Script-Name", "X-Forwarded-Prefix", "X-Original-URL"])
def test_a_client_on_this_machine_does_not_say_where_the_plane_is_mounted(program, name):
    for value in ("/api", "/evil"):
        assert program.get("/api/plain/", headers={name: value}).json()["tenant"] == "acme"
