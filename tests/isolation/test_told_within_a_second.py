"""Two planes and web's workers keep what they know of a key, and each knows within a second what has become of it.

Under load, so that every row is kept and every door is asked all the time; globex is asked beside, and answers on.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import httpx
import pytest
from django.utils import timezone

from tenants.models import Tenant
from tenants.users.keys import digest
from tenants.users.models import ApiKey, User
from tests.support.factories import WorkspaceFactory
from tests.support.plane import PlaneProcess
from tests.support.web import WebProcess

pytestmark = pytest.mark.slow

SOON = 1.0
PRICES = '{"test-model": {"input": 10, "output": 40}}'
CHAT = ("/api/chat/", {"prompt": "hello", "max_tokens": 5})
SUMMARY = ("/api/summarize/", {"text": "hello", "max_tokens": 5})


@pytest.fixture(scope="module")
def doors(database_url, authority, app, upstream_server):
    """(server, what is asked there): three askers each, web's so that both of its workers are asked."""
    given = {
        "LLM_BASE_URL": upstream_server.base_url,
        "LLM_MODEL": "test-model",
        "LLM_PRICES": PRICES,
        "LOOKUPS_KEPT_SECONDS": "30",
    }
    options = {"database_url": database_url, "authority": authority, **given}
    with ExitStack() as stack:
        planes = [stack.enter_context(PlaneProcess(**options)) for _ in range(2)]
        web = stack.enter_context(WebProcess(**options, workers=2, threads=4))
        yield [(planes[0], CHAT), (planes[1], CHAT), (web, SUMMARY), (web, SUMMARY), (web, SUMMARY)]


class Load:
    """Askers that ask until the block ends. `answers`: (door, when it was asked, when answered, status)."""

    def __init__(self, doors, workspace, key):
        self.answers = []
        self._over = threading.Event()
        self._askers = [threading.Thread(target=self._ask, args=(place, *door, workspace, key))
                        for place, door in enumerate(doors)]  # fmt: skip

    def _ask(self, place, server, asked, workspace, key):
        path, body = asked
        headers = {"Host": f"{workspace.host}:{server.port}", "Authorization": f"Bearer {key}"}
        while not self._over.wait(0.05):
            at = time.monotonic()
            # A connection of its own each time, so that any worker may take it.
            answer = httpx.post(f"http://127.0.0.1:{server.port}{path}", json=body, headers=headers, timeout=20)
            self.answers.append((place, at, time.monotonic(), answer.status_code))

    def __enter__(self):
        for asker in self._askers:
            asker.start()
        return self

    def __exit__(self, *exc):
        self._over.set()
        for asker in self._askers:
            asker.join()

    def of_every_door(self, since):
        """What was answered to all that was asked from then on, once each of them has been asked."""
        for _ in range(400):
            found = [(place, status) for place, at, _, status in list(self.answers) if at >= since]
            if {place for place, _ in found} == set(range(len(self._askers))):
                return [status for _, status in found]
            time.sleep(0.05)
        raise AssertionError(f"a door has not answered: {found}")


def revoked(workspace, key):
    with workspace.scope():
        ApiKey.objects.filter(digest=digest(key)).update(revoked_at=timezone.now())


def of_a_viewer(workspace, key):
    with workspace.scope():
        User.objects.update(role="viewer")


def suspended(workspace, key):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(status=Tenant.Status.SUSPENDED)


@pytest.mark.parametrize(
    ("change", "status"),
    [(revoked, 401), (of_a_viewer, 403), (suspended, 403)],
)
def test_every_worker_knows_it_within_a_second(doors, globex, upstream, change, status):
    workspace = WorkspaceFactory()
    key, neighbours = workspace.key(), globex.key()
    with Load(doors, workspace, key) as load, Load(doors[:1], globex, neighbours) as beside:
        before = load.of_every_door(0.0)
        change(workspace, key)
        after = load.of_every_door(time.monotonic() + SOON)
    assert set(before) == {200}
    assert set(after) == {status}
    assert {answered for *_, answered in beside.answers} == {200}
