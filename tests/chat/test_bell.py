"""A bell is heard by all who wait, and each waits only for so long."""

import asyncio

import pytest

from chat.bell import Bell
from tests.support.bare_http import on_both_loops


@on_both_loops
async def test_all_who_wait_hear_it():
    bell = Bell()
    waiting = [asyncio.ensure_future(bell.rings(5.0)) for _ in range(3)]
    await asyncio.sleep(0)
    bell.ring()
    assert await asyncio.gather(*waiting) == [True, True, True]


@on_both_loops
async def test_who_waits_in_vain_is_told_and_the_others_wait_on():
    bell = Bell()
    patient = asyncio.ensure_future(bell.rings(5.0))
    assert not await bell.rings(0.01)
    assert not patient.done()
    bell.ring()
    assert await patient


@on_both_loops
async def test_what_rang_before_is_not_heard():
    bell = Bell()
    bell.ring()
    assert not await bell.rings(0.01)


@on_both_loops
async def test_who_stops_waiting_leaves_nothing_behind():
    bell = Bell()
    waiting = asyncio.ensure_future(bell.rings(5.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not bell._waiters
    bell.ring()
