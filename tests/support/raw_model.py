"""A model's server that writes exactly the bytes that a test says: HTTP itself may be odd here.

Owns the connections. `script(line)` is called once for each request, with what can be done to it; FakeUpstream
speaks HTTP as it should and is the right one for everything else.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def frame(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def said(text: Any) -> bytes:
    return frame({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def report(tokens_input: Any = 10, tokens_output: Any = 1) -> bytes:
    return frame({"choices": [], "usage": {"prompt_tokens": tokens_input, "completion_tokens": tokens_output}})


STOP = frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"


class Left(Exception):
    """The caller has gone, or the test is over."""


class Line:
    """One request and the connection that it came on. `path`, `head` and `body` are what was asked."""

    def __init__(self, connection: socket.socket, number: int, stopping: threading.Event) -> None:
        self.connection = connection
        self.number = number  # of the request on its connection
        self.closed = False
        self._stopping = stopping
        self._left = b""

    def read_request(self) -> bool:
        data = self._left
        while b"\r\n\r\n" not in data:
            more = self.connection.recv(65536)
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        self.head = head.decode("latin1")
        self.path = self.head.split(" ")[1]
        length = next(
            (int(row.split(":")[1]) for row in self.head.split("\r\n") if row.lower().startswith("content-length")), 0
        )
        while len(body) < length:
            more = self.connection.recv(65536)
            if not more:
                return False
            body += more
        self.body, self._left = body[:length], body[length:]
        return True

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.connection.sendall(part)

    def chunk(self, *parts: bytes) -> None:
        for part in parts:
            self.send(b"%x\r\n%b\r\n" % (len(part), part))

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    def wait(self, seconds: float) -> None:
        """Raises Left as soon as the caller has gone."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self.connection], [], [], min(left, 0.02))[0]:
                with suppress(ConnectionError):
                    if self.connection.recv(1, socket.MSG_PEEK):
                        time.sleep(0.01)
                        continue
                raise Left
            if self._stopping.is_set():
                raise Left

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.closed = True
        self.connection.close()


class RawModel:
    """`with RawModel() as model: model.script = lambda line: line.send(…)`. A connection stays open after a script."""

    def __init__(self, script: Callable[[Line], None] | None = None) -> None:
        self.script = script
        self.requests: list[Line] = []
        self.left = 0
        self.connections_made = 0
        self._open: set[socket.socket] = set()
        self._stopping = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    @property
    def connections_open(self) -> int:
        return len(self._open)

    def wait_until(self, condition: Callable[[RawModel], bool], seconds: float = 20.0) -> bool:
        until = time.monotonic() + seconds
        while not (true := condition(self)) and time.monotonic() < until:
            time.sleep(0.01)
        return true

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections_made += 1
            self._open.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = 0
        try:
            line = Line(connection, number, self._stopping)
            while not line.closed and line.read_request():
                self.requests.append(line)
                assert self.script is not None
                self.script(line)
                number += 1
                if bool(line.closed):
                    break
                rest, line = line._left, Line(connection, number, self._stopping)
                line._left = rest
        except (Left, OSError):
            self.left += 1
        finally:
            connection.close()
            self._open.discard(connection)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
