"""A storm of real clients in processes of their own, while planes are killed: at the end every figure adds up.

STORM_LIFECYCLES=100000 makes it a long one; STORM_GATHER=off takes the other way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from tests.authority.test_concurrency import drift
from tests.support.authority import ROOT, AuthorityProcess

pytestmark = pytest.mark.slow

LIFECYCLES = int(os.environ.get("STORM_LIFECYCLES", "4000"))
PROCESSES = 2
CLIENTS = 16
BUDGET = 40_000 * max(LIFECYCLES // 4_000, 1)  # runs short at times


@pytest.fixture
def own(authority):
    gather = os.environ.get("STORM_GATHER", "on") == "on"
    process = AuthorityProcess(authority.database_url, authority.admin_key, gather=gather)
    process.start()
    yield process
    process.stop()


def kill_runtime_plane(own) -> None:
    """Without a word; its starter then ends by itself."""
    [plane] = [
        child
        for child in psutil.Process(own.process.pid).children()
        if "billing.authority.runtime" in " ".join(child.cmdline())
    ]
    plane.kill()
    own.process.wait(15)


def test_nothing_is_lost_and_nothing_counts_twice(request, own, open_account, probe, sql):
    accounts = [open_account(f"storm{n}", BUDGET) for n in range(6)]
    for account in accounts:
        probe.create_budget(account.tenant_id, BUDGET, f"{account.scope}/app:chat")
    closed, revoked, *steady = accounts
    ids = [account.tenant_id for account in accounts]
    loads = [start_load(request, own.runtime_port, accounts, seed) for seed in range(PROCESSES)]

    def done() -> int:
        """Lifecycles so far, nearly."""
        return int(sql(
            """SELECT count(*) FROM reservation r JOIN tenant t ON t.id = r.tenant_id WHERE t.tenant_id = ANY (%s)""",
            ids,
        )[0][0])  # fmt: skip

    def wait_for(share: float) -> None:
        while done() < LIFECYCLES * share and any(load.poll() is None for load in loads):
            time.sleep(0.02)

    wait_for(0.1)
    kill_runtime_plane(own)
    own.start()
    kill_runtime_plane(own)  # its restart as well
    own.start()
    wait_for(0.25)
    probe.revoke_key(revoked.key_id)
    probe.change_tenant(closed.tenant_id, status="CLOSED")
    wait_for(0.35)
    for account in steady:
        probe.fund(account.tenant_id, "CREDIT", 5_000)
        probe.fund(account.tenant_id, "RESET", BUDGET * 2)
    wait_for(0.4)
    kill_runtime_plane(own)
    own.start()

    reports = [json.loads(load.communicate(timeout=900)[0]) for load in loads]
    assert all(load.returncode == 0 for load in loads)
    until = time.monotonic() + 75
    while any(account.figures()["reserved"] for account in steady) and time.monotonic() < until:
        time.sleep(0.2)  # the sweep gives back what was left alone
    for account in accounts:
        assert drift(sql, account.tenant_id) == []
    for account in [closed, *steady]:
        assert account.figures()["reserved"] == 0
        assert account.figures(f"{account.scope}/app:chat")["reserved"] == 0
    for account in steady:
        told = sum(report["charged"].get(account.tenant_id, 0) for report in reports)
        figures = account.figures()
        assert figures["spent"] + figures["debt"] == told > 0
    seen = {name: sum(report["seen"].get(name, 0) for report in reports) for name in reports[0]["seen"]}
    print(f"\nstorm: {LIFECYCLES} lifecycles, {seen}")
    assert seen["lost"] > 0
    assert seen["reserve 200"] > LIFECYCLES * 0.3
    assert seen["reserve 409"] > 0


def start_load(request, port: int, accounts, seed: int, *, until_lost: bool = False) -> subprocess.Popen[str]:
    """With `until_lost` it goes on past its last lifecycle until an answer has failed it."""
    orders = {
        "port": port,
        "seed": seed,
        "clients": CLIENTS,
        "lifecycles": LIFECYCLES // PROCESSES,
        "until_lost": until_lost,
        "keys": {account.tenant_id: account.app.key for account in accounts},
    }
    load = subprocess.Popen(
        [sys.executable, "-m", "tests.support.storm"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    request.addfinalizer(load.kill)
    assert load.stdin is not None
    load.stdin.write(json.dumps(orders))
    load.stdin.close()
    load.stdin = None  # communicate() would flush it
    return load
