"""The engine's HTTP client against servers of bare sockets: what is sent, what is kept, and what breaks."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gzip
import inspect
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from billing.engine import http as http_module
from billing.engine.exchange import NOISE_BYTES, UNPACKED_BYTES, WAITING_BYTES, Broken, NotSent
from billing.engine.http import Http

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MOST = 1024 * 1024

# The plane's loop, and the one of a process that is not asynchronous.
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def on_both_loops(test):
    def run(loop, **given):
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test(**given))

    parameters = inspect.signature(test).parameters.values()
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    of_test = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__, run.__name__ = inspect.Signature([loop, *of_test]), test.__name__
    return pytest.mark.parametrize("loop", LOOPS)(run)


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request with the next of its answers; the last one again and again. Counts what it was asked."""

    def __init__(self, answers: list[bytes | Script], *, closes: bool = False) -> None:
        self.answers = answers
        self.closes = closes  # each connection, after its first answer
        self.requests: list[bytes] = []
        self.connections = 0
        self.ended = asyncio.Event()
        self.base = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line), 0
                )
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if callable(answer):
                    await answer(reader, writer)
                else:
                    writer.write(answer)
                    await writer.drain()
                if self.closes:
                    break
        self.ended.set()
        writer.close()


@asynccontextmanager
async def serving(*answers: bytes | Script, closes: bool = False, tls: ssl.SSLContext | None = None):
    server = Server(list(answers), closes=closes)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    server.base = f"{'https' if tls else 'http'}://{'localhost' if tls else '127.0.0.1'}:{port}"
    try:
        yield server
    finally:
        listening.close()


@asynccontextmanager
async def client(**options) -> AsyncIterator[Http]:
    http = Http(**{"keep_seconds": 5.0, "connect_seconds": 2.0, **options})
    try:
        yield http
    finally:
        http.close()


async def asked(http: Http, server: Server, method: str = "POST", path: str = "/a", most: int = MOST) -> bytes:
    answer = await http.ask(method, server.base, path, {"X-Own": "1"}, b"{}" if method == "POST" else None)
    try:
        return await answer.read(most)
    finally:
        if answer.is_read:
            answer.release()
        else:
            answer.close()


@on_both_loops
async def test_a_request_is_written_as_http_has_it_and_its_connection_used_again():
    async with serving(OK) as server, client() as http:
        assert await asked(http, server) == b"ok"
        assert await asked(http, server, "GET", "/b?c=d%20e") == b"ok"
    host = server.base.removeprefix("http://").encode()
    assert server.requests == [
        b"POST /a HTTP/1.1\r\nHost: " + host + b"\r\nUser-Agent: tenantry\r\nX-Own: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /b?c=d%20e HTTP/1.1\r\nHost: " + host + b"\r\nUser-Agent: tenantry\r\nX-Own: 1\r\n\r\n",
    ]
    assert server.connections == 1


@on_both_loops
async def test_status_and_headers_are_told_and_repeated_headers_joined():
    said = b"HTTP/1.1 418 I am\r\nX-One: a\r\nx-one: b\r\nContent-Length: 0\r\n\r\n"
    async with serving(said) as server, client() as http:
        answer = await http.ask("GET", server.base, "/", {})
        assert (answer.status, answer.headers["x-one"], await answer.read(MOST)) == (418, "a, b", b"")
        answer.release()


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\nX-Late: 1\r\n\r\n",
            b"abc",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2  \r\nab\r\n0\r\n\r\n", b"ab"),
    ],
    ids=["chunks", "interim answers", "no body", "spaces after a chunk's size"],
)
@on_both_loops
async def test_each_framing_is_read_to_its_end_and_the_connection_kept(said, body):
    async with serving(said) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [body, body]
        assert server.connections == 1


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n"])
@on_both_loops
async def test_a_body_without_a_length_ends_with_its_connection(head):
    async with serving(head + b"all of it", closes=True) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"all of it"] * 2
        assert server.connections == 2


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n",
    ],
    ids=["short", "no last chunk", "half a head", "nothing", "no HTTP", "another protocol", "two lengths", "bad chunk"],
)
@on_both_loops
async def test_what_breaks_off_or_cannot_be_read_is_broken_and_never_sent_again(said):
    async with serving(said, closes=True) as server, client() as http:
        with pytest.raises(Broken):
            await asked(http, server)
        assert len(server.requests) == 1


@on_both_loops
async def test_what_came_before_a_break_is_read_first():
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    async with serving(said, closes=True) as server, client() as http:
        answer = await http.ask("GET", server.base, "/", {})
        await server.ended.wait()
        await asyncio.sleep(0.05)
        assert await answer.read_some() == b"half"
        with pytest.raises(Broken):
            await answer.read_some()
        answer.close()


@on_both_loops
async def test_an_answer_that_nobody_asked_for_is_given_to_nobody():
    late = OK.replace(b"ok", b"no")

    async def twice(reader, writer):
        writer.write(OK + late)

    async def later(reader, writer):
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(late)

    for unasked in (twice, later):
        async with serving(unasked, OK) as server, client() as http:
            assert await asked(http, server) == b"ok"
            await asyncio.sleep(0.15)
            assert await asked(http, server) == b"ok"
            assert server.connections == 2, unasked


@on_both_loops
async def test_a_connection_that_its_server_closed_is_not_used_again():
    async with serving(OK, closes=True) as server, client() as http:
        assert await asked(http, server) == b"ok"
        await asyncio.sleep(0.05)
        assert await asked(http, server) == b"ok"
        assert server.connections == 2


@on_both_loops
async def test_what_only_reads_is_asked_again_where_a_kept_connection_dies_and_what_buys_is_not():
    async def dies(reader, writer):
        writer.transport.abort()

    async with serving(OK, dies, OK) as server, client() as http:
        await asked(http, server, "GET")
        assert await asked(http, server, "GET") == b"ok"
        assert len(server.requests) == 3
    async with serving(OK, dies, OK) as server, client() as http:
        await asked(http, server)
        with pytest.raises(Broken):
            await asked(http, server)
        assert len(server.requests) == 2
    async with serving(dies) as server, client() as http:
        with pytest.raises(Broken):
            await asked(http, server, "GET")
        assert len(server.requests) == 1  # a new connection that dies says enough


@on_both_loops
async def test_an_idle_connection_ends_after_its_time():
    async with serving(OK) as server, client(keep_seconds=0.1) as http:
        await asked(http, server)
        await asyncio.wait_for(server.ended.wait(), 2.0)
        await asked(http, server)
        assert server.connections == 2


@on_both_loops
async def test_connection_close_is_heard():
    async with serving(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"ok"] * 2
        assert server.connections == 2


@on_both_loops
async def test_who_is_cancelled_leaves_no_connection_behind():
    heard = asyncio.Event()

    async def never(reader, writer):
        heard.set()
        await reader.read()

    async with serving(never) as server, client() as http:
        task = asyncio.create_task(http.ask("POST", server.base, "/", {}, b"{}"))
        await asyncio.wait_for(heard.wait(), 2.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.ended.wait(), 2.0)


@on_both_loops
async def test_nobody_there_is_not_sent():
    async with serving(OK) as server:
        pass
    async with client() as http:
        for base in (
            server.base,
            "http://nobody.invalid",
            "ftp://x",
            "http://",
            "http://[::1",
            "http://x:99999",
            "http://ü" * 70,
        ):
            with pytest.raises(NotSent):
                await http.ask("POST", base, "/", {}, b"{}")


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\rb", "a\0b", "snow ☃"])
@on_both_loops
async def test_a_value_cannot_become_another_header(value):
    async with serving(OK) as server, client() as http:
        with pytest.raises(NotSent):
            await http.ask("POST", server.base, "/", {"X-Key": value}, b"{}")
        with pytest.raises(NotSent):
            await http.ask("POST", server.base, "/", {value: "x"}, b"{}")
        assert server.connections == 0


@on_both_loops
async def test_a_path_cannot_become_another_request():
    async with serving(OK) as server, client() as http:
        await asked(http, server, path="/a b\r\nX: ☃/commit")
    assert server.requests[0].startswith(b"POST /a%20b%0D%0AX:%20%E2%98%83/commit HTTP/1.1\r\n")


@on_both_loops
async def test_much_that_says_nothing_ends_it():
    async def interim(reader, writer):
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 4096)
                await writer.drain()

    async def extensions(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"y" * 65536)
                await writer.drain()

    async def head(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"X-More: and more\r\n" * 1000)
                await writer.drain()

    for noise in (interim, extensions, head):
        async with serving(noise) as server, client() as http:
            with pytest.raises(Broken):
                await asyncio.wait_for(asked(http, server), 10.0)
    assert NOISE_BYTES < 4 * MOST


@pytest.mark.parametrize(
    ("how", "packed"),
    [
        ("gzip", gzip.compress(b"words")),
        ("deflate", zlib.compress(b"words")),
        ("deflate", zlib.compress(b"words")[2:-4]),
    ],
    ids=["gzip", "deflate", "deflate without its head"],
)
@on_both_loops
async def test_what_is_compressed_all_the_same_is_unpacked(how, packed):
    said = f"HTTP/1.1 200 OK\r\nContent-Encoding: {how}\r\nContent-Length: {len(packed)}\r\n\r\n".encode() + packed
    async with serving(said) as server, client() as http:
        assert [await asked(http, server), await asked(http, server)] == [b"words"] * 2


@on_both_loops
async def test_a_few_bytes_do_not_become_gigabytes():
    packed = gzip.compress(bytes(UNPACKED_BYTES * 4))
    said = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode() + packed
    async with serving(said) as server, client() as http:
        with pytest.raises(Broken):
            await asked(http, server, most=10**9)


@on_both_loops
async def test_more_than_was_wanted_is_not_taken_into_memory():
    async def endless(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()

    async with serving(endless) as server, client() as http:
        with pytest.raises(Broken):
            await asyncio.wait_for(asked(http, server), 10.0)
        # Nor is what nobody reads: its server has to wait.
        answer = await http.ask("GET", server.base, "/", {})
        await asyncio.sleep(0.3)
        assert WAITING_BYTES < len(await answer.read_some()) < 4 * WAITING_BYTES
        assert await asyncio.wait_for(answer.read_some(), 2.0)
        answer.close()


@on_both_loops
async def test_a_long_answer_comes_whole_however_slowly_it_is_read():
    body = bytes(range(256)) * 16_384

    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as server, client() as http:
        answer = await http.ask("GET", server.base, "/", {})
        got = b""
        while part := await answer.read_some():
            got += part
            await asyncio.sleep(0.01)
        answer.release()
        assert got == body
        assert await asked(http, server, most=len(body)) == body
        assert server.connections == 1


# --- TLS, and the way out through a proxy ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def of_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def trusting(certificate, monkeypatch):
    context = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(http_module, "_tls", lambda: context)


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
