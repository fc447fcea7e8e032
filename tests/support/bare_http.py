"""HTTP servers of bare sockets, each on the loop of its test, and the engine's client to ask them.

Owns what tests of that client share. Nothing here reads an answer: what is sent is exactly what a test says.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from billing.engine import http as http_module
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
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls, backlog=256)
    port = listening.sockets[0].getsockname()[1]
    server.base = f"{'https' if tls else 'http'}://{'localhost' if tls else '127.0.0.1'}:{port}"
    try:
        yield server
    finally:
        listening.close()


@asynccontextmanager
async def accepting(script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    listening = await asyncio.start_server(script, "127.0.0.1", 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


def floods(flood: bytes, *before: bytes) -> Script:
    """An answer that goes on as fast as it is read, for as long as anybody is there."""

    async def script(reader, writer):
        writer.writelines(before)
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(flood)
                await writer.drain()

    return script


@asynccontextmanager
async def client(**options) -> AsyncIterator[Http]:
    http = Http(**{"keep_seconds": 60.0, "connect_seconds": 60.0, **options})
    try:
        yield http
    finally:
        http.close()


async def asked(
    http: Http, server: Server, method: str = "POST", path: str = "/a", most: int = MOST, whose: str = ""
) -> bytes:
    body = b"{}" if method == "POST" else None
    answer = await http.ask(method, server.base, path, {"X-Own": "1"}, body, whose=whose)
    try:
        return await answer.read(most)
    finally:
        if answer.is_read:
            answer.release()
        else:
            answer.close()


def sockets() -> set[str]:
    """To be compared with those of before: what earlier tests have left may be closed at any moment."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(path.readlink()))
    return {name for name in found if name.startswith("socket:")}


async def until(so: Callable[[], object]) -> None:
    """Wait for it, however busy the machine is."""
    async with asyncio.timeout(20):
        while not so():  # noqa: ASYNC110 - what is waited for knows no event
            await asyncio.sleep(0.01)


# --- TLS ------------------------------------------------------------------------------------------------------------


def certificate_for(path: Path, *names: str, days: int = 1) -> Path:
    """Written to `path` with its key: one that vouches for itself, and ends in so many days, or has."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=9))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def context_of(certificate: Path) -> ssl.SSLContext:
    """A server's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    return certificate_for(tmp_path_factory.mktemp("tls") / "both.pem", "localhost")


@pytest.fixture
def of_server(certificate):
    return context_of(certificate)


@pytest.fixture
def trusting(certificate, monkeypatch):
    context = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(http_module, "_tls", lambda: context)
