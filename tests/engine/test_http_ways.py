"""How the engine's HTTP client gets to a server: names, addresses, TLS, proxies; and what stays of who gives up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from billing.engine import http as http_module
from billing.engine.authority import Authority
from billing.engine.exchange import Broken, NotSent
from billing.engine.http import Http
from tests.support.bare_http import (
    OK,
    accepting,
    asked,
    certificate_for,
    client,
    context_of,
    on_both_loops,
    serving,
    sockets,
    until,
)


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


@pytest.mark.parametrize("fault", ["another name", "expired"])
@on_both_loops
async def test_a_certificate_of_another_name_or_time_is_told_nothing(fault, tmp_path, monkeypatch):
    name, days = ("elsewhere", 1) if fault == "another name" else ("localhost", -1)
    certificate = certificate_for(tmp_path / "bad.pem", name, days=days)
    context = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(http_module, "_tls", lambda: context)
    async with serving(OK, tls=context_of(certificate)) as server, client() as http:
        with pytest.raises(NotSent, match="SSLCertVerificationError"):
            await asked(http, server)
        assert server.requests == []


@on_both_loops
async def test_a_handshake_that_never_ends_has_the_clock_of_connecting(trusting):
    async def hang(reader, writer):
        await reader.read()
        writer.close()

    async with accepting(hang) as port, client(connect_seconds=0.2) as http:
        began = asyncio.get_running_loop().time()
        with pytest.raises(NotSent):
            await http.ask("POST", f"https://localhost:{port}", "/", {}, b"{}")
        assert asyncio.get_running_loop().time() - began < 20


@on_both_loops
async def test_who_is_answered_before_he_asked_has_asked_nothing(of_server, trusting):
    """A server that is full says so as soon as it is reached, and what it says is of no request."""

    async def full(reader, writer):
        writer.write(b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    for tls in (None, of_server):
        async with accepting(full, tls=tls) as port, client() as http:
            answers = set()
            for _ in range(5):
                try:
                    answer = await http.ask("POST", f"{'https' if tls else 'http'}://localhost:{port}", "/", {}, b"{}")
                    answers.add(answer.status)
                    answer.close()
                except (NotSent, Broken) as exc:
                    answers.add(type(exc))
            assert answers <= {503, NotSent, Broken}


@on_both_loops
async def test_a_dot_after_a_name_is_no_part_of_its_certificates_name(of_server, trusting):
    async with serving(OK, tls=of_server) as server, client() as http:
        port = server.base.rpartition(":")[2]
        known(http, "localhost.", int(port), [("127.0.0.1", int(port))])
        server.base = f"https://localhost.:{port}"
        assert await asked(http, server) == b"ok"


# --- names and addresses --------------------------------------------------------------------------------------------


def known(http: Http, host: str, port: int, addresses: list[tuple[str, int]]) -> None:
    """As if the name had been looked up, and led there."""
    looked_up = asyncio.get_running_loop().create_future()
    looked_up.set_result([(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses])
    http._addresses[host, port] = looked_up


@pytest.fixture
def nobody_accepts():
    """An address that hangs: as many wait there as may."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.2", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listening.getsockname())
        yield listening.getsockname()


@on_both_loops
async def test_where_the_first_address_hangs_the_next_one_is_tried_beside(nobody_accepts):
    async with serving(OK) as server, client() as http:
        known(http, "two.test", 80, [nobody_accepts, ("127.0.0.1", int(server.base.rpartition(":")[2]))])
        server.base = "http://two.test"
        assert await asyncio.wait_for(asked(http, server), 20) == b"ok"


@on_both_loops
async def test_where_every_address_hangs_nothing_was_sent_and_the_name_is_looked_up_anew(nobody_accepts):
    async with client(connect_seconds=0.2) as http:
        known(http, "one.test", 80, [nobody_accepts])
        with pytest.raises(NotSent):
            await http.ask("POST", "http://one.test", "/", {}, b"{}")
        assert not http._addresses


@on_both_loops
async def test_a_name_is_looked_up_once_for_all_who_wait_for_it_and_again_after_a_while(monkeypatch):
    monkeypatch.setattr(http_module, "NAME_SECONDS", 0.2)
    loop, lookups, heard = asyncio.get_running_loop(), [], asyncio.Event()

    async def look_up(host, port):
        lookups.append(host)
        await heard.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async with serving(OK) as server, client(connect_seconds=0.2) as http:
        monkeypatch.setattr(http_module, "_look_up", look_up)
        server.base = server.base.replace("127.0.0.1", "name.test")
        # A name server that hangs: whoever waits gives up in time, and the look-up goes on for the next one.
        hung = await asyncio.gather(*(asked(http, server) for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in hung] == [NotSent] * 5
        http._connect_seconds = 60.0
        loop.call_later(0.05, heard.set)
        assert await asyncio.gather(*(asked(http, server) for _ in range(5))) == [b"ok"] * 5
        assert lookups == ["name.test"]
        await until(lambda: not http._addresses)


@on_both_loops
async def test_a_port_that_is_none_is_not_taken_for_the_usual_one():
    async with client() as http:
        for base in ("http://127.0.0.1:0", "gopher://127.0.0.1:70"):
            with pytest.raises(NotSent):
                await http.ask("POST", base, "/", {}, b"{}")


def test_a_name_in_other_letters_is_the_one_that_browsers_go_to():
    assert http_module._server("https://STRASSE.test").host == "strasse.test"
    assert http_module._server("https://straße.test").host == "xn--strae-oqa.test"
    assert http_module._server("https://bücher.test/v1/").authority == "xn--bcher-kva.test"


# --- proxies --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "http://[", "127.0.0.1:1"])
@on_both_loops
async def test_a_proxy_that_cannot_be_gone_by_is_not_sent(proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    async with serving(OK) as server, client(goes_by_proxy=True) as http:
        with pytest.raises(NotSent):
            await asked(http, server)
        assert server.requests == []


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1_000_000),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 503 No\r\n\r\n",
    ],
    ids=["nothing", "garbage", "yes, and ends", "yes, and a flood", "yes, and an answer", "no"],
)
@on_both_loops
async def test_whatever_a_proxy_says_nothing_is_sent_before_there_is_tls(said, trusting, monkeypatch):
    heads = []

    async def proxy(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    monkeypatch.delenv("no_proxy", raising=False)
    async with accepting(proxy) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        async with client(goes_by_proxy=True) as http:
            with pytest.raises(NotSent):
                await http.ask("POST", "https://localhost:1", "/secret", {"X-Key": "secret"}, b"secret")
    assert len(heads) == 1
    assert b"secret" not in heads[0]


@on_both_loops
async def test_a_proxy_may_be_reached_by_tls(of_server, trusting, monkeypatch):
    proxy = Proxy()
    async with serving(OK, tls=of_server) as server:
        listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=of_server)
        monkeypatch.setenv("HTTPS_PROXY", f"https://localhost:{listening.sockets[0].getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        async with client(goes_by_proxy=True) as http:
            assert [await asked(http, server), await asked(http, server)] == [b"ok"] * 2
        listening.close()
    assert len(proxy.heads) == 1


# --- who gives up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "tls", "proxy"])
@on_both_loops
async def test_whoever_gives_up_at_any_moment_leaves_nothing_and_the_next_is_given_his_own(
    way, of_server, trusting, monkeypatch, alone
):
    async def slowly(reader, writer):
        path = server.requests[-1].split()[1]
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for said in (b"%x\r\n%b\r\n" % (len(path), path), b"0\r\n", b"\r\n"):
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(said)

    faults: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    before = sockets()
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(slowly, tls=None if way == "plain" else of_server))
        if way == "proxy":
            await stack.enter_async_context(proxying(monkeypatch))
        given_up = 0
        for turns in range(60):
            http = await stack.enter_async_context(client(goes_by_proxy=way == "proxy"))
            for is_kept in (False, True):
                if is_kept:
                    assert await asked(http, server, path="/first") == b"/first"
                leaving = asyncio.create_task(asked(http, server, path=f"/leaves/{turns}"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                leaving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await leaving
                given_up += leaving.cancelled()
                assert await asked(http, server, path=f"/next/{turns}") == b"/next/%d" % turns
            http.close()
        assert given_up > 20
    del leaving
    gc.collect()
    await until(lambda: sockets() <= before and len(asyncio.all_tasks()) == 1)
    of_servers = "Unhandled exception in client_connected_cb"
    assert [fault for fault in faults if fault["message"] != of_servers] == []


@contextlib.contextmanager
def innocent():
    """Sockets that are opened now, and must still be there after whatever is collected."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(socket.socket()) for _ in range(4)]
        before = [os.fstat(one.fileno()).st_ino for one in others]
        yield
        gc.collect(1)  # what is new: all that a test process has loaded takes a quarter of a second
        assert [os.fstat(one.fileno()).st_ino for one in others] == before


@on_both_loops
async def test_whoever_gives_up_closes_no_socket_but_his_own(of_server, trusting):
    """Descriptors are numbers: closed twice, one is somebody else's the second time."""
    async with serving(OK, tls=of_server) as server, client() as http:
        for turns in range(25):
            leaving = asyncio.create_task(asked(http, server))
            for _ in range(turns):
                await asyncio.sleep(0)
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving
            del leaving
            with contextlib.ExitStack() as stack:
                for _ in range(6):
                    stack.enter_context(innocent())
                    await asyncio.sleep(0)


@contextlib.contextmanager
def resetting():
    """The port of a server that resets whoever comes, at once and so in a thread of its own."""

    def reset():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=reset)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@on_both_loops
async def test_who_is_reset_as_soon_as_he_comes_closes_no_socket_but_his_own(trusting):
    with resetting() as port:
        async with client() as http:
            for _ in range(200):
                with pytest.raises(NotSent):
                    await http.ask("POST", f"https://localhost:{port}", "/", {}, b"{}")
                with innocent():
                    await asyncio.sleep(0)


@on_both_loops
async def test_the_log_says_why_the_authority_gave_no_answer(settings, caplog):
    async with serving(b"", b"garbage", closes=True) as server:
        settings.CYCLES_ADMIN_URL = server.base
        authority = Authority()
        for _ in range(2):
            assert (await authority.admin("POST", "/v1/admin/tenants")).is_transport_error
        settings.CYCLES_ADMIN_URL = "http://no-such-host.invalid"
        assert (await authority.admin("GET", "/v1/admin/tenants")).status == 503
        authority.close()
    assert [message.rpartition(": ")[2] for message in caplog.messages] == [
        "the connection was closed",
        "HttpParserError",
        "gaierror",
    ]
