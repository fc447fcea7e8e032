"""Connections to HTTP servers, kept for the next request: whom a request goes to, and its bytes.

Owns opening (directly, or through the environment's proxy where that is wanted), keeping, and the head of a request.
Must not read an answer (billing.engine.exchange does), follow a redirect, keep a cookie, or send anything twice but a
GET, which only reads.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import math
import os
import re
import socket
import ssl
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]  # no stub

import aiohappyeyeballs
import idna

from billing.engine.exchange import Answer, Broken, Connection, NotSent

# Of a name with several addresses, before the next one is tried beside.
NEXT_ADDRESS_SECONDS = 0.25
# Where a name leads is known for so long.
NAME_SECONDS = 10.0
# Some gateways refuse a request that does not name its program.
AGENT = "tenantry"
# Of a proxy, before it says whether it goes there, and of TLS through it.
PROXY_SECONDS = 10.0
_PORTS = {"http": 80, "https": 443}
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._~!$&'()*+,;=:@%?-]*")


@dataclass(frozen=True, slots=True)
class Server:
    """Whom a URL names. `path` is what stands before each request's own."""

    scheme: str
    host: str
    port: int
    path: str
    authority: str  # as the Host header says it
    login: str  # of the URL itself, as an Authorization header says it

    @property
    def is_tls(self) -> bool:
        return self.scheme == "https"

    @property
    def name(self) -> str:
        """As its certificate has it."""
        return self.host.rstrip(".")

    @property
    def place(self) -> str:
        """With its port in any case."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True)
class _Lines:
    """The connections to one server."""

    # Those that nobody uses, by whose they are. Who used one last is at the end.
    idle: dict[str, list[Connection]] = field(default_factory=dict)
    open: int = 0  # or being opened
    # Of these, those that have brought an answer. Another one may be waiting until the server has a thread for it.
    answered: int = 0
    # The most that were ever open and answered at once. Many servers have a thread for each connection, and few
    # threads: one connection more would wait for as long as an idle one is kept.
    served: int = 1

    def opened(self, connection: Connection) -> None:
        """One that was counted when its opening began."""
        if connection.is_open:
            connection.when_over = functools.partial(self._over, connection)
        else:
            self.open -= 1

    def was_answered(self, connection: Connection) -> None:
        if connection.is_open and not connection.is_answered:
            connection.is_answered = True
            self.answered += 1
            self.served = max(self.served, self.answered)

    def _over(self, connection: Connection) -> None:
        self.open -= 1
        self.answered -= connection.is_answered

    def make_room(self) -> None:
        """For one more: others' idle ones give way to it."""
        while self.idle and self.open >= self.served:
            owner, connections = next(iter(self.idle.items()))
            connections.pop(0).drop()
            if not connections:
                del self.idle[owner]

    def keep(self, connection: Connection) -> None:
        theirs = self.idle.pop(connection.whose, [])
        theirs.append(connection)
        self.idle[connection.whose] = theirs

    def close_idle(self, *, since: float) -> None:
        """Those that nobody has used since."""
        idle, self.idle = self.idle, {}
        for owner, connections in idle.items():
            young: list[Connection] = []
            for connection in connections:
                if connection.is_open and connection.idle_since > since:
                    young.append(connection)
                else:
                    connection.close()
            if young:
                self.idle[owner] = young


class Http:
    """Connections of one event loop to any number of servers."""

    def __init__(self, *, keep_seconds: float, connect_seconds: float, goes_by_proxy: bool = False) -> None:
        """`keep_seconds`: how long an idle connection may be used again, shorter than servers keep it: what is sent on
        one that is closing may or may not be worked on. `connect_seconds`: with its name looked up, and TLS.
        `goes_by_proxy`: where the environment names one.
        """
        self._keep_seconds = keep_seconds
        self._connect_seconds = connect_seconds
        # Once: reading the environment takes a quarter of a millisecond.
        self._proxies = getproxies_environment() if goes_by_proxy else {}
        self._lines: defaultdict[str, _Lines] = defaultdict(_Lines)  # by their server's URL
        self._sweep: asyncio.TimerHandle | None = None
        self._addresses: dict[tuple[str, int], asyncio.Future[list[Any]]] = {}  # also those that are being looked up
        self._is_closed = False

    async def ask(
        self,
        method: str,
        base: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        until: float | None = None,
        sent: Callable[[], None] | None = None,
        whose: str = "",
    ) -> Answer:
        """The answer, once its head is there. Raises NotSent or Broken. A cancelled one is closed.

        `base` is a server's URL, and `path` what follows it, quoted, with its query. Raises TimeoutError where its head
        has not come `until` then, by the loop's clock; opening a connection has a clock of its own. `sent` is called
        once the request is on its way: whoever is cut before has asked for nothing. `whose` it is: a connection is used
        again for the same one alone. What comes late on it, of a server that is one answer behind, cannot be told from
        the next request's answer, and must not be another's.
        """
        server = _server(base)
        proxy = self._proxy_to(server) if self._proxies else None
        head = _head(server, method, path, headers, body, proxy)
        lines = self._lines[base]
        connection = self._kept(lines, whose)
        if connection is None:
            connection = await self._new(lines, server, proxy)
        elif method == "GET":
            # Its server may just be closing it. What only reads can be asked again, on a new one.
            with suppress(Broken):
                return await self._asked(lines, connection, head, body, until)
            connection = await self._new(lines, server, proxy)
        connection.whose = whose
        return await self._asked(lines, connection, head, body, until, sent)

    async def _asked(
        self,
        lines: _Lines,
        connection: Connection,
        head: bytes,
        body: bytes | None,
        until: float | None,
        sent: Callable[[], None] | None = None,
    ) -> Answer:
        answer = connection.ask(head, body or b"", functools.partial(self._keep, lines))
        if sent is not None:
            sent()
        try:
            await answer.head(until)
        except BaseException:
            answer.close()
            raise
        lines.was_answered(connection)
        return answer

    def close(self) -> None:
        """The idle ones now, each other one once it is given back."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for lines in self._lines.values():
            lines.close_idle(since=math.inf)
        for looked_up in list(self._addresses.values()):
            looked_up.cancel()
        self._addresses.clear()

    # --- keeping ---

    def _kept(self, lines: _Lines, whose: str) -> Connection | None:
        """Of theirs the one that was used last: those that nobody needs grow old."""
        if not lines.idle:
            return None
        oldest = asyncio.get_running_loop().time() - self._keep_seconds
        theirs = lines.idle.pop(whose, [])
        while theirs:
            connection = theirs.pop()
            if connection.idle_since > oldest and connection.is_quiet:
                if theirs:
                    lines.idle[whose] = theirs
                return connection
            connection.close()
        lines.make_room()
        return None

    def _keep(self, lines: _Lines, connection: Connection) -> None:
        if self._is_closed:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        lines.keep(connection)
        if self._sweep is None:
            self._sweep = loop.call_later(self._keep_seconds, self._close_old)

    def _close_old(self) -> None:
        self._sweep = None
        loop = asyncio.get_running_loop()
        for lines in self._lines.values():
            lines.close_idle(since=loop.time() - self._keep_seconds)
        if any(lines.idle for lines in self._lines.values()):
            self._sweep = loop.call_later(self._keep_seconds, self._close_old)

    # --- opening ---

    async def _new(self, lines: _Lines, server: Server, proxy: Server | None) -> Connection:
        # Already: of two that come at once, each is one more.
        lines.open += 1
        try:
            connection = await self._opened(server, proxy)
        except BaseException as exc:
            lines.open -= 1
            if isinstance(exc, NotSent):
                lines.served = 1  # it may be another, once it is there again
            raise
        lines.opened(connection)
        return connection

    async def _opened(self, server: Server, proxy: Server | None) -> Connection:
        try:
            if proxy is None:
                return await self._connected(server)
            connection = await self._connected(proxy)
            return await _tunnelled(connection, server, proxy) if server.is_tls else connection
        # uvloop says some of it by a RuntimeError.
        except (OSError, TimeoutError, UnicodeError, ValueError, RuntimeError) as exc:
            raise NotSent(type(exc).__name__) from exc

    async def _connected(self, server: Server) -> Connection:
        tls: dict[str, Any] = {"ssl": _tls(), "server_hostname": server.name} if server.is_tls else {}
        async with asyncio.timeout(self._connect_seconds):
            addresses = await self._addresses_of(server)
            try:
                # One address family may lead nowhere.
                line = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS)
            except BaseException:
                self._addresses.pop((server.host, server.port), None)  # they may have changed
                raise
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made, inode = functools.partial(Connection, line), os.fstat(line.fileno()).st_ino
            opening = asyncio.ensure_future(asyncio.get_running_loop().create_connection(made, sock=line, **tls))
            try:
                _, connection = await asyncio.shield(opening)
            except BaseException:
                # It is not cancelled, for asyncio would go on with it for ever, nor is the socket closed under it, for
                # its descriptor would be given to another one, which then would be taken for this one.
                if _is_still(line, inode):
                    with suppress(OSError):
                        line.shutdown(socket.SHUT_RDWR)
                opening.add_done_callback(functools.partial(_close_opened, line, inode))
                raise
        return connection

    async def _addresses_of(self, server: Server) -> list[Any]:
        """Looked up once for all who wait for it. There are few threads for that, and each call to a name whose name
        server hangs would take one of them, from all other names.
        """
        key = (server.host, server.port)
        looked_up = self._addresses.get(key)
        if looked_up is None:
            looked_up = self._addresses[key] = asyncio.ensure_future(_look_up(*key))
            looked_up.add_done_callback(functools.partial(self._note_addresses, key))
        return await asyncio.shield(looked_up)

    def _note_addresses(self, key: tuple[str, int], looked_up: asyncio.Future[list[Any]]) -> None:
        if looked_up.cancelled() or looked_up.exception() is not None:
            self._addresses.pop(key, None)
        else:
            looked_up.get_loop().call_later(NAME_SECONDS, self._addresses.pop, key, None)

    def _proxy_to(self, server: Server) -> Server | None:
        """The way out of many data centres."""
        proxy = self._proxies.get(server.scheme)
        if not proxy or proxy_bypass_environment(f"{server.host}:{server.port}", self._proxies):
            return None
        return _server(proxy if "://" in proxy else f"http://{proxy}")


def _close_opened(line: socket.socket, inode: int, opening: asyncio.Future[tuple[Any, Connection]]) -> None:
    """What is left of an opening that nobody waits for any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[1].close()
    elif _is_still(line, inode):
        line.close()
    else:
        # uvloop closes it without telling the socket, which then would close whatever has its descriptor by now.
        line.detach()


def _is_still(line: socket.socket, inode: int) -> bool:
    """Whether its descriptor is its own."""
    try:
        return os.fstat(line.fileno()).st_ino == inode
    except OSError:
        return False


async def _look_up(host: str, port: int) -> list[Any]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def _tunnelled(connection: Connection, server: Server, proxy: Server) -> Connection:
    """Through a proxy, which sees where it goes and nothing of what is said."""
    lines = [f"CONNECT {server.place} HTTP/1.1", f"Host: {server.place}"]
    if proxy.login:
        lines.append(f"Proxy-Authorization: {proxy.login}")
    answer = connection.ask(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), b"", None)
    try:
        async with asyncio.timeout(PROXY_SECONDS):
            await answer.head()
            if answer.status != 200 or connection.transport is None:
                raise NotSent(f"the proxy does not go there: {answer.status}")
            inner = Connection(connection.line)
            transport = await asyncio.get_running_loop().start_tls(
                connection.transport, inner, _tls(), server_hostname=server.name
            )
        if transport is None:
            raise NotSent("closed while TLS began")
    except Broken as exc:
        answer.close()
        raise NotSent(f"the proxy: {exc}") from exc
    except BaseException:
        answer.close()
        raise
    inner.connection_made(transport)
    return inner


# --- what a request says --------------------------------------------------------------------------------------------


def _head(
    server: Server, method: str, path: str, headers: Mapping[str, str], body: bytes | None, proxy: Server | None
) -> bytes:
    target = server.path + path or "/"
    if _PLAIN_PATH.fullmatch(target) is None:
        target = quote(target, safe="/._~!$&'()*+,;=:@%?-")
    if proxy is not None and not server.is_tls:
        target = f"http://{server.authority}{target}"
        if proxy.login:
            headers = {**headers, "Proxy-Authorization": proxy.login}
    if server.login and "Authorization" not in headers:
        headers = {**headers, "Authorization": server.login}
    lines = [f"{method} {target} HTTP/1.1", f"Host: {server.authority}", f"User-Agent: {AGENT}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None or method != "GET":
        lines.append(f"Content-Length: {len(body or b'')}")
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1 or "\0" in head:
        # The rest of a value would be a line of its own, and another request.
        raise NotSent("a line break in a header")
    try:
        # As whoever typed a key that is not ASCII has it in his configuration, and a server in its own.
        return f"{head}\r\n\r\n".encode()
    except UnicodeError as exc:
        raise NotSent("a header that no header can be") from exc


@functools.lru_cache(maxsize=256)
def _server(url: str) -> Server:
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme.lower(), parts.hostname or ""
        usual = _PORTS[scheme]
        port = usual if parts.port is None else parts.port
        if not host.isascii():
            # Not by Python's own, which is of 2003: it takes the ß in a name for ss, which may be somebody else's.
            host = idna.encode(host, uts46=True).decode("ascii")
    except (ValueError, KeyError) as exc:
        raise NotSent("no address of an HTTP server") from exc
    if not host:
        raise NotSent("no address of an HTTP server")
    server = Server(scheme, host, port, parts.path.removesuffix("/"), "", _login(parts))
    shown = server.place
    return replace(server, authority=shown.removesuffix(f":{port}") if port == usual else shown)


def _login(parts: SplitResult) -> str:
    if parts.username is None and parts.password is None:
        return ""
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
