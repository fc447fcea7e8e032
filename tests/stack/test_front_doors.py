"""What one stranger can do at the front, on each path and while web is busy: nothing that others notice.

web stands here for one whose threads are all taken: connections to it are made, by the kernel, and nobody reads them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import threading
import time

import httpx
import pytest

from config.env import BASE_DIR
from config.stack.front import Listener, front_command
from tenants.http import TooLarge
from tests.stack.conftest import wait_until
from tests.support.front import Front

LIMIT = 1_048_576
CHAT = "/api/chat/stream/"
PATHS = {
    "page": "/login/", "API": "/api/summarize/", "sign-up": "/api/signup/", "plane": "/api/chat/",
    "static": "/static/site.css", "unknown": "/nothing/here", "health": "/healthz",
}  # fmt: skip


class BusyWeb:
    def __init__(self, path) -> None:
        self.listener = Listener(path=path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(1000)
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def asked(self) -> int:
        """How many connections have come to it since it was asked last."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()
                count += 1
        return count


@pytest.fixture
def busy_web(folder):
    with contextlib.closing(BusyWeb(folder / "busy.sock")) as web:
        yield web


@pytest.fixture
def front(folder, busy_web, plane):
    with Front(folder, web=busy_web.listener, plane=plane.listener) as front:
        yield front


def within(seconds: float, ask):
    """Its answer, which comes so soon: at the best of a few tries, for a machine may stand still in any of them."""
    for _ in range(5):
        began = time.monotonic()
        answer = ask()
        if time.monotonic() - began < seconds:
            return answer
    raise AssertionError(f"not within {seconds} s")


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def until_closed(front, sent: bytes, drip: bytes) -> float:
    """How long a client is borne with that sends a piece a second, or nothing."""
    began = time.monotonic()
    with front.connect() as slow:
        with contextlib.suppress(OSError):
            slow.sendall(sent)
        slow.settimeout(1)
        while time.monotonic() - began < 60:
            try:
                slow.sendall(drip)
                if not slow.recv(65_536):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - began


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_body_or_head_over_the_limit_is_refused_without_asking_anybody(front, busy_web, plane, path):
    for content in (lambda: b"x" * (LIMIT + 1), lambda: iter([b"x" * 65_536] * 17)):
        answer = within(2, lambda content=content: httpx.post(front.url + path, content=content(), timeout=30))
        assert answer.status_code == 413
        if path.startswith("/api/"):
            assert answer.json() == TooLarge().body()
        else:
            assert TooLarge.message in answer.text

    with front.connect() as client:
        client.sendall(head(path, f"Content-Length: {10**17}"))
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")

    def ask_with_a_large_head() -> bytes:
        with front.connect(30) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Much: {'x' * 50_000}\r\n\r\n".encode())
            return bytes(client.recv(100))

    assert within(2, ask_with_a_large_head).startswith(b"HTTP/1.1 431 ")
    assert busy_web.asked() == 0
    assert plane.seen() == []


@pytest.mark.parametrize("path", ["/login/", "/api/chat/"])
@pytest.mark.parametrize("length", [2 * LIMIT, 4 * LIMIT])
def test_nothing_after_the_limit_is_taken_for_a_request(front, busy_web, plane, path, length):
    """A proxy before the front sends others' requests on the same connection, and would give them its answer."""
    smuggled = b"GET /api/chat/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = b"x" * (LIMIT + 1) + smuggled * ((length - LIMIT) // len(smuggled))
    answers = b""
    with front.connect() as client, contextlib.suppress(OSError):
        client.sendall(head(path, "Transfer-Encoding: chunked") + b"%x\r\n" % (8 * LIMIT))
        client.sendall(body)
        client.settimeout(13)
        while piece := client.recv(65_536):
            answers += piece
    # One at most: where the front hangs up while we still write, the connection's end takes the answer with it.
    assert answers.count(b"HTTP/1.1 ") <= 1
    assert answers == b"" or answers.startswith(b"HTTP/1.1 413 ")
    assert busy_web.asked() == 0
    assert plane.seen() == []


@pytest.mark.slow
def test_slow_senders_are_cut_off_on_each_path_and_slow_streams_are_not(front, busy_web, plane):
    """One test for all, because each waits longer than the deadlines of ten seconds."""
    senders = {"silent": (b"", b""), "head": (b"GET /", b"a")}
    for name, path in PATHS.items():
        senders[f"{name}: body"] = (head(path, "Content-Length: 99"), b"a")
        senders[f"{name}: chunks"] = (head(path, "Transfer-Encoding: chunked"), b"1\r\na\r\n")
    senders["over the limit"] = (head("/a/", f"Content-Length: {LIMIT + 1}"), b"a")
    borne = {}

    def send(name, sent, drip):
        borne[name] = until_closed(front, sent, drip)

    threads = [threading.Thread(target=send, args=[name, *what]) for name, what in senders.items()]
    with httpx.stream("POST", front.url + CHAT, content=b"{}", timeout=90) as answer:
        lines = answer.iter_lines()
        next(lines)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        next(lines)
        httpx.post(f"{front.url}/api/chat/say/", content="end").raise_for_status()
        assert next(lines) == "data: end"
    assert borne.pop("over the limit") < 9  # it waited for no deadline
    # Ten, and what a slow machine adds; without them it would be 75, or as long as somebody likes.
    assert all(9 < seconds < 40 for seconds in borne.values()), borne
    # Half a body is nobody's business behind the front.
    assert busy_web.asked() == 0
    assert plane.seen() == [CHAT, "/api/chat/say/"]


IDLERS = {
    "silent": b"",
    "in its head": b"G",
    "in its body": head("/login/", "Content-Length: 9") + b"x",
    "after an answer": b"GET /api/chat/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


def test_hundreds_of_idle_sockets_stop_nobody(front, plane):
    with contextlib.ExitStack() as stack:
        for number in range(600):
            idler = stack.enter_context(front.connect())
            idler.sendall(list(IDLERS.values())[number % len(IDLERS)])
        wait_until(lambda: len(plane.seen()) == 600 // len(IDLERS))
        assert within(1, lambda: httpx.get(f"{front.url}/api/chat/", timeout=30)).status_code == 200
        too_much = b"x" * (LIMIT + 1)
        assert within(1, lambda: httpx.post(f"{front.url}/login/", content=too_much, timeout=30)).status_code == 413


def test_a_connection_without_a_request_is_not_kept_for_ever():
    """Its minute and a quarter is too long for a test to wait; without the line it would be five minutes."""
    adapt = [front_command()[0], "adapt", "--config", "config/Caddyfile", "--adapter", "caddyfile"]
    adapted = json.loads(subprocess.run(adapt, cwd=BASE_DIR, capture_output=True, check=True).stdout)
    for server in adapted["apps"]["http"]["servers"].values():
        assert server["idle_timeout"] == 75_000_000_000
        assert server["read_header_timeout"] == 10_000_000_000


# --- HTTP/2, where the front has TLS ----------------------------------------------------------------------------------


def test_a_length_that_comes_twice_by_http_2_is_400_as_by_http_1(folder, busy_web, plane):
    """Clients do not send one. It was a 500 without a word."""
    with Front(folder, web=busy_web.listener, plane=plane.listener, by_tls=True) as front:
        status, body = by_http_2(front, "/v1/models", ("content-length", "2"), ("content-length", "3"), body=b"{}")
    assert (status, json.loads(body)["error"]["code"]) == (BAD_REQUEST_OF_HPACK, "invalid")
    assert busy_web.asked() + len(plane.seen()) == 0


BAD_REQUEST_OF_HPACK = 0x80 + 12  # :status 400 has a number in its table


def by_http_2(front, path: str, *more: tuple[str, str], body: bytes) -> tuple[int, bytes]:
    """The first byte of the answer's head, and its body. As no client that is installed here would send it."""
    head = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "localhost"), *more]
    with front.connect_by_tls("h2") as client:
        named = b"".join(b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in pair) for pair in head)
        frames = [(4, 0, 0, b""), (1, 4, 1, named), (0, 1, 1, body)]  # settings, head, body with the end
        sent = (
            struct.pack(">I", len(of))[1:] + struct.pack(">BBI", kind, flags, at) + of for kind, flags, at, of in frames
        )
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(sent))
        stream, status, said = client.makefile("rb"), 0, b""
        while len(start := stream.read(9)) == 9:
            of = stream.read(int.from_bytes(start[:3], "big"))
            kind, is_last = start[3], start[4] & 1
            status = of[0] if kind == 1 else status
            said += of if kind == 0 else b""
            if kind in (0, 1) and is_last:
                break
    return status, said
