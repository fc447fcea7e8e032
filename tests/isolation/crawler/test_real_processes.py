"""The crawler's shortest round through front, web and plane as production runs them: what only a socket can carry."""

import json
import socket

import pytest

from tenants.hosts import host_for
from tests.support.whole import Whole

pytestmark = pytest.mark.slow

PATHS = ["/", "/c/900001/", "/budget/", "/settings/keys/", "/api/budget/", "/api/docs"]


@pytest.fixture(scope="module")
def site(rooms, database_url, authority, upstream_server, tmp_path_factory):
    model = {
        "LLM_BASE_URL": upstream_server.base_url,
        "LLM_MODEL": "test-model",
        "LLM_PRICES": json.dumps({"test-model": {"input": 10, "output": 40}}),
    }
    parts = {"database_url": database_url, "authority": authority, "workers": 1, "threads": 4}
    with Whole(tmp_path_factory.mktemp("crawled-site"), **parts, **model) as site:
        yield site


def ask(site, target, host, *headers, credential=None, body=b"", port=None):
    """Everything that comes back for one request, written by hand. A name may come twice in `headers`."""
    pairs = [("Host", host), ("Connection", "close"), *headers]
    if credential is not None:
        pairs += credential.headers.items()
        pairs += [("Cookie", "; ".join(f"{name}={value}" for name, value in credential.cookies.items()))]
    if body:
        pairs += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    head = [f"{'POST' if body else 'GET'} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in pairs)]
    with socket.create_connection(("127.0.0.1", port or site.port), 20) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def ways(here, other, path):
    """(target, host, headers) under which a neighbour's credential may try to come in."""
    host, foreign = host_for(here.slug), host_for(other.slug)
    yield path, host, []
    yield f"http://{host}{path}", foreign, []
    yield f"http://{foreign}{path}", host, []
    yield path, "localhost", [("X-Tenant-ID", here.slug), ("X-Tenant-ID", other.slug)]
    yield path, "localhost", [("X-Tenant-ID", other.slug), ("X-Tenant-ID", here.slug)]
    yield path, host, [("X-Tenant-ID", other.slug), ("X-Tenant-ID", here.slug)]
    yield path, foreign, [("Host", host)]
    yield path, foreign, [("X-Forwarded-Host", host), ("Forwarded", f"host={host}"), ("X-Tenant_ID", here.slug)]
    yield path, host, [("SCRIPT_NAME", "/c"), ("Script-Name", "/c"), ("X-HTTP-Method-Override", "DELETE")]


def test_no_way_to_write_a_request_shows_another_workspace(rooms, site):
    here, other = rooms
    wrong = []
    for path in PATHS:
        for target, host, headers in ways(here, other, path):
            for name in ("owner's session", "owner's key"):
                answer = ask(site, target, host, *headers, credential=other.credentials[name])
                status = answer[:12].decode("latin1")
                seen = {one.kind for one in here.canaries.find(answer) if one.holder == here.slug}
                # Its own address tells anybody the workspace's name.
                if seen - {"tenants.Tenant.name"} or status.startswith("HTTP/1.1 5") or not answer:
                    wrong.append((target, host, headers, name, status, sorted(seen)))
    assert not wrong, "\n".join(map(str, wrong))


def test_its_own_people_do_see_it_there(rooms, site):
    here, _ = rooms
    host, session = host_for(here.slug), here.credentials["owner's session"]
    here.revive(session)
    seen = {one.kind for path in ("/", "/c/1/", "/settings/keys/")
            for one in here.canaries.find(ask(site, path, host, credential=session))}  # fmt: skip
    assert {"chat.Conversation.title", "chat.Message.text", "users.ApiKey.name"} <= seen


def test_the_plane_streams_each_workspace_its_own_words(rooms, site, model):
    here, other = rooms
    body = json.dumps({"prompt": "Hello", "max_tokens": 8, "stream": True}).encode()
    for room, neighbour in ((here, other), (other, here)):
        model(room)
        key = room.credentials["owner's key"]
        said = ask(site, "/api/chat/", host_for(room.slug), credential=key, body=body)
        assert {one.holder for one in room.canaries.find(said)} == {room.slug}
        for target, host, headers in ways(neighbour, room, "/api/chat/"):
            refused = ask(site, target, host, *headers, credential=key, body=body)
            assert neighbour.slug not in {one.holder for one in room.canaries.find(refused)}
            assert refused
            assert not refused.startswith(b"HTTP/1.1 5")
