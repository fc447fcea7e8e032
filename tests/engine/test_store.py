"""The engine's connections to Postgres: what becomes of a statement that must wait, for one or for a lock."""

import asyncio

import psycopg
import pytest
from django.db import connections

from billing.engine.loop import run
from billing.engine.store import FAILURES, Store

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


def test_a_table_that_is_locked_keeps_no_connection_from_the_others():
    """A workspace's migration locks its tables. Waiting for them, four calls took the plane's four connections."""
    params = connections["default"].get_connection_params()
    wanted = {key: value for key, value in params.items() if key not in {"cursor_factory", "context", "pool"}}
    store = Store(size=1)

    async def asked() -> int:
        try:
            with pytest.raises(FAILURES):
                async with asyncio.timeout(5):
                    await store.fetch("SELECT 1 FROM public.billing_habit")
            return (await store.fetch("SELECT 7"))[0][0]
        finally:
            await store.close()

    with psycopg.connect(**wanted) as migrating:
        migrating.execute("LOCK TABLE public.billing_habit IN ACCESS EXCLUSIVE MODE")
        assert run(asked()) == 7
        migrating.rollback()
