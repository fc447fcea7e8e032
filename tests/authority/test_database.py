"""The database's part: its constraints, its sweep with several sweepers, its migrations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from billing.authority.database import BY_INDEX, GATHERED, STATEMENTS
from billing.authority.keys import digest_of, prefix_of
from tests.support.authority import ROOT, UNIT


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


def test_a_month_after_its_end_a_reservation_is_forgotten_and_no_other(acme, globex, sql):
    ended, recent, held = acme.app.hold(10), acme.app.hold(10), acme.app.hold(10)
    left = "SELECT r.id::text FROM reservation r JOIN tenant t ON t.id = r.tenant_id WHERE t.tenant_id = %s"
    neighbours = sql(left, globex.tenant_id)
    for hold in (ended, recent):
        acme.app.commit(hold, 5)
    for hold, days in ((ended, 31), (held, 31), (recent, 29)):
        sql(  # their ids stay: those made before ids began with their moment must be found too
            """UPDATE reservation r SET created_at_ms = r.created_at_ms - a.ms,
                finalized_at_ms = r.finalized_at_ms - a.ms,
                deadline_ms = r.deadline_ms - CASE r.status WHEN 'ACTIVE' THEN 0 ELSE a.ms END
            FROM (SELECT %s * 86400000::bigint AS ms) AS a WHERE r.id = %s RETURNING 1""",
            days,
            hold,
        )
    sql("SELECT purge(1000)")
    assert {row[0] for row in sql(left, acme.tenant_id)} == {recent, held}
    assert sql(left, globex.tenant_id) == neighbours != []


def test_a_reservations_id_begins_with_the_moment_it_was_made(acme, sql):
    hold = uuid.UUID(acme.app.hold(10))
    [(created,)] = sql("SELECT created_at_ms FROM reservation WHERE id = %s", str(hold))
    assert (hold.version, hold.variant, hold.int >> 80) == (7, uuid.RFC_4122, created)
    assert len({sql("SELECT new_id(1)")[0][0] for _ in range(20)}) == 20


def test_every_operation_finds_its_rows_by_an_index_even_in_empty_tables(authority, acme):
    """Plans are kept: one that reads a whole table because it is small still does so when it is large."""
    who = {"prefix": prefix_of(acme.app.key), "digest": digest_of(acme.app.key)}
    about = {"subject": '{"tenant": "acme"}', "action": "{}"}
    target = {"subject_tenant": acme.tenant_id, "scopes": [acme.scope], "unit": UNIT}
    options = f"-c search_path=authority {BY_INDEX}"

    with psycopg.connect(authority.database_url, options=options) as connection:

        def run(operation: str, key: str = "", **parameters: object) -> str:
            said = {**who, "key": key, "request": key.encode(), "context": "{}", **parameters}
            rows = connection.execute(STATEMENTS[operation].encode(), said).fetchall()
            assert rows[0][0] < 300, rows
            return str(rows[0][2])

        def hold(key: str) -> str:
            terms = {"ttl_ms": 60_000, "grace_ms": 0, "policy": None, "dry_run": False, "metadata": None}
            return str(json.loads(run("reserve", key, **target, **about, **terms, amount=10))["reservation_id"])

        run("authenticate")
        run("decide", "d", **target, **about, amount=10)
        used = {"unit": UNIT, "actual": 5, "metrics": None, "metadata": None}
        run("commit_reservation", "c", reservation=hold("1"), **used)
        run("release_reservation", "l", operator=False, reservation=hold("2"), reason=None)
        run("extend_reservation", "e", reservation=hold("3"), extend_by_ms=1_000)
        run("book_event", "v", **target, actual=5, policy=None, details="{}")
        connection.execute(GATHERED, {"members": "[]"})
        connection.execute("SELECT sweep(10), purge(10)")
        read = connection.execute("""SELECT relname, seq_scan, idx_scan FROM pg_stat_xact_user_tables
            WHERE schemaname = 'authority' AND relname IN ('tenant', 'api_key', 'ledger', 'reservation', 'replay')""")
        scans = {name: (whole, by_index) for name, whole, by_index in read.fetchall()}
        connection.rollback()
    assert {name: whole for name, (whole, _) in scans.items() if whole} == {}
    assert len([name for name, (_, by_index) in scans.items() if by_index]) == 5


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
