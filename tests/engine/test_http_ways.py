"""How the engine's HTTP client gets to a server: TLS, and the way out through a proxy."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from billing.engine.exchange import NotSent
from tests.support.bare_http import OK, asked, client, on_both_loops, serving


@on_both_loops
async def test_tls_reaches_whom_it_trusts(of_server, trusting):
    async with serving(OK, tls=of_server) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"ok"] * 2
        assert server.connections == 1


@on_both_loops
async def test_a_certificate_that_nobody_vouches_for_is_told_nothing(of_server):
    async with serving(OK, tls=of_server) as server, client() as http:
        with pytest.raises(NotSent):
            await asked(http, server)
        assert server.requests == []


class Proxy:
    """Goes wherever it is asked to, or refuses."""

    def __init__(self, refuses: bool = False) -> None:
        self.heads: list[bytes] = []
        self._refuses = refuses

    async def serve(self, reader, writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self._refuses:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        elif head.startswith(b"CONNECT "):
            place = head.split()[1].decode()
            there, back = await asyncio.open_connection(*place.split(":"))
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pass_on(reader, back), _pass_on(there, writer))
        else:
            writer.write(OK)
        await writer.drain()
        writer.close()


async def _pass_on(reader, writer) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def proxying(monkeypatch, *, refuses: bool = False) -> AsyncIterator[Proxy]:
    proxy = Proxy(refuses)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://me:p%40ss@127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    try:
        yield proxy
    finally:
        listening.close()


@on_both_loops
async def test_the_environments_proxy_leads_out_by_a_tunnel_that_it_cannot_look_into(of_server, trusting, monkeypatch):
    async with serving(OK, tls=of_server) as server, proxying(monkeypatch) as proxy, client(goes_by_proxy=True) as http:
        assert [await asked(http, server), await asked(http, server)] == [b"ok"] * 2
        assert server.connections == 1
    [head] = proxy.heads
    assert head.startswith(b"CONNECT localhost:")
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n" in head
    assert all(b"Proxy-Authorization" not in request for request in server.requests)


@on_both_loops
async def test_a_proxy_that_does_not_go_there_is_not_sent(of_server, trusting, monkeypatch):
    async with (
        serving(OK, tls=of_server) as server,
        proxying(monkeypatch, refuses=True),
        client(goes_by_proxy=True) as http,
    ):
        with pytest.raises(NotSent):
            await asked(http, server)
        assert server.requests == []


@on_both_loops
async def test_a_plain_request_goes_by_the_proxy_whole_unless_its_host_is_left_out(monkeypatch):
    async with serving(OK) as server, proxying(monkeypatch) as proxy, client(goes_by_proxy=True) as http:
        assert await asked(http, server) == b"ok"
        assert proxy.heads[0].startswith(f"POST {server.base}/a HTTP/1.1\r\n".encode())
        assert server.requests == []
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with client(goes_by_proxy=True) as another:
            assert await asked(another, server) == b"ok"
        assert len(server.requests) == 1


@on_both_loops
async def test_who_does_not_go_by_a_proxy_is_seen_by_none(monkeypatch):
    async with serving(OK) as server, proxying(monkeypatch) as proxy, client() as http:
        assert await asked(http, server) == b"ok"
        assert proxy.heads == []
