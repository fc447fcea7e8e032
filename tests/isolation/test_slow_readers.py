"""Many slow streams of one tenant: a neighbour does not notice, all of them are told and charged right, and one more
than is allowed is refused.
"""

from __future__ import annotations

import json
import time

import psutil
import pytest

from tests.support.factories import WorkspaceFactory
from tests.support.jobs import until
from tests.support.plane import PlaneProcess
from tests.support.slow import MODEL, PRICE, Readers, SlowModel
from tests.support.web import WebProcess

pytestmark = pytest.mark.slow

STREAMS = 300
CHUNKS, DELAY = 12, 1.0
WITHIN = 2.0  # seconds, for a neighbour


class FewFiles(PlaneProcess):
    """Started as a shell of macOS starts its processes: a stream takes two of its 256 files."""

    def _command(self) -> list[str]:
        return ["sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", *super()._command()]


@pytest.fixture
def crowd(app, database_url, authority):
    """A workspace with slow streams in one plane, and beside it a web process. The neighbour's model is quick."""
    workspace = WorkspaceFactory()
    workspace.leave(STREAMS * 10_000_000)
    with SlowModel(chunks=CHUNKS, delay=DELAY, waits=True) as slow, SlowModel(chunks=4) as quick:
        variables = {
            "LLM_BASE_URL": f"{quick.url}/v1",
            "LLM_MODEL": "test-model",
            "LLM_PRICES": json.dumps({"test-model": PRICE, MODEL: PRICE}),
            "LLM_DIALECT": json.dumps({MODEL: {"base_url": f"{slow.url}/v1"}}),
            "TENANT_STREAMS_MAX": str(STREAMS),
        }
        parts = {"database_url": database_url, "authority": authority, **variables}
        with FewFiles(**parts) as plane, WebProcess(workers=1, threads=8, **parts) as web:
            yield workspace, slow, plane, web


def rss(process) -> int:
    return int(psutil.Process(process.pid).memory_info().rss) >> 20


def seconds(act) -> float:
    began = time.monotonic()
    assert act().status_code == 200
    return time.monotonic() - began


def test_a_crowd_of_slow_streams_hurts_no_neighbour_and_is_charged_right(crowd, globex, bob):
    workspace, slow, plane, web = crowd
    before = rss(plane.process)
    key = workspace.key()
    readers = Readers(plane, workspace, key, count=STREAMS, max_tokens=20)
    until(lambda: readers.begun == STREAMS, said=lambda: f"{readers.begun} {readers.failures[:3]}")

    with plane.client(globex, globex.key(bob)) as neighbour:
        chats = [seconds(lambda: neighbour.post("/api/chat/", json={"prompt": "hello"})) for _ in range(5)]
    with web.client(globex, globex.key(bob)) as neighbour:
        pages = [seconds(lambda: neighbour.get("/api/budget/")) for _ in range(5)]
    with plane.client(workspace, key) as program:
        refused = program.post("/api/chat/", json={"prompt": "one more"})
    used = rss(plane.process)
    slow.go_on()
    print(f"chat {max(chats):.2f} s, page {max(pages):.2f} s, plane {before} → {used} MB")
    # Of each the quickest: all would be slow where a crowd hurts, and one may be for other reasons.
    assert max(min(chats), min(pages)) < WITHIN

    assert (refused.status_code, refused.json()["error"]) == (429, "rate_limited")
    assert (refused.json()["limit"], refused.json()["in_use"]) == (STREAMS, STREAMS)
    assert int(refused.headers["Retry-After"]) >= 1

    readers.join(60)
    assert (readers.failures, set(readers.statuses)) == ([], {200})
    assert {told[-1][0] for told in readers.events} == {"done"}
    assert {"".join(data["text"] for name, data in told if name == "token") for told in readers.events} == {
        " word" * CHUNKS
    }
    true = slow.counts()["cost"]
    until(lambda: workspace.holds() == 0)
    assert sum(told[-1][1]["cost"]["microcents"] for told in readers.events) == true
    ledger = workspace.ledger()
    lines = workspace.lines()
    assert (len(lines), sum(line.cost for line in lines), ledger["reserved"]) == (STREAMS, true, 0)
    assert {line.outcome for line in lines} == {"exact"}
