"""`make bench-authority`: what the embedded authority can do on this machine, beside what its SQL alone costs.

Starts the authority over a database of its own, once with gathering and once without, and runs a light client against
it. The client shares the machine; its own CPU is left out of the servers' and printed apart. At the end of each cell
the books are added up in SQL. It writes nothing but that database, which it drops.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import os
import secrets
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import psycopg
import uvloop

from billing.authority.database import BY_INDEX
from config.database import embedded_database, owner_database_url
from config.env import state_dir
from tests.bench.load import UNIT, Tally, run_load
from tests.support.authority import AuthorityProcess

BUDGET = 10**15
OPTIONS = f"-c search_path=authority -c jit=off {BY_INDEX}"
ONE_RESERVE = """SELECT answer_body ->> 'reservation_id' FROM reserve(
    %s, %s, %s, %s, %s, %s::text[], %s, 100::bigint, 60000::bigint, 5000::bigint, 'ALLOW_IF_AVAILABLE', false,
    '{}', '{}', null)"""
ONE_COMMIT = "SELECT answer_status FROM commit_reservation(%s, %s, %s::uuid, %s, %s, %s, 70::bigint, null, null)"
MISMATCHES = """
    WITH held AS (
        SELECT r.tenant_id, s.scope, r.unit, coalesce(sum(r.committed), 0) AS spent,
               coalesce(sum(r.reserved) FILTER (WHERE r.status = 'ACTIVE'), 0) AS reserved
        FROM reservation r, unnest(r.budgeted) AS s(scope) GROUP BY 1, 2, 3)
    SELECT count(*) FROM ledger l LEFT JOIN held h USING (tenant_id, scope, unit)
    WHERE l.reserved <> coalesce(h.reserved, 0) OR l.spent <> coalesce(h.spent, 0)
        OR l.remaining <> l.allocated - l.spent - l.reserved - l.debt"""
# What 30 days leave behind: committed reservations of all tenants in turn, the oldest first, and the kept answers of
# the last day. As large as real ones.
FINISHED = """
    WITH one AS (
        SELECT array_agg(t.id ORDER BY t.id) AS ids, array_agg(t.tenant_id ORDER BY t.id) AS names,
            (SELECT jsonb_build_object('status', 'COMMITTED', 'charged', amount(%(unit)s, 70), 'released',
                amount(%(unit)s, 30), 'balances', balances_of((array_agg(l))[1:2])) FROM ledger l) AS body
        FROM tenant t
    ), past AS (
        SELECT i, one.body, one.ids[i %% %(tenants)s + 1] AS tenant,
            'tenant:' || one.names[i %% %(tenants)s + 1] AS scope,
            now_ms() - ((%(count)s - i) * (29.5 * 86400000 / %(count)s))::bigint AS at
        FROM generate_series(%(first)s::bigint, %(last)s) AS i, one)
    INSERT INTO reservation (id, tenant_id, idempotency_key, status, unit, reserved, committed, overage_policy, scopes,
        budgeted, subject, action, created_at_ms, expires_at_ms, deadline_ms, finalized_at_ms, max_extensions,
        finish_key, finish_digest, finish_body)
    SELECT new_id(at), tenant, 'past-' || i, 'COMMITTED', %(unit)s, 100, 70, 'ALLOW_IF_AVAILABLE',
        ARRAY[scope, scope || '/app:chat'], ARRAY[scope, scope || '/app:chat'],
        '{"tenant": "bench-0123456789ab", "app": "chat"}', '{"kind": "llm.completion", "name": "test-model"}',
        at, at + 60000, at + 65000, at + 900, 10, 'past-' || i || '-c', sha256(i::text::bytea), body
    FROM past"""
ANSWERS = """
    INSERT INTO replay (tenant_id, operation, key, digest, body, expires_at_ms)
    SELECT r.tenant_id, 'reserve', r.idempotency_key, r.finish_digest, r.finish_body, r.created_at_ms + 86400000
    FROM reservation r WHERE r.created_at_ms > now_ms() - 86400000 ON CONFLICT DO NOTHING"""
SPENT = """
    UPDATE ledger AS l SET spent = p.spent FROM (
        SELECT r.tenant_id, sum(r.committed) AS spent FROM reservation r GROUP BY 1) AS p
    WHERE l.tenant_id = p.tenant_id"""


def main() -> None:
    options = parse_arguments()
    from config.stack.postgres import SharedPostgres

    postgres = SharedPostgres(state_dir()) if embedded_database() else None
    if postgres is not None:
        postgres.acquire()
    try:
        with own_database() as url:
            run(options, url)
    finally:
        if postgres is not None:
            postgres.release()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Lifecycles (reserve + commit, two budgets) of the embedded authority."
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 200])
    parser.add_argument("--tenants", type=int, nargs="+", default=[1, 100, 10_000])
    parser.add_argument("--seconds", type=float, default=2.0, help="of one cell (2)")
    parser.add_argument("--repeat", type=int, default=3, help="cells of one kind; the best is shown (3)")
    parser.add_argument("--gather", choices=["on", "off"], nargs="+", default=["on", "off"])
    parser.add_argument(
        "--finished", type=int, default=0, help="reservations of the last 30 days to lie there before (0)"
    )
    parser.add_argument(
        "--refused", choices=["none", "half"], nargs="+", default=["none", "half"],
        help="half: every second reserve asks for more than there is",
    )  # fmt: skip
    return parser.parse_args()


@contextmanager
def own_database() -> Iterator[str]:
    url = owner_database_url()
    name = f"bench_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            base, _, query = url.partition("?")
            yield f"{base.rpartition('/')[0]}/{name}?{query}"
        finally:
            _drop(connection, name)


def _drop(connection: psycopg.Connection[Any], name: str) -> None:
    while True:
        try:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
            return
        except psycopg.errors.InsufficientPrivilege:
            time.sleep(0.2)  # Postgres' own worker is there, which vacuums, and which we may not end


def run(options: argparse.Namespace, url: str) -> None:
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; best of {options.repeat} × {options.seconds} s"
    )
    widths = {"refused": 8, "tenants": 8, "clients": 8, "per s": 8, "noise": 7, "p50 ms": 8, "p99 ms": 8, "CPU ms": 8,
              "python": 8, "postgres": 9, "client": 8, "errors": 7, "wrong": 6}  # fmt: skip
    print(f"{'gather':7}" + "".join(f"{name:>{width}}" for name, width in widths.items()))
    for gather in options.gather:
        process = AuthorityProcess(url, "bench-" + secrets.token_hex(8), gather=gather == "on")
        process.start()
        try:
            with (
                psycopg.connect(url, autocommit=True, options=OPTIONS) as floor,
                psycopg.connect(url, autocommit=True, options="-c search_path=authority -c jit=off") as connection,
            ):
                for tenants in options.tenants:
                    keys = make_tenants(connection, tenants)
                    fill(connection, options.finished)
                    for refused, clients in itertools.product(options.refused, options.clients):
                        print_cell(options, connection, process, keys, clients, gather, refused)
                if gather == options.gather[-1]:
                    print_floor(floor, options.seconds)
                    print_client(process, connection, options.seconds)
        finally:
            process.stop()


def _prefix(numbers: Iterator[int] = itertools.count()) -> str:  # noqa: B008 - one count for all
    """The five characters by which a key is found. By chance, two of 10,000 would be the same once in twenty runs."""
    return f"{next(numbers):05d}"


def make_tenants(connection: Any, count: int) -> dict[str, str]:
    """Tenants with a key and two ledgers each; all at once, as 10,000 of them over HTTP would take minutes."""
    names = [uuid.uuid4().hex for _ in range(count)]
    keys = {f"bench-{name[:12]}": f"cyc_live_{_prefix()}{secrets.token_urlsafe(20)}" for name in names}
    with connection.cursor() as cursor:
        cursor.executemany(
            """WITH t AS (INSERT INTO tenant (tenant_id, name, status, default_commit_overage_policy,
                   default_reservation_ttl_ms, max_reservation_ttl_ms, max_reservation_extensions)
                   VALUES (%(id)s, 'bench', 'ACTIVE', 'ALLOW_IF_AVAILABLE', 60000, 3600000, 10) RETURNING id),
               k AS (INSERT INTO api_key (key_id, prefix, digest, name, permissions, status, tenant_id, expires_at)
                   SELECT %(id)s, %(prefix)s, %(digest)s, 'bench', '[]', 'ACTIVE', t.id, 'infinity' FROM t)
               INSERT INTO ledger (ledger_id, tenant_id, scope, unit, allocated)
               SELECT gen_random_uuid(), t.id, s.scope, %(unit)s, %(budget)s
               FROM t, unnest(ARRAY['tenant:' || %(id)s, 'tenant:' || %(id)s || '/app:chat']) AS s(scope)""",
            [
                {"id": tenant, "prefix": key[:14], "digest": hashlib.sha256(key.encode()).digest(), "unit": UNIT,
                 "budget": BUDGET}
                for tenant, key in keys.items()
            ],
        )  # fmt: skip
    connection.execute("ANALYZE")
    return keys


def fill(connection: Any, count: int) -> None:
    """Bring the number of finished reservations to `count`, with the ledgers that they belong to."""
    [(there, tenants)] = connection.execute(
        "SELECT (SELECT count(*) FROM reservation), (SELECT count(*) FROM tenant)"
    ).fetchall()
    if there >= count:
        return
    started = time.monotonic()
    connection.execute("SET synchronous_commit = off")
    for first in range(there + 1, count + 1, 100_000):
        last = min(first + 99_999, count)
        connection.execute(FINISHED, {"tenants": tenants, "count": count, "first": first, "last": last, "unit": UNIT})
    connection.execute(ANSWERS)
    connection.execute(SPENT)
    connection.execute("VACUUM ANALYZE")
    connection.execute("RESET synchronous_commit")
    connection.execute("CHECKPOINT")
    size = connection.execute("SELECT pg_size_pretty(pg_database_size(current_database()))").fetchone()[0]
    print(f"{count} finished reservations laid down in {time.monotonic() - started:.0f} s, {size}", flush=True)


def cpu_seconds(connection: Any, process: AuthorityProcess) -> tuple[float, float]:
    """CPU used so far by the authority's processes and by Postgres (0 where Postgres runs elsewhere)."""
    assert process.process is not None
    parent = psutil.Process(process.process.pid)
    servers = sum(sum(p.cpu_times()[:2]) for p in [parent, *parent.children(recursive=True)])
    try:
        postmaster = psutil.Process(connection.info.backend_pid).parent()
        assert postmaster is not None
    except psutil.NoSuchProcess:
        return servers, 0.0
    family = [postmaster, *postmaster.children()]
    return servers, sum(sum(p.cpu_times()[:2]) for p in family) + sum(postmaster.cpu_times()[2:4])


def print_cell(
    options: argparse.Namespace, connection: Any, process: AuthorityProcess, keys: dict[str, str], clients: int,
    gather: str, refused: str,
) -> None:  # fmt: skip
    cells = [
        one_cell(connection, process, keys, clients, options.seconds, refused == "half") for _ in range(options.repeat)
    ]
    rates = [cell[0] for cell in cells]
    rate, tally, python, postgres, client = max(cells, key=lambda cell: cell[0])
    wrong = connection.execute(MISMATCHES).fetchone()[0]
    errors = sum(sum(cell[1].errors.values()) for cell in cells)
    print(f"{gather:7}{refused:>8}{len(keys):8}{clients:8}{rate:8.0f}{1 - min(rates) / max(*rates, 1):7.0%}"
          f"{tally.percentile(0.5):8.2f}{tally.percentile(0.99):8.2f}{python + postgres:8.2f}{python:8.2f}"
          f"{postgres:9.2f}{client:8.2f}{errors:7}{wrong:6}", flush=True)  # fmt: skip


def one_cell(
    connection: Any, process: AuthorityProcess, keys: dict[str, str], clients: int, seconds: float, refused: bool
) -> tuple[float, Tally, float, float, float]:
    """Lifecycles per second, what the client saw, and CPU-ms per lifecycle of servers, Postgres and client."""
    before, own, started = cpu_seconds(connection, process), time.process_time(), time.monotonic()
    gc.disable()
    tally = uvloop.run(
        run_load(
            process.runtime_port, keys, clients=clients, seconds=seconds,
            too_much=BUDGET * 2 if refused else 0, refused_every=2 if refused else 0,
        )
    )  # fmt: skip
    gc.enable()
    spent = time.monotonic() - started
    after, own = cpu_seconds(connection, process), time.process_time() - own
    count = max(tally.lifecycles, 1)
    python, postgres = ((after[i] - before[i]) * 1000 / count for i in (0, 1))
    return tally.lifecycles / spent, tally, python, postgres, own * 1000 / count


def print_floor(connection: Any, seconds: float) -> None:
    """The same lifecycle without HTTP: the one-op functions over one connection, from psycopg's two sides."""
    [(tenant, secret)] = make_tenants(connection, 1).items()
    credentials = (secret[:14], hashlib.sha256(secret.encode()).digest())
    scopes = [f"tenant:{tenant}", f"tenant:{tenant}/app:chat"]

    def parameters() -> tuple[list[object], str]:
        key = uuid.uuid4().hex
        return [*credentials, tenant, key, b"x", scopes, UNIT], key

    def sync_lifecycle() -> None:
        reserve, key = parameters()
        hold = connection.execute(ONE_RESERVE, reserve).fetchone()[0]
        connection.execute(ONE_COMMIT, [*credentials, hold, key, b"x", UNIT])

    async def async_lifecycles(url: str) -> tuple[int, float]:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True, options=OPTIONS) as line:
            count, started = 0, time.monotonic()
            while time.monotonic() - started < seconds:
                reserve, key = parameters()
                row = await (await line.execute(ONE_RESERVE, reserve)).fetchone()
                assert row is not None
                await (await line.execute(ONE_COMMIT, [*credentials, row[0], key, b"x", UNIT])).fetchone()
                count += 1
            return count, time.monotonic() - started

    count, own, started = 0, time.process_time(), time.monotonic()
    while time.monotonic() - started < seconds:
        sync_lifecycle()
        count += 1
    print(f"floor   psycopg sync, one connection, no HTTP: {count / (time.monotonic() - started):.0f}/s, "
          f"{(time.process_time() - own) * 1000 / count:.2f} ms python")  # fmt: skip
    own = time.process_time()
    count, spent = uvloop.run(async_lifecycles(connection.info.dsn))
    print(
        f"floor   psycopg async, the same: {count / spent:.0f}/s, {(time.process_time() - own) * 1000 / count:.2f} ms"
    )


def print_client(process: AuthorityProcess, connection: Any, seconds: float) -> None:
    """The latency of the client that apps use, one at a time."""
    from runcycles import CyclesClient, CyclesConfig

    [(tenant, secret)] = make_tenants(connection, 1).items()
    client = CyclesClient(CyclesConfig(base_url=process.runtime_url, api_key=secret, tenant=tenant))
    times: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        body = {
            "idempotency_key": uuid.uuid4().hex,
            "subject": {"tenant": tenant, "app": "chat"},
            "action": {"kind": "llm.completion", "name": "test-model"},
            "estimate": {"unit": UNIT, "amount": 100},
            "ttl_ms": 60_000,
        }
        started = time.perf_counter()
        answer = client.create_reservation(body)
        hold = answer.get_body_attribute("reservation_id")
        actual = {"idempotency_key": uuid.uuid4().hex, "actual": {"unit": UNIT, "amount": 70}}
        committed = client.commit_reservation(str(hold), actual)
        assert committed.is_success, committed
        times.append((time.perf_counter() - started) * 1000)
    times.sort()
    print(f"client  runcycles, create and commit: p50 {times[len(times) // 2]:.2f} ms, "
          f"p99 {times[int(len(times) * 0.99)]:.2f} ms, {len(times)} lifecycles")  # fmt: skip


if __name__ == "__main__":
    main()
