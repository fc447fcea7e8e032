"""A plane that can open no further file or socket: what it cannot begin it refuses by name, and it goes on."""

import resource
import threading
from pathlib import Path

import pytest

from tests.support.crash import Reader, model_variables
from tests.support.jobs import until
from tests.support.money import assert_books_agree, eventually, true_cost
from tests.support.plane import PlaneProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="The files of a running process are bounded by Linux."),
]

STREAMS, FILES_LEFT = 10, 14  # a stream takes two, and holds and settles by others


def test_calls_that_find_no_socket_are_refused_by_name_and_those_under_way_are_charged_once(
    workspace, database_url, authority, upstream
):
    upstream.tokens = ["word "] * 20
    key = workspace.key()
    with PlaneProcess(database_url=database_url, authority=authority, **model_variables(upstream)) as plane:

        def ask():
            with plane.client(workspace, key) as client:
                return client.post("/api/chat/", json={"prompt": "hello"}).status_code

        assert ask() == 200
        pid = plane.process.pid
        most = len(list(Path(f"/proc/{pid}/fd").iterdir())) + FILES_LEFT
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        upstream.last_word_after = threading.Event()
        readers = [Reader(plane, workspace, key) for _ in range(STREAMS)]
        # All at once: what was begun is under way until the others were refused.
        until(lambda: all(reader.status == 200 or not reader.is_alive() for reader in readers))
        upstream.last_word_after.set()
        for reader in readers:
            reader.join(30)
        # Who found no place on the plane's own socket was hung up on, and has none.
        refused = [reader for reader in readers if reader.status not in (0, 200)]
        assert refused, "there were enough files for all of them"
        assert {reader.status for reader in refused} <= {502, 503}
        assert all('"retry_after_ms"' in reader.lines[0] for reader in refused)
        assert {reader.last[0] for reader in readers if reader.status == 200} <= {"done", "error"}
        assert eventually(lambda: ask() == 200, seconds=10)
    assert_books_agree(workspace)
    assert workspace.ledger()["spent"] == true_cost(upstream.spent)
