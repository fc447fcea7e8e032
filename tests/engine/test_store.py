"""The engine's connections to Postgres: what becomes of a statement that must wait, for one or for a lock."""

import asyncio
import time

import psycopg
import pytest

from billing.engine.loop import run
from billing.engine.statements import in_schema
from billing.engine.store import FAILURES, Store
from tenants.connections import own_connection_params

pytestmark = pytest.mark.usefixtures("app")


async def _cancelled_after(turns: int) -> str:
    """How a statement ends that is cancelled so many turns of the loop after its connection has come free."""
    store = Store(size=1)
    try:
        pool = await store._open()
        async with pool.connection():
            waiting = asyncio.create_task(store.fetch("SELECT pg_sleep(0.01)"))
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


def test_a_workspace_whose_tables_are_locked_keeps_no_connection_from_the_others(acme, globex):
    """A migration locks them. Waiting for them, four calls took the plane's four connections."""
    locked, free = (in_schema("SELECT 7 FROM {schema}.users_user", one.tenant.schema_name) for one in (acme, globex))
    store = Store(size=1)

    async def asked() -> float:
        async def refused() -> None:
            with pytest.raises(FAILURES):
                await store.fetch(locked)

        try:
            await store.fetch(free)
            began = time.monotonic()
            async with asyncio.timeout(5):
                await asyncio.gather(*(refused() for _ in range(20)))
                assert (await store.fetch(free))[0][0] == 7
            return time.monotonic() - began
        finally:
            await store.close()

    with psycopg.connect(**own_connection_params()) as migrating:
        migrating.execute(in_schema("LOCK TABLE {schema}.users_user IN ACCESS EXCLUSIVE MODE", acme.tenant.schema_name))
        assert run(asked()) < 1  # one waits, and tells the others
        migrating.rollback()
