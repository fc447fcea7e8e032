"""Postgres is killed under streams: their readers are told the end, and no line is lost once it is back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from config.database import embedded_database
from config.stack.postgres import SharedPostgres
from tests.stack.conftest import environment, forget, kill_server
from tests.support.authority import AuthorityProcess
from tests.support.crash import Reader, model_variables
from tests.support.jobs import until
from tests.support.plane import PlaneProcess
from tests.support.roles import command_variables
from tests.support.web import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.embedded("This kills the Postgres in which the embedded authority keeps its ledgers."),
    pytest.mark.skipif(not embedded_database(), reason="DATABASE_URL names a server that is not ours to kill"),
]

STREAMS = 5


@pytest.fixture
def state():
    """Not pytest's folder: that is closed to the server's user."""
    folder = Path(tempfile.mkdtemp(prefix="stack-", dir="/tmp")).resolve()
    folder.chmod(0o755)
    yield folder / "state"
    forget(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own(state):
    """A Postgres of this test's own, migrated, with an authority and the demo workspace in it."""
    postgres = SharedPostgres(state)
    url = postgres.acquire()
    env = environment(state, **command_variables(url), CYCLES_ADMIN_API_KEY="of-this-test")
    authority = AuthorityProcess(url, "of-this-test", state_dir=state)

    def manage(*command):
        ports = {
            "AUTHORITY_RUNTIME_PORT": str(authority.runtime_port),
            "AUTHORITY_ADMIN_PORT": str(authority.admin_port),
        }
        subprocess.run([sys.executable, "manage.py", *command], cwd=ROOT, env={**env, **ports}, check=True)

    manage("migrate_schemas", "-v0")
    authority.start()
    manage("ensure_demo")
    demo = SimpleNamespace(slug="demo", key=json.loads((state / "demo.json").read_text())["api_key"])
    yield SimpleNamespace(url=url, authority=authority, demo=demo, variables={"STATE_DIR": str(state)})
    authority.stop()
    postgres.release()


def test_lines_are_kept_and_readers_told_when_postgres_is_killed_under_streams(request, state, own, upstream):
    upstream.tokens, upstream.last_word_after = ["word "] * 20, threading.Event()
    variables = {**own.variables, **model_variables(upstream)}
    with PlaneProcess(database_url=own.url, authority=own.authority, **variables) as plane:
        readers = [Reader(plane, own.demo, own.demo.key) for _ in range(STREAMS)]
        assert upstream.wait_until(lambda up: len([used for used in up.spent if used[1] > 1]) == STREAMS, timeout=20)
        kill_server(state)
        upstream.last_word_after.set()
        for reader in readers:
            reader.join(30)
        assert {reader.last[0] for reader in readers} == {"done"}
        again = SharedPostgres(state)
        again.acquire()
        request.addfinalizer(again.release)
        back = time.monotonic()
        with psycopg.connect(own.url, autocommit=True) as database:

            def read(sql):
                return database.execute(sql).fetchall()

            until(lambda: read("SELECT count(*) FROM billing_hold") == [(0,)])
            print(f"settled {time.monotonic() - back:.1f} s after it was back")
            ((schema,),) = read("SELECT schema_name FROM tenants_tenant")
            lines = read(f'SELECT outcome, cost FROM "{schema}".usage_usageline')  # noqa: S608
            ledger = read("SELECT DISTINCT spent, reserved FROM authority.ledger")
    true = sum(tokens_input * 1_000 + tokens_output * 4_000 for tokens_input, tokens_output in upstream.spent)
    assert [outcome for outcome, _ in lines] == ["exact"] * STREAMS
    assert sum(cost for _, cost in lines) == true
    assert ledger == [(true, 0)]
