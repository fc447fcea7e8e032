"""Postgres itself is killed under load: what was answered is not lost, nothing counts twice, and it is soon back."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import uuid
from pathlib import Path

import psycopg
import pytest

from config.database import embedded_database
from config.stack.postgres import SharedPostgres
from tests.authority import test_storm
from tests.authority.conftest import Account
from tests.stack.conftest import forget, kill_server
from tests.support.authority import AuthorityProbe, AuthorityProcess, RuntimeCaller

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not embedded_database(), reason="DATABASE_URL names a server that is not ours to kill"),
]

BUDGET = 200_000
CONNECTIONS = 2  # of the plane, as AuthorityProcess starts it


@pytest.fixture
def state():
    """A Postgres of this test's own. Not pytest's folder: that is closed to the server's user."""
    folder = Path(tempfile.mkdtemp(prefix="stack-", dir="/tmp")).resolve()
    folder.chmod(0o755)
    yield folder / "state"
    forget(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own(state):
    """An authority on it; the fixture's own hold keeps the server up until the test kills it."""
    postgres = SharedPostgres(state)
    process = AuthorityProcess(postgres.acquire(), "admin-key-of-this-test")
    process.start()
    yield process
    process.stop()
    postgres.release()


def open_account(own, probe) -> Account:
    tenant_id = f"killed-{uuid.uuid4().hex[:8]}"
    probe.create_tenant(tenant_id)
    probe.create_budget(tenant_id, BUDGET)
    probe.create_budget(tenant_id, BUDGET, f"tenant:{tenant_id}/app:chat")
    key = probe.create_key(tenant_id)
    return Account(tenant_id, key["key_id"], RuntimeCaller(own.runtime_url, tenant_id, key["key_secret"]), probe)


def test_what_was_answered_is_kept_through_a_kill_of_postgres(request, monkeypatch, state, own):
    monkeypatch.setattr(test_storm, "LIFECYCLES", 1_600)
    probe = AuthorityProbe(own)
    accounts = [open_account(own, probe) for _ in range(3)]
    # However fast they are, they are under way when the server is killed.
    loads = [test_storm.start_load(request, own.runtime_port, accounts, seed, until_lost=True) for seed in range(2)]
    while sum(account.figures()["spent"] for account in accounts) == 0:
        time.sleep(0.05)
    time.sleep(0.5)

    kill_server(state)
    again = SharedPostgres(state)
    url = again.acquire()
    request.addfinalizer(again.release)
    # The plane is back with it: at once, but for what each of its connections may have to find out.
    caller, query = accounts[0].app.http, {"tenant": accounts[0].tenant_id}
    statuses = [caller.get("/v1/balances", params=query).status_code for _ in range(10)]
    assert statuses[CONNECTIONS:] == [200] * (10 - CONNECTIONS), statuses

    reports = [json.loads(load.communicate(timeout=300)[0]) for load in loads]
    assert all(load.returncode == 0 for load in loads)
    assert sum(report["seen"].get("500", 0) + report["seen"].get("lost", 0) for report in reports) > 0
    until = time.monotonic() + 75
    while any(account.figures()["reserved"] for account in accounts) and time.monotonic() < until:
        time.sleep(0.2)
    for account in accounts:
        figures = account.figures()
        told = sum(report["charged"].get(account.tenant_id, 0) for report in reports)
        assert figures["reserved"] == 0
        assert figures["spent"] + figures["debt"] == told > 0
    with psycopg.connect(url, options="-c search_path=authority") as connection:
        committed = connection.execute(
            "SELECT count(*) FROM ledger WHERE remaining <> allocated - spent - reserved - debt"
        ).fetchone()
    assert committed == (0,)
    probe.close()
