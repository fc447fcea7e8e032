"""Which connections the engine's HTTP client keeps, for whom, and for how long."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from billing.engine.exchange import NotSent
from billing.engine.http import Http
from tests.support.bare_http import MOST, OK, accepting, asked, client, on_both_loops, serving, sockets, until


@on_both_loops
async def test_a_crowd_leaves_its_connections_and_each_ends_after_its_time(alone):
    async def after_a_while(reader, writer):
        await asyncio.sleep(0.05)
        writer.write(OK)

    async with serving(after_a_while) as server, client() as http:
        before = sockets()
        assert await asyncio.gather(*(asked(http, server) for _ in range(200))) == [b"ok"] * 200
        assert server.connections == 200
        assert len(sockets() - before) == 400
        http._keep_seconds = 0.3
        http._sweep.cancel()
        http._close_old()
        await until(lambda: not http._lines[server.base].idle)
        await until(lambda: sockets() <= before)


@on_both_loops
async def test_anothers_idle_connection_gives_way_to_a_new_one(alone):
    """Of a server that was seen to serve one at once: it may have no thread for another."""
    async with serving(OK) as server, client() as http:
        before = sockets()
        for whose in ("acme", "globex", "acme", "globex"):
            assert await asked(http, server, whose=whose) == b"ok"
        assert server.connections == 4
        await until(lambda: len(sockets() - before) == 2)


class Threads:
    """A server with a thread for each connection, for as long as that is open, and so many of them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._free = asyncio.Semaphore(threads)
        self.connections = 0
        self.answers = asyncio.Event()
        self.answers.set()

    async def __call__(self, reader, writer) -> None:
        async with self._free:
            self.connections += 1
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await reader.readuntil(b"\r\n\r\n{}")
                    await self.answers.wait()
                    writer.write(OK)
        writer.close()


async def told(http: Http, port: int, whose: str) -> bytes:
    answer = await http.ask("POST", f"http://127.0.0.1:{port}", "/", {}, b"{}", whose=whose)
    said = await answer.read(MOST)
    answer.release()
    return said


async def told_at_once(http: Http, port: int, server: Threads) -> None:
    """Two workspaces, each of which has its connection before one of them is answered."""
    server.answers.clear()
    at_once = asyncio.gather(told(http, port, "acme"), told(http, port, "globex"))
    await until(lambda: server.connections == min(2, server.threads))
    server.answers.set()
    assert [*await at_once] == [b"ok"] * 2


@on_both_loops
async def test_a_server_is_left_as_many_connections_as_it_was_seen_to_serve_at_once(alone):
    """Under TLS each new one is a handshake, and whoever has a thread for each lets one more wait for an idle one."""
    server = Threads(3)
    async with asyncio.timeout(20), accepting(server) as port, client() as http:
        before = sockets()
        await told_at_once(http, port, server)
        assert [await told(http, port, whose) for whose in ("acme", "globex", "acme", "globex")] == [b"ok"] * 4
        assert server.connections == 2
        assert await told(http, port, "initech") == b"ok"
        assert server.connections == 3
        await until(lambda: len(sockets() - before) == 4)
        # The one that was idle for longest has given way.
        assert [await told(http, port, whose) for whose in ("globex", "initech")] == [b"ok"] * 2
        assert server.connections == 3


@on_both_loops
async def test_for_each_of_those_that_come_at_once_another_gives_way():
    """While the first one's was opened it was not counted, and the second waited for as long as idle ones are kept."""
    server = Threads(2)
    async with asyncio.timeout(5), accepting(server) as port, client() as http:
        await told_at_once(http, port, server)
        assert [*await asyncio.gather(*(told(http, port, "initech") for _ in range(2)))] == [b"ok"] * 2
        assert http._lines[f"http://127.0.0.1:{port}"].open == 2


@on_both_loops
async def test_who_waited_for_anothers_connection_to_end_was_not_served_at_once():
    server = Threads(1)
    async with asyncio.timeout(20), accepting(server) as port, client(keep_seconds=0.2) as http:
        await told_at_once(http, port, server)
        http._keep_seconds = 60.0
        assert [await told(http, port, whose) for whose in ("acme", "globex", "acme")] == [b"ok"] * 3


@on_both_loops
async def test_a_server_that_was_away_may_serve_fewer_when_it_is_back():
    async with asyncio.timeout(20), client() as http:
        before = Threads(2)
        async with accepting(before) as port:
            await told_at_once(http, port, before)
        with pytest.raises(NotSent):
            await told(http, port, "initech")
        listening = await asyncio.start_server(Threads(1), "127.0.0.1", port)
        assert [await told(http, port, whose) for whose in ("initech", "hooli", "initech")] == [b"ok"] * 3
        listening.close()


@on_both_loops
async def test_what_is_given_back_after_the_end_is_closed():
    async with serving(OK) as server, client() as http:
        answer = await http.ask("POST", server.base, "/", {}, b"{}")
        assert await answer.read(MOST) == b"ok"
        http.close()
        answer.release()
        await asyncio.wait_for(server.ended.wait(), 20)


@on_both_loops
async def test_two_loops_share_nothing():
    """The plane's, and the one of the engine's thread, in one process."""
    async with serving(OK) as server, client() as http:
        assert await asked(http, server) == b"ok"

        async def elsewhere():
            async with client() as another:
                return await asked(another, server), another._lines.keys() & http._lines.keys()

        found = await asyncio.get_running_loop().run_in_executor(None, lambda: asyncio.run(elsewhere()))
        assert found == (b"ok", {server.base})
        assert server.connections == 2
        assert await asked(http, server) == b"ok"
        assert server.connections == 2
