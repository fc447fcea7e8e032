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
from tests.authority.conftest import Account
from tests.support.authority import ROOT, UNIT
from tests.support.receiver import eventually


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
    assert eventually(lambda: acme.figures()["reserved"] == 0)  # the authority's own sweeper may have some in hand
    assert acme.figures()["remaining"] == 1_000


@pytest.mark.parametrize("figure", ["allocated", "reserved", "spent", "debt", "overdraft_limit"])
def test_no_figure_can_be_written_below_zero(acme, sql, figure):
    with pytest.raises(psycopg.errors.CheckViolation):
        sql(f"UPDATE ledger SET {figure} = -1 WHERE scope = %s RETURNING 1", acme.scope)  # noqa: S608


@pytest.mark.parametrize(
    "values",
    [
        "reserved = -1",
        "status = 'COMMITTED', committed = -1",
        "committed = -1",
        "status = 'COMMITTED'",
        "committed = 0",
        "status = 'RELEASED', committed = 0",
    ],
)
def test_no_reservation_can_be_written_with_an_amount_it_cannot_have(acme, sql, values):
    hold = acme.app.hold(10)
    with pytest.raises(psycopg.errors.CheckViolation):
        sql(f"UPDATE reservation SET {values} WHERE id = %s RETURNING 1", hold)  # noqa: S608


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
    # The authority's own sweeper may have it in hand.
    assert eventually(lambda: ended not in {row[0] for row in sql(left, acme.tenant_id)})
    assert {row[0] for row in sql(left, acme.tenant_id)} == {recent, held}
    assert sql(left, globex.tenant_id) == neighbours != []


def test_a_reservations_id_begins_with_the_moment_it_was_made(acme, sql):
    hold = uuid.UUID(acme.app.hold(10))
    [(created,)] = sql("SELECT created_at_ms FROM reservation WHERE id = %s", str(hold))
    assert (hold.version, hold.variant, hold.int >> 80) == (7, uuid.RFC_4122, created)
    assert len({sql("SELECT new_id(1)")[0][0] for _ in range(20)}) == 20


class Operations:
    """acme's calls on one connection as the plane's are, in one transaction, and what they read of each table."""

    def __init__(self, connection: psycopg.Connection, acme: Account) -> None:
        self.connection, self.calls = connection, 0
        self._who = {"prefix": prefix_of(acme.app.key), "digest": digest_of(acme.app.key)}
        self._target = {"subject_tenant": acme.tenant_id, "scopes": [acme.scope, f"{acme.scope}/app:x"], "unit": UNIT}
        self._words = {"subject": '{"tenant": "acme"}', "action": "{}"}
        self._terms = {"ttl_ms": 60_000, "grace_ms": 0, "policy": None, "dry_run": False, "metadata": None}
        self._used = {"unit": UNIT, "actual": 5, "metrics": None, "metadata": None}

    def each(self) -> None:
        """Every operation of the plane once."""
        self._run("authenticate")
        self._run("decide", **self._target, **self._words, amount=10)
        self._run("commit_reservation", reservation=self._hold(), **self._used)
        self._run("release_reservation", operator=False, reservation=self._hold(), reason=None)
        self._run("extend_reservation", reservation=self._hold(), extend_by_ms=1_000)
        self._run("book_event", **self._target, actual=5, policy=None, details="{}")
        self._gathered()
        self.connection.execute("SELECT sweep(10), purge(10)")

    def read(self) -> dict[str, tuple[int, int, int]]:
        """Of each table: how often all of it was read, how often an index, and rows by an index."""
        rows = self.connection.execute("""SELECT relname, seq_scan, idx_scan, idx_tup_fetch
            FROM pg_stat_xact_user_tables WHERE schemaname = 'authority'
            AND relname IN ('tenant', 'api_key', 'ledger', 'reservation', 'replay')""").fetchall()
        return {name: (int(whole), int(by_index), int(fetched)) for name, whole, by_index, fetched in rows}

    def _hold(self) -> str:
        said = self._run("reserve", **self._target, **self._words, **self._terms, amount=10)
        return str(json.loads(said)["reservation_id"])

    def _asked(self, **parameters: object) -> dict[str, object]:
        self.calls += 1
        key = f"k{self.calls}"
        return {**self._who, "key": key, "request": key.encode(), **parameters}

    def _run(self, operation: str, **parameters: object) -> str:
        said = self._asked(context="{}", **parameters)
        rows = self.connection.execute(STATEMENTS[operation], said).fetchall()
        assert rows[0][0] < 300, rows
        return str(rows[0][2])

    def _gathered(self) -> None:
        wanted: dict[str, object] = {**self._target, **self._words, **self._terms, "operation": "reserve", "amount": 10}
        used: dict[str, object] = {**self._used, "operation": "commit_reservation", "reservation": self._hold()}
        members = [self._asked(**said, place=place) for place, said in enumerate([wanted, used, wanted])]
        rows = self.connection.execute(GATHERED, {"members": json.dumps(members, default=_as_bytea)}).fetchall()
        assert [row[1] for row in rows] == [200, 200, 200]


@pytest.fixture
def operations(authority, acme):
    options = f"-c search_path=authority {BY_INDEX}"
    with psycopg.connect(authority.database_url, options=options, prepare_threshold=1) as connection:
        yield Operations(connection, acme)
        connection.rollback()


def test_every_operation_finds_its_rows_by_an_index_even_in_empty_tables(operations):
    """Plans are kept: one that reads a whole table because it is small still does so when it is large."""
    operations.each()
    read = operations.read()
    assert {name: whole for name, (whole, _, _) in read.items() if whole} == {}
    assert len([name for name, (_, by_index, _) in read.items() if by_index]) == 5


@pytest.mark.parametrize("others", [0, 2_000])
@pytest.mark.parametrize("analyzed", ["never", "when there were forty", "when there were thousands"])
def test_no_operation_reads_more_where_a_tenant_has_thousands_of_ledgers(operations, acme, others, analyzed):
    """It has one for each member and key. By the tenant's index all of them would be read for each call, and by a plan
    that was made when there were a few in all, everybody's.
    """
    execute = operations.connection.execute

    def add_ledgers(scope: str, tenants: str, *values: object) -> None:
        execute(
            "INSERT INTO ledger (ledger_id, tenant_id, scope, unit, allocated)"  # noqa: S608
            f" SELECT gen_random_uuid(), id, {scope}, '{UNIT}', 1000 FROM tenant {tenants}",
            values,
        )

    def ledgers_read() -> int:
        _, _, before = operations.read()["ledger"]
        operations.each()
        _, _, after = operations.read()["ledger"]
        return int(after - before)

    # Rolled back, as all of it. In the order in which a sweep and a purge lock them: those go on beside it.
    execute("TRUNCATE replay, reservation, ledger, fund_operation")
    add_ledgers("%s", "WHERE tenant_id = %s", acme.scope, acme.tenant_id)
    add_ledgers("'few-' || n", ", generate_series(1, 39) AS n WHERE tenant_id = %s", acme.tenant_id)
    if analyzed == "when there were forty":
        execute("ANALYZE ledger, tenant")
    operations.each()
    usual = ledgers_read()
    execute(
        "INSERT INTO tenant (tenant_id, name, status, default_commit_overage_policy, default_reservation_ttl_ms,"
        " max_reservation_ttl_ms, max_reservation_extensions)"
        " SELECT 'other-' || n, '', 'ACTIVE', 'REJECT', 60000, 60000, 1 FROM generate_series(1, %s) AS n",
        [others],
    )
    add_ledgers("'tenant:' || tenant_id", "WHERE tenant_id LIKE 'other-%%'")
    add_ledgers("'many-' || n", ", generate_series(1, 2000) AS n WHERE tenant_id = %s", acme.tenant_id)
    if analyzed == "when there were thousands":
        execute("ANALYZE ledger, tenant")
    for _ in range(8):  # Postgres plans the first few for their own values, where it may
        many = ledgers_read()
    assert usual < 30
    assert many <= usual


def _as_bytea(value: object) -> str:
    assert isinstance(value, bytes)
    return "\\x" + value.hex()


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
