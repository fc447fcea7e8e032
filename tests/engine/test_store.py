"""The engine's connections to Postgres: what becomes of a statement whose reader leaves while it waits for one."""

import asyncio

import pytest

from billing.engine.loop import run
from billing.engine.store import Store

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
