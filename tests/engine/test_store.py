"""The engine's connections to Postgres: what becomes of a statement that must wait, for one or for a lock."""

import asyncio
import random
from contextlib import asynccontextmanager, contextmanager

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from billing.engine import store as store_module
from billing.engine.loop import here, run
from billing.engine.statements import in_schema
from billing.engine.store import FAILURES, SchemaIsGone, Store
from tenants.connections import own_connection_params
from tests.support.money import assert_books_agree, eventually, is_settled
from tests.support.only_reads import only_reads

pytestmark = pytest.mark.usefixtures("app")


@asynccontextmanager
async def opened(size):
    store = Store(size=size)
    try:
        yield store
    finally:
        await store.close()


async def _cancelled_after(turns: int) -> str:
    """How a statement ends that is cancelled so many turns of the loop after its connection has come free."""
    store = Store(size=1)
    try:
        pool = await store._open()
        async with pool.connection():
            waiting = asyncio.create_task(store.fetch("SELECT pg_sleep(30)"))
            await asyncio.sleep(0.02)
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        (ended,) = await asyncio.gather(waiting, return_exceptions=True)
        return type(ended).__name__
    finally:
        await store.close()


@pytest.mark.parametrize("turns", range(10))
def test_a_reader_who_leaves_as_a_connection_comes_free_is_not_overheard(turns):
    assert run(_cancelled_after(turns)) == "CancelledError"


@pytest.fixture
def asked():
    """The numbers of the backends that so many statements side by side are answered by."""

    async def ask(store, times):
        rows = await asyncio.gather(*(store.fetch("SELECT pg_backend_pid() FROM pg_sleep(0.02)") for _ in range(times)))
        return [row[0][0] for row in rows]

    return ask


async def filled(store):
    """The pool with all of its connections: to open one may take longer than all that a test asks for."""
    pool = await store._open()
    for connection in [await pool.getconn() for _ in range(store._size)]:
        await pool.putconn(connection)


def test_connections_stay_out_for_the_next_statements_and_keep_nobody_waiting(asked, monkeypatch):
    async def ask():
        async with opened(2) as store:
            await filled(store)
            (first,) = [*await asked(store, 1), *await asked(store, 1)][1:]
            (out,) = store._aside
            assert out.info.backend_pid == first
            # Those beside have the pool's, and all of them wait for either.
            both = await asked(store, 6)
            assert first in both
            assert len(set(both)) == 2
            assert {one.info.backend_pid for one in store._aside} == set(both)
            # Now and then the pool sees them, and ends what is too old.
            monkeypatch.setattr(store, "_aside_until", 0.0)
            for one in store._aside:
                one._expire_at = 0.0
            assert (await asked(store, 1))[0] in both
            assert store._aside == []
            assert not set(both) & set(await asked(store, 4))
        assert store._aside == []

    run(ask())


def test_a_statement_that_is_thrown_away_when_its_loop_has_ended_ends_its_connection():
    """As when a process ends before the database has answered: nobody is left to put it into the pool."""
    store = Store(size=1)

    async def begin():
        for _ in range(2):
            await store.fetch("SELECT 1")
        (connection,) = store._aside
        statement = store.fetch("SELECT pg_sleep(1)")
        statement.send(None)
        return connection, statement

    with asyncio.Runner() as runner:
        connection, statement = runner.run(begin())
        assert not connection.closed
        statement.close()
        assert connection.closed
        runner.run(store.close())


def test_what_is_kept_of_each_statement_is_not_its_rows_and_the_connection_keeps_it_out_and_in():
    async def ask():
        async with opened(1) as store:
            for n in range(40):
                statement = f"SELECT n, %s::text FROM generate_series({n}, {n + n % 2}) AS n"  # noqa: S608
                for word in ("a", None, "b"):
                    rows = [(n, word), (n + 1, word)][: 1 + n % 2]
                    assert await store.fetch(statement, [word]) == rows
            kept = "SELECT count(*) FROM generate_series(1, %s)"
            for count in (1, 2, 3):
                assert await store.fetch(kept, [count]) == [(count,)]
            assert await store.fetch("DROP TABLE IF EXISTS public.there_is_no_such_table") == []
            (out,) = store._aside
            known = out._asked
            assert known[kept, False].names
            assert out._values.pgresult is None
            store._put(store._pool, store._aside.pop())
            await store.fetch(kept, [1])
            assert store._aside[0]._asked is known

    run(ask())


def test_a_connection_that_was_lost_while_it_was_out_is_given_up_for_another(asked):
    async def ask():
        async with opened(1) as store:
            pids = [*await asked(store, 1), *await asked(store, 1)]
            with psycopg.connect(**own_connection_params(), autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 20000)", [pids[1]])
            # A statement that was sent on it would be lost; this one is not.
            assert (await asked(store, 1))[0] not in pids

    run(ask())


def test_connections_that_were_lost_out_of_the_pool_are_given_up_for_others(asked):
    """They are asked nothing meanwhile, and a crowd would meet them all at once."""

    async def ask():
        async with opened(4) as store:
            await filled(store)
            await asked(store, 8)
            pids = set(await asked(store, 8))
            assert len(pids) > 1
            out = store._aside[-1].info.backend_pid
            with psycopg.connect(**own_connection_params(), autocommit=True) as other:
                for pid in pids - {out}:
                    other.execute("SELECT pg_terminate_backend(%s, 20000)", [pid])
            assert set(await asked(store, 8)) & pids == {out}

    run(ask())


@pytest.mark.parametrize("turns", range(6))
def test_a_connection_that_is_out_is_not_lost_with_a_reader_who_leaves(asked, turns):
    async def ask():
        async with opened(1) as store:
            await asked(store, 1)
            await asked(store, 1)
            leaving = asyncio.create_task(store.fetch("SELECT pg_sleep(30)"))
            for _ in range(turns):
                await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            async with asyncio.timeout(20):
                assert len(await asked(store, 4)) == 4

    run(ask())


def test_a_connection_is_not_lost_with_a_reader_who_leaves_while_it_is_given_back(asked):
    """One after the other they were, until every call of the process waited for one that never came back."""

    async def ask():
        async with opened(1) as store:
            pool = await store._open()
            leaving = asyncio.create_task(store.fetch("SELECT pg_sleep(0.05)"))
            await asyncio.sleep(0.02)
            # Others are at the pool in that moment.
            async with pool._lock:
                await asyncio.sleep(0.1)
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
            async with asyncio.timeout(20):
                assert len(await asked(store, 4)) == 4

    run(ask())


@pytest.mark.parametrize("turns", range(4))
def test_a_connection_that_is_handed_over_is_not_lost_with_a_reader_who_leaves_just_then(asked, turns):
    async def ask():
        async with opened(1) as store:
            await asked(store, 2)
            before = asyncio.create_task(store.fetch("SELECT pg_sleep(0.02)"))
            await asyncio.sleep(0)
            leaving, after = (asyncio.create_task(store.fetch(f"SELECT pg_sleep({s}), 7")) for s in (30, 0))
            await before
            for _ in range(turns):
                await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            async with asyncio.timeout(20):
                assert (await after)[0][1] == 7

    run(ask())


def test_who_waits_for_a_connection_is_served_in_turn_or_told_that_it_takes_too_long(asked, monkeypatch):
    store, served = Store(size=1), []

    async def one(n):
        await store.fetch("SELECT 1")
        served.append(n)

    async def ask():
        try:
            await asked(store, 2)
            await asyncio.gather(*(one(n) for n in range(40)))
            assert served == list(range(40))
            monkeypatch.setattr(store_module, "WAIT_SECONDS", 0.1)
            hanging = asyncio.create_task(store.fetch("SELECT pg_sleep(30)"))
            await asyncio.sleep(0)
            with pytest.raises(PoolTimeout):
                await one("too late")
            monkeypatch.setattr(store_module, "WAIT_SECONDS", 20.0)
            hanging.cancel()
            # Its connection cannot be used any more, and another takes its place.
            async with asyncio.timeout(20):
                await asyncio.gather(hanging, one("next"), return_exceptions=True)
            assert served[40:] == ["next"]
        finally:
            await store.close()

    run(ask())


def test_who_waits_for_a_connection_when_the_process_ends_is_told_so(asked):
    store = Store(size=1)

    async def ask():
        await asked(store, 2)
        hanging, waiting = (asyncio.create_task(store.fetch("SELECT pg_sleep(0.5)")) for _ in range(2))
        await asyncio.sleep(0.05)
        await store.close()
        with pytest.raises(FAILURES):
            await waiting
        await hanging

    run(ask())


def test_a_crowd_that_comes_and_goes_takes_no_connection_along(asked):
    store, chance = Store(size=2), random.Random(5)

    async def leave(asking, turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()

    async def ask():
        try:
            await filled(store)
            for _ in range(150):
                crowd = [asyncio.create_task(store.fetch("SELECT 1")) for _ in range(16)]
                left = [leave(asking, chance.randrange(40)) for asking in chance.sample(crowd, 8)]
                async with asyncio.timeout(20):
                    await asyncio.gather(*crowd, *left, return_exceptions=True)
            assert len(set(await asked(store, 16))) == 2
        finally:
            await store.close()

    run(ask())


def test_a_workspace_whose_tables_are_locked_keeps_no_connection_from_the_others(acme, globex, monkeypatch):
    """A migration locks them. Waiting for them, four calls took the plane's four connections."""
    locked, free = (in_schema("SELECT 7 FROM {schema}.users_user", one.tenant.schema_name) for one in (acme, globex))
    store, waited = Store(size=1), []
    note = store._note_locked
    monkeypatch.setattr(store, "_note_locked", lambda query: (waited.append(query), note(query)))
    monkeypatch.setattr(store_module, "LOCKED_SECONDS", 60.0)

    async def ask() -> None:
        async def refused() -> None:
            with pytest.raises(FAILURES):
                await store.fetch(locked)

        try:
            await store.fetch(free)
            async with asyncio.timeout(20):
                await asyncio.gather(*(refused() for _ in range(20)))
                assert (await store.fetch(free))[0][0] == 7
        finally:
            await store.close()

    with psycopg.connect(**own_connection_params()) as migrating:
        migrating.execute(in_schema("LOCK TABLE {schema}.users_user IN ACCESS EXCLUSIVE MODE", acme.tenant.schema_name))
        run(ask())
        assert waited == [locked]  # and tells the others
        migrating.rollback()


def test_a_statement_is_answered_after_a_migration_has_widened_what_it_reads():
    """Postgres refuses one that it had planned before. Every call of a process was one, for a quarter of an hour."""
    store = Store(size=2)

    async def ask(times):
        read = "SELECT name, pg_backend_pid() FROM public.widened, pg_sleep(0.01)"
        return {row for rows in await asyncio.gather(*(store.fetch(read) for _ in range(times))) for row in rows}

    with psycopg.connect(**own_connection_params(), autocommit=True) as migrating:
        migrating.execute("CREATE TABLE public.widened AS SELECT 'a'::varchar(3) AS name")
        try:
            run(filled(store))
            before = run(ask(8)) | run(ask(8))
            assert len(before) == 2
            migrating.execute("ALTER TABLE public.widened ALTER COLUMN name TYPE varchar(9)")
            assert run(ask(8)) | run(ask(8)) == before
        finally:
            run(store.close())
            migrating.execute("DROP TABLE public.widened")


@pytest.fixture
def read_only():
    """As a host makes a server whose disk is full, or one that another has taken the place of: it answers, and takes
    nothing. The block is that time; sessions that were begun in it stay so.
    """

    async def anew():
        await here().store.close()

    @contextmanager
    def block():
        with only_reads():
            run(anew())
            yield

    yield block
    # One of that time is left in a pool until a statement that writes meets it: the next test's would.
    run(anew())


@pytest.mark.usefixtures("trusted")
def test_a_database_that_only_reads_is_said_to_be_away_and_calls_are_made_as_soon_as_it_writes(
    workspace, upstream, read_only
):
    api = workspace.api()
    assert api.chat().status_code == 200
    again = {"headers": {"idempotency-key": "a key"}}
    with read_only():
        for _ in range(3):
            refused = api.chat()
            assert (refused.status_code, refused.json()["error"]) == (503, "unavailable")
            assert int(refused["Retry-After"]) > 0
            refused = api.post("/api/chat/", {"prompt": "hello"}, **again)
            assert (refused.status_code, refused.json()["error"]) == (503, "unavailable")
        assert eventually(lambda: is_settled(workspace))
    assert len(upstream.calls) == 1
    # Sessions of that time would go on refusing for a quarter of an hour.
    assert eventually(lambda: api.chat().status_code == 200, seconds=30)
    assert eventually(lambda: api.post("/api/chat/", {"prompt": "hello"}, **again).status_code == 200, seconds=30)
    assert_books_agree(workspace)


def test_what_the_engine_could_not_write_because_a_schema_is_gone_is_told_to_the_operator(caplog):
    """Such as the line of a call that is settled when somebody has dropped it: nobody else waits for that."""

    async def settle():
        engine = here()
        with pytest.raises(SchemaIsGone):
            await engine.spawn(engine.store.fetch(in_schema("SELECT 1 FROM {schema}.usage_usageline", "t_gone")))
        await asyncio.sleep(0)

    run(settle())
    assert "A task of the engine failed" in caplog.text
    assert 't_gone.usage_usageline" does not exist' in caplog.text
