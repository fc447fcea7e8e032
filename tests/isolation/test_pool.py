"""800 mixed requests over 30 tenants on a small pool: no raise, thread or stream keeps a slot or a tenant."""

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from django.db import close_old_connections, connection, connections
from django.test import Client

from config.settings import _reset_session
from tenants.context import current_tenant
from tests.support.factories import WorkspaceFactory

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("upstream")]

REQUESTS, TENANTS, THREADS, SLOTS = int(os.environ.get("POOL_REQUESTS", 800)), 30, 16, 16


@contextmanager
def pooled():
    """The default connection of new threads comes from a pool, as in the web process."""
    options = connections.settings["default"]["OPTIONS"]
    connection.close()
    del connections["default"]
    options["pool"] = {"min_size": 2, "max_size": SLOTS, "timeout": 20, "reset": _reset_session}
    try:
        yield
    finally:
        connections["default"].close()
        connections["default"].close_pool()
        del connections["default"]
        del options["pool"]


class Server:
    """Handles a request as the servers do: the response is read, or left, and then closed."""

    def __init__(self, workspaces):
        self.workspaces = [(workspace, workspace.key()) for workspace in workspaces]

    def request(self, dice):
        workspace, key = dice.choice(self.workspaces)
        kind = dice.choice(
            ["chat", "stream", "leave", "gone", "summary", "budget", "page", "bad", "denied", "stranger"]
        )
        api = workspace.api(key, bare=dice.random() < 0.5)
        if kind == "chat":
            return api.chat(workspace.slug, max_tokens=4).status_code, workspace
        if kind in ("stream", "leave", "gone"):
            response = api.chat(workspace.slug, stream=True, max_tokens=4)
            chunks = iter(response.streaming_content)
            if kind == "stream":
                list(chunks)
            elif kind == "leave":
                next(chunks)
            response.close()
            return response.status_code, workspace
        if kind == "summary":
            return api.summarize("text", max_tokens=4).status_code, workspace
        if kind == "budget":
            response = api.get("/api/budget/")
            assert response.json()["tenant"] == workspace.slug
            return response.status_code, workspace
        if kind == "page":
            return workspace.client().get("/login/").status_code, workspace
        if kind == "bad":
            return api.post("/api/chat/", "{").status_code, workspace
        if kind == "denied":
            return api.chat("hello", model="unpriced").status_code, workspace
        return Client(headers={"host": "localhost", "x-tenant-id": workspace.slug}).get(
            "/api/budget/"
        ).status_code, None


def whole(pool):
    """Every connection is back. The pool takes them back on a thread of its own, so that it may need a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        stats = pool.get_stats()
        if stats["pool_available"] == stats["pool_size"] and not stats.get("requests_waiting"):
            return True
        time.sleep(0.05)
    return False


def test_after_800_mixed_requests_the_pool_is_whole(app, upstream):
    workspaces = [WorkspaceFactory() for _ in range(TENANTS)]
    server = Server(workspaces)
    left, problems = [REQUESTS], []
    lock = threading.Lock()

    def work(seed):
        dice = random.Random(seed)
        while True:
            with lock:
                if left[0] == 0:
                    return
                left[0] -= 1
            try:
                status, _ = server.request(dice)
                if status not in (200, 400, 401, 422):
                    problems.append(status)
            except Exception as exc:
                problems.append(repr(exc))
            # What Django's test client leaves to the test: the end of a request gives its connection back.
            close_old_connections()
            if connection.connection is not None:
                connection.close()
            if current_tenant() is not None or connection.schema_name != "public":
                problems.append("left on a tenant")

    with pooled():
        with ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(work, seed) for seed in range(THREADS)]:
                done.result()
        assert problems == []
        assert whole(connections["default"].pool)
        assert connections["default"].pool.get_stats().get("requests_errors", 0) == 0
    for workspace in workspaces:
        lines = workspace.settled(seconds=30)
        assert workspace.ledger()["spent"] == sum(line.cost for line in lines)
    # The plane's own connections are all back, too.
    assert [workspace.api().chat("again").status_code for workspace in workspaces] == [200] * TENANTS
