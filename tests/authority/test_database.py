"""The database's part: its constraints, its sweep with several sweepers, its migrations."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.support.authority import ROOT


def test_four_sweepers_give_each_hold_back_once(authority, acme, sql):
    for _ in range(30):
        acme.app.hold(10)
    sql(
        """UPDATE reservation r SET deadline_ms = 1 FROM tenant t
        WHERE t.id = r.tenant_id AND t.tenant_id = %s RETURNING 1""",
        acme.tenant_id,
    )

    def sweep(_: int) -> None:
        options = "-c search_path=authority"
        with psycopg.connect(authority.database_url, autocommit=True, options=options) as connection:
            for _ in range(4):
                connection.execute("SELECT sweep(5)")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(sweep, range(4)))
    while sql("SELECT sweep(1000)") != [(0,)]:
        pass
    assert acme.figures()["reserved"] == 0
    assert acme.figures()["remaining"] == 1_000


@pytest.mark.parametrize("figure", ["allocated", "reserved", "spent", "debt", "overdraft_limit"])
def test_no_figure_can_be_written_below_zero(acme, sql, figure):
    with pytest.raises(psycopg.errors.CheckViolation):
        sql(f"UPDATE ledger SET {figure} = -1 WHERE scope = %s RETURNING 1", acme.scope)  # noqa: S608


def test_what_remains_cannot_be_written_at_all(acme, sql):
    with pytest.raises(psycopg.errors.GeneratedAlways):
        sql("UPDATE ledger SET remaining = 5 WHERE scope = %s RETURNING 1", acme.scope)


def test_old_answers_are_forgotten_and_fresh_ones_kept(acme, sql):
    hold = acme.app.hold(10, idempotency_key="old")
    acme.app.hold(10, idempotency_key="fresh")
    owned = "FROM replay p JOIN tenant t ON t.id = p.tenant_id WHERE t.tenant_id = %s"
    sql(
        "UPDATE replay p SET expires_at_ms = 1 FROM tenant t "
        "WHERE t.id = p.tenant_id AND t.tenant_id = %s AND p.key = 'old' RETURNING 1",
        acme.tenant_id,
    )
    assert acme.app.hold(10, idempotency_key="old") != hold
    sql("SELECT purge(1000)")
    assert sql(f"SELECT key {owned} ORDER BY key", acme.tenant_id) == [("fresh",), ("old",)]


def test_the_migrations_say_what_the_models_say(authority):
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "config.settings_authority",
        "DATABASE_URL": authority.database_url,
        "CYCLES_ADMIN_API_KEY": authority.admin_key,
    }
    command = [sys.executable, "-m", "django", "makemigrations", "authority", "--check", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
