"""Who waits for whom in one process: first come, first served, and nobody for ever."""

import asyncio
import time

from billing.engine.waiting import Exclusive, Lines


async def after(seconds, act):
    await asyncio.sleep(seconds)
    act()


def test_a_key_is_given_to_those_who_wait_in_their_order():
    async def story():
        exclusive, order = Exclusive(), []

        async def one(number):
            assert await exclusive.acquire("a conversation", 60)
            order.append(number)
            await asyncio.sleep(0.01)
            exclusive.release("a conversation")

        await asyncio.gather(*(one(number) for number in range(5)))
        assert order == [0, 1, 2, 3, 4]
        assert exclusive._held == {}

    asyncio.run(story())


def test_who_waits_too_long_is_told_so_and_takes_nothing():
    async def story():
        exclusive = Exclusive()
        assert await exclusive.acquire("key", 1)
        assert not await exclusive.acquire("key", 0.05)
        exclusive.release("key")
        assert exclusive._held == {}

    asyncio.run(story())


def test_a_key_that_comes_free_in_the_moment_one_gives_up_is_not_lost():
    async def story():
        exclusive = Exclusive()
        assert await exclusive.acquire("key", 1)
        loop = asyncio.get_running_loop()
        waiter = loop.create_task(exclusive.acquire("key", 0.10))
        await asyncio.sleep(0)
        loop.call_later(0.09, exclusive.release, "key")
        await asyncio.sleep(0.01)
        time.sleep(0.2)  # noqa: ASYNC251 - both are due now, in this order, in one turn of the loop
        if await waiter:
            exclusive.release("key")
        assert exclusive._held == {}, "nobody has the key, and nobody can take it any more"

    asyncio.run(story())


def test_who_is_cancelled_while_waiting_passes_the_key_on():
    async def story():
        exclusive = Exclusive()
        assert await exclusive.acquire("key", 1)
        second = asyncio.create_task(exclusive.acquire("key", 60))
        third = asyncio.create_task(exclusive.acquire("key", 60))
        await asyncio.sleep(0)
        exclusive.release("key")  # it is the second's now, who is cancelled before it hears of it
        second.cancel()
        assert await third
        exclusive.release("key")
        assert exclusive._held == {}

    asyncio.run(story())


def test_only_the_first_of_a_line_acts_and_a_wake_reaches_it():
    async def story():
        lines, served = Lines(), []

        async def one(name):
            async with lines.join("a tenant", lines.number()) as place:
                while not place.is_first:
                    await place.wait(60)
                served.append(name)
                await asyncio.sleep(0.01)

        began = time.monotonic()
        await asyncio.gather(one("first"), one("second"), one("third"))
        assert served == ["first", "second", "third"]
        assert time.monotonic() - began < 30
        assert lines.is_empty("a tenant")

    asyncio.run(story())


def test_who_asked_first_stands_in_front_however_late_they_join():
    async def story():
        lines, served = Lines(), []
        numbers = [lines.number() for _ in range(3)]

        async def one(name, *, joins_after):
            await asyncio.sleep(joins_after)
            async with lines.join("a tenant", numbers[name]) as place:
                joined.append(name)
                if len(joined) == 3:
                    asyncio.get_running_loop().call_soon(free.set)
                while not (place.is_first and free.is_set()):
                    await place.wait(0.05)
                served.append(name)

        free, joined = asyncio.Event(), []
        await asyncio.gather(one(2, joins_after=0), one(0, joins_after=0.02), one(1, joins_after=0.04))
        assert joined == [2, 0, 1]
        assert served == [0, 1, 2]
        assert lines.is_empty("a tenant")

    asyncio.run(story())


def test_a_place_left_by_a_cancelled_caller_is_the_next_ones():
    async def story():
        lines = Lines()

        async def one():
            async with lines.join("a tenant", lines.number()) as place:
                while not place.is_first:
                    await place.wait(60)
                return True

        async def first():
            async with lines.join("a tenant", lines.number()):
                await asyncio.sleep(60)

        ahead = asyncio.create_task(first())
        await asyncio.sleep(0)
        behind = asyncio.create_task(one())
        await asyncio.sleep(0)
        ahead.cancel()
        async with asyncio.timeout(20):
            assert await behind
        assert lines.is_empty("a tenant")

    asyncio.run(story())


def test_a_wait_ends_at_its_time_and_leaves_the_line_to_others():
    async def story():
        lines = Lines()
        async with lines.join("a tenant", lines.number()) as place:
            began = time.monotonic()
            await place.wait(0.05)
            assert 0.04 < time.monotonic() - began < 20
            asyncio.get_running_loop().call_later(0.05, lines.wake, ["a tenant"])
            await place.wait(60)
            assert time.monotonic() - began < 50
        lines.wake(["a tenant"])  # nobody waits, which is nothing to complain of

    asyncio.run(story())
