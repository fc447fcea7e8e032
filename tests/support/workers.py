"""Which worker runs which file, where several share the tests (`pytest -n`).

Owns the order of the one queue from which each worker takes its next file. A new file needs no entry here.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# What takes half a minute and more comes first: a worker that began one of these last would end long after the others.
# Those that wait for most of their time stand between those that compute.
LONG = (
    "tests/e2e/odd/",
    "tests/isolation/test_pool.py",
    "tests/e2e/",
    "tests/protocol/test_recorded.py",
    "tests/isolation/crawler/",
    # These migrate each workspace of their worker's database: the fewer, the sooner.
    "tests/tenants/test_behind.py",
    "tests/tenants/test_grants.py",
    "tests/billing/test_jobs.py",
    "tests/chat/test_local_model.py",
    "tests/stack/test_supervisor.py",
    "tests/authority/test_openapi.py",
    "tests/engine/test_settling.py",
    "tests/billing/test_guard.py",
    "tests/isolation/test_kills_around.py",
    "tests/chat/test_money_table.py",
)
# The files of these folders share what takes long to make.
WHOLE = ("tests/e2e/odd/", "tests/e2e/", "tests/isolation/crawler/")


class ByFile(LoadScopeScheduling):
    """Hands out whole files, for the tests of a file share processes."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # it would put the files with the most tests first

    def _split_scope(self, nodeid: str) -> str:
        return next((folder for folder in WHOLE if nodeid.startswith(folder)), nodeid.split("::", 1)[0])


def place(nodeid: str) -> int:
    """Where this test stands in the queue. Those with the same place stay in the order in which they were found."""
    return next((place for place, start in enumerate(LONG) if nodeid.startswith(start)), len(LONG))
