"""One HTTP/1.1 connection, and the answers that come over it, one after the other.

Owns what a server's bytes are: framing by llhttp (httptools), and how much of it may say nothing. Must not open
connections nor decide who is given one (billing.engine.http does), nor know what an answer means.

A client of our own, for this is the path of every paid call: one exchange took 0.15 ms of CPU with aiohttp and takes
0.06 ms here, three times a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, cast

import httptools

from billing.engine.unpacking import UNPACKED_BYTES, CannotUnpack, Unpacker, unpacker_for

if TYPE_CHECKING:
    from collections.abc import Callable

# Of an answer's head. Some gateways send a page of policy along: 8 KB of it would make every call a broken one.
HEAD_BYTES = 128 * 1024
# What comes faster than it is read waits at its server.
WAITING_BYTES = 256 * 1024
# Beside each byte of an answer so many may be HTTP's own: a chunk of one byte has five. Interim answers, blank lines
# and what may stand beside a chunk are read away, for as long as any clock allows and at all the speed there is.
NOISE_FACTOR = 64
NOISE_BYTES = 2 * 1024 * 1024
# Of a header that comes again and again, so much is put together: each time all of it is copied.
JOINED_BYTES = 16 * 1024
# A long body is handed on in pieces, as its server takes them: all at once it would be in memory three times over under
# TLS, and keep the loop from everybody else for as long as it takes to encrypt, 60 ms for 8 MB.
PIECE_BYTES = 256 * 1024


class NotSent(Exception):
    """Nothing of the request was sent: nobody could be reached, or it cannot be written as a request."""


class Broken(Exception):
    """The request was sent, perhaps not whole, and no whole answer to it came."""


class Answer:
    """What one request is answered: its status and headers, then its body as it comes.

    `close` it, or give it back by `release` once it `is_whole`.
    """

    __slots__ = (
        "_connection",
        "_ends_with_connection",
        "_failure",
        "_head_bytes",
        "_is_kept",
        "_noise",
        "_parser",
        "_parts",
        "_said",
        "_unpacker",
        "_waiter",
        "_waiting_bytes",
        "has_head",
        "headers",
        "is_whole",
        "status",
    )

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}  # names in lower case; of a repeated one the values with commas between
        self.has_head = self.is_whole = False
        self._connection: Connection | None = connection
        self._failure: Exception | None = None
        self._parts: list[bytes] = []
        self._waiting_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._unpacker: Unpacker | None = None
        self._is_kept = False  # the connection, after this answer
        self._ends_with_connection = False
        self._head_bytes = self._noise = self._said = 0
        self._parser = httptools.HttpResponseParser(self)
        # As lenient as the clients that people's servers have been tried with.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    # --- reading ---

    async def head(self, until: float | None = None) -> None:
        """Back once status and headers are there. Raises Broken, and TimeoutError as `read_some` does."""
        while not self.has_head:
            if self._failure is not None:
                raise self._failure
            await self._more(until)

    async def read_some(self, until: float | None = None) -> bytes:
        """What has come; b"" at the end of the answer. Raises Broken where it breaks off, after what came before.

        Raises TimeoutError where nothing came `until` then, by the loop's clock. A timeout around each read would be
        4 us of CPU for every piece of an answer, and this is 1.
        """
        while not self._parts:
            if self.is_whole:
                return b""
            if self._failure is not None:
                raise self._failure
            await self._more(until)
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        if self._waiting_bytes > WAITING_BYTES and self._connection is not None:
            self._connection.go_on()
        self._waiting_bytes = 0
        return data

    async def read(self, most: int, until: float | None = None) -> bytes:
        """All of the body, of at most so many bytes. Raises Broken, and TimeoutError as `read_some` does."""
        whole = bytearray()
        while data := await self.read_some(until):
            if self.is_whole and not whole and len(data) <= most:
                return data
            whole += data
            if len(whole) > most:
                self.close()
                raise Broken("longer than it may be")
        return bytes(whole)

    async def _more(self, until: float | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        clock = None if until is None else loop.call_at(until, self.wait_no_longer)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if clock is not None:
                clock.cancel()

    def wait_no_longer(self) -> None:
        """Let whoever waits for more of it have a TimeoutError now."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    @property
    def is_read(self) -> bool:
        """All of it came, and was taken."""
        return self.is_whole and not self._parts

    # --- its end ---

    def release(self) -> None:
        """Let its connection be used again, if it can be."""
        self._leave(is_kept=self._is_kept and self.is_whole)

    def close(self) -> None:
        """Close its connection: the rest of the answer is not wanted."""
        self._leave(is_kept=False)

    def _leave(self, *, is_kept: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            del self._parser  # it knows us: whatever is here would stay until it is collected, which is rare
            connection.over(is_kept=is_kept)

    # --- what the connection says ---

    def take(self, data: bytes) -> None:
        before = self._said
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            cause = exc.__context__ if isinstance(exc, httptools.HttpParserCallbackError) else exc
            is_known = isinstance(cause, Broken | CannotUnpack)
            self.fail(Broken(f"no answer that can be read: {cause if is_known else type(cause).__name__}"))
            return
        if not self.has_head:
            self._head_bytes += len(data)
        self._noise = max(0, self._noise + len(data) - NOISE_FACTOR * (self._said - before))
        if self._noise > NOISE_BYTES or self._head_bytes > HEAD_BYTES:
            self.fail(Broken("much that says nothing"))
            return
        if self._waiting_bytes > WAITING_BYTES and not self.is_whole and self._connection is not None:
            self._connection.pause()
        self._wake()

    def lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._is_kept = False
        if self.has_head and self._ends_with_connection and exc is None:
            self._end()
        if not self.is_whole and self._failure is None:
            self._failure = Broken("the connection was closed" if exc is None else type(exc).__name__)
        self._wake()

    def fail(self, exc: Exception) -> None:
        """Give up on it: who waits for it is told, and the connection ends."""
        if self._failure is None:
            self._failure = exc
        self._wake()
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- what llhttp says ---

    def on_message_begin(self) -> None:
        if self.is_whole:
            # Another answer, which nobody asked for: the next caller would be given it as his.
            self._is_kept = False
            raise Broken("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.has_head:
            return  # a trailer, after the body: the head has been acted upon by then
        key, said = name.decode("latin-1").lower(), value.decode("latin-1")
        before = self.headers.get(key)
        if before is None:
            self.headers[key] = said
        elif len(before) < JOINED_BYTES:
            self.headers[key] = f"{before}, {said}"

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self.status, self.has_head = status, True
        headers = self.headers
        self._ends_with_connection = (
            "content-length" not in headers and headers.get("transfer-encoding", "identity").lower() == "identity"
        )
        if "content-encoding" in headers:
            self._unpacker = unpacker_for(headers["content-encoding"])

    def on_body(self, data: bytes) -> None:
        if self._unpacker is not None:
            data = self._unpacker.unpacked(data)
            if not data:
                return
        self._said += len(data)
        self._parts.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes > UNPACKED_BYTES:
            raise Broken("a few bytes that become many")

    def on_message_complete(self) -> None:
        if not self.has_head:
            self.headers = {}  # an interim answer: the real one follows
            return
        self._is_kept = bool(self._parser.should_keep_alive())
        self._end()

    def _end(self) -> None:
        if self._unpacker is not None and not self._unpacker.is_whole:
            # Its framing is whole where something on the way made it anew, of what was cut before.
            self._is_kept = False
            self._failure = Broken("a compressed answer that breaks off")
        else:
            self.is_whole = True


class Connection(asyncio.Protocol):
    """The bytes of one connection. Whoever is given it asks once, and gives it back by the answer."""

    def __init__(self, line: socket.socket) -> None:
        self.idle_since = 0.0
        self.whose = ""  # its last request
        self.is_open = True
        self.is_answered = False  # it has brought an answer
        self.when_over: Callable[[], None] | None = None  # called once, when it is no longer open
        self.line = line  # below TLS, and below a tunnel
        self.transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._is_paused = False
        self._unsent: memoryview | None = None  # of the body
        self._is_full = False  # the way there: what is written waits
        self._given_back: Callable[[Connection], None] | None = None

    def ask(self, head: bytes, body: bytes, given_back: Callable[[Connection], None] | None) -> Answer:
        """Send a request. `given_back` is called with the connection where it can be used again. Raises NotSent."""
        if not self.is_open or self.transport is None:
            raise NotSent("closed as soon as it was open")
        self._given_back = given_back
        self._answer = answer = Answer(self)
        if len(body) <= PIECE_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self._unsent = memoryview(body)
            self._send_more()
        return answer

    def _send_more(self) -> None:
        if self._unsent and not self._is_full and self.transport is not None:
            piece, self._unsent = self._unsent[:PIECE_BYTES], self._unsent[PIECE_BYTES:]
            self.transport.write(piece)
            if self._unsent:
                # After what has come is read: a server that refuses the body answers and closes at once, and a write
                # that fails for that would lose its answer. Timers come after what is read, `call_soon` before.
                asyncio.get_running_loop().call_later(0, self._send_more)

    @property
    def is_quiet(self) -> bool:
        """Neither its end has come nor bytes that nobody asked for, also where the loop has not heard of them yet."""
        try:
            self.line.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return self.is_open
        except OSError:
            pass
        return False

    def over(self, *, is_kept: bool) -> None:
        self._answer = None
        if is_kept and self._given_back is not None and self._can_be_used_again():
            self._given_back(self)
        else:
            self.close()

    def _can_be_used_again(self) -> bool:
        if not self.is_open or self._is_paused or self.transport is None:
            return False
        # An answer may come before all was sent. Its server will take the rest for the next request, or never read it.
        return not self._unsent and not self.transport.get_write_buffer_size()

    def _no_longer_open(self) -> None:
        self.is_open, self._unsent = False, None
        when_over, self.when_over = self.when_over, None
        if when_over is not None:
            when_over()

    def close(self) -> None:
        self._no_longer_open()
        if self.transport is not None:
            # Not `close`, which would first send what waits to be sent.
            self.transport.abort()

    def drop(self) -> None:
        """Close it at once, by a reset. Closed in order, a connection keeps its port for a minute: at a few hundred a
        second there would be no port left to open the next one from.
        """
        with contextlib.suppress(OSError):
            self.line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def pause(self) -> None:
        if not self._is_paused and self.transport is not None:
            self._is_paused = True
            self.transport.pause_reading()

    def go_on(self) -> None:
        if self._is_paused and self.is_open and self.transport is not None:
            self._is_paused = False
            self.transport.resume_reading()

    # --- what the loop says ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        if self._answer is not None:
            self._answer.take(data)
        else:
            # Nobody had asked for it. The next caller would be given it as the answer to another question, and that
            # may be another tenant's.
            self.close()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._send_more()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._no_longer_open()
        transport, self.transport = self.transport, None
        if exc is not None and transport is not None and transport.get_extra_info("sslcontext") is None:
            self._read_what_came()
        if self._answer is not None:
            self._answer.lost(exc)

    def _read_what_came(self) -> None:
        """A write that failed ends the connection at once, and before the answer is read that says why it did.

        The loop closes the socket only after it has told us. Under TLS what is there is not ours to read.
        """
        with contextlib.suppress(OSError):
            while self._answer is not None and not self._answer.is_whole and (data := self.line.recv(PIECE_BYTES)):
                self._answer.take(data)
