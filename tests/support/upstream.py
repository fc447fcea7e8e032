"""A language model's HTTP server for tests: real sockets, a made-up model.

Owns what it answers and what it remembers of its callers. Any process on this machine may call it; everything a
test can set may be changed while it runs, and counts for the calls that come after.

    with FakeUpstream(tokens=["Hel", "lo"]) as upstream:
        settings.LLM_BASE_URL = upstream.base_url
        ...
        assert len(upstream.calls) == 1
"""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Body = dict[str, Any]
PROMPT_TOKENS = 10  # what it says of every prompt


@dataclass
class Behaviour:
    """What the next calls meet."""

    tokens: list[str] = field(default_factory=lambda: ["Hello", ",", " world", "."])
    # Reported when the caller asks for it: figures, a function of the request, or None to keep silent. Unset:
    # PROMPT_TOKENS, and one for each token that was sent.
    usage: Body | Callable[[Body], Body | None] | None = field(default_factory=lambda: dict(COUNTED))
    # None: the stream ends without a word why. "length" is said by itself when max_tokens cuts the tokens.
    finish_reason: str | None = "stop"
    honour_max_tokens: bool = True
    # What it says instead of `tokens`, by the request: an assistant's message, such as one that calls tools.
    message: Callable[[Body], Body] | None = None
    delay_first: float = 0.0  # seconds, after the headers of a stream and before its first token
    delay_between: float = 0.0
    last_word_after: threading.Event | None = None  # a stream's last token waits until it is set, however long

    # Failures.
    status: int | None = None  # answer with this HTTP status and an error that quotes the prompt and the key
    hang: bool = False  # take the request and never answer
    drop: bool = False  # take the request and drop the connection
    cut_after: int | None = None  # drop the connection in mid-answer, after so many tokens
    garbage: bool = False  # an event stream of what is no JSON
    html: bool = False  # a page, as a proxy in between would send one
    raw: bytes | None = None  # an event stream of exactly these bytes
    # Exactly these, in order, with `status` and `part_headers`: text or bytes to send, {"wait_s": n} a silence on the
    # open connection, an event for one until it is set, {"repeat": n, "frame": text} a text n times, {"drop": True} a
    # reset.
    parts: list[Any] | None = None
    part_headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})

    # The connection and the bill.
    keep_alive: bool = False  # else one call a connection: `connections_open` are then callers that have not left
    closes_silently: bool = False  # kept alive, as the headers say, and yet closed after the answer
    bills_after_cut: bool = False  # a caller who leaves is charged all `tokens`

    # POST /tokenize and /apply-template, as llama.cpp and vLLM have them: how many tokens a body has. None: 404.
    tokenizer: int | Callable[[Body], int] | None = None


COUNTED: Body = {"counted": True}  # stands for "count them"


class FakeUpstream(Behaviour):
    """`with FakeUpstream(status=500) as upstream:` serves on a free port of loopback until the block ends.

    Remembers: `calls` (the parsed bodies), `headers` (of each call), `spent` (what each really used), `aborted`
    (callers who left before the end), `connections_open`, `connections_made`, `tokenized`. A new `tokens=` and so on
    may be assigned at any time; `reset()` makes it as new; `play(case)` answers as an odd answer's case says.
    """

    def __init__(self, **behaviour: Any) -> None:
        super().__init__(**behaviour)
        self._lock = threading.Lock()
        self._calls: list[Body] = []
        self._headers: list[dict[str, str]] = []
        self._spent: list[list[int]] = []
        self._tokenized: list[Body] = []
        self._aborted = 0
        self._connections: set[socket.socket] = set()
        self._connections_made = 0
        self._answering: set[socket.socket] = set()
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.upstream = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    # For the test

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def calls(self) -> list[Body]:
        """The parsed bodies of all calls for a completion, in the order they came."""
        with self._lock:
            return list(self._calls)

    @property
    def headers(self) -> list[dict[str, str]]:
        """Headers of the same calls, names in lower case."""
        with self._lock:
            return list(self._headers)

    @property
    def spent(self) -> list[tuple[int, int]]:
        """Tokens of input and output that each of the same calls has really used until now."""
        with self._lock:
            return [(tokens_input, tokens_output) for tokens_input, tokens_output in self._spent]

    @property
    def tokenized(self) -> list[Body]:
        """The parsed bodies of all calls that counted tokens."""
        with self._lock:
            return list(self._tokenized)

    @property
    def aborted(self) -> int:
        """How many callers left before their answer was complete."""
        with self._lock:
            return self._aborted

    @property
    def connections_open(self) -> int:
        with self._lock:
            return len(self._connections)

    @property
    def connections_made(self) -> int:
        """Since the start or the last reset."""
        with self._lock:
            return self._connections_made

    def close_idle(self) -> int:
        """Close the connections on which nothing is asked just now, as servers do after a while; how many."""
        with self._lock:
            idle = self._connections - self._answering
            for connection in idle:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            return len(idle)

    def play(self, case: Any) -> None:
        """Answer from now on as `case` says: an object with `status`, `headers` and `parts`."""
        self.status, self.part_headers, self.parts = case.status, dict(case.headers), list(case.parts)

    def reset(self) -> None:
        """Forget the calls and behave as a new one. What is still left of them counts for nothing from here on."""
        self.close_idle()
        for item in fields(Behaviour):
            setattr(self, item.name, getattr(Behaviour(), item.name))
        with self._lock:
            self._calls, self._headers, self._aborted = [], [], 0
            self._spent, self._tokenized, self._connections_made = [], [], 0

    def wait_until(self, condition: Callable[[FakeUpstream], bool], timeout: float = 20.0) -> bool:
        """`upstream.wait_until(lambda u: u.aborted == 1)`: whether it came true in time."""
        deadline = time.monotonic() + timeout
        while not (true := condition(self)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return true

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()  # ends hanging and delayed answers
        self._server.shutdown()
        with self._lock:
            for connection in self._connections:  # ends who has connected and says nothing
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()  # waits for the handlers
        self._thread.join()

    # For the handlers

    def _remember(self, body: Body, headers: dict[str, str]) -> list[int]:
        """Where the handler counts what this call uses."""
        with self._lock:
            self._calls.append(body)
            self._headers.append(headers)
            self._spent.append(spent := [0, 0])
            return spent

    @contextmanager
    def _busy(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._answering.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._answering.discard(connection)

    def _count_tokens(self, body: Body) -> int | None:
        with self._lock:
            self._tokenized.append(body)
        return self.tokenizer(body) if callable(self.tokenizer) else self.tokenizer

    def _left(self, spent: list[int]) -> None:
        """The caller of the call that used this; not of one before the last reset."""
        with self._lock:
            self._aborted += any(spent is each for each in self._spent)

    @contextmanager
    def _connected(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._connections.add(connection)
            self._connections_made += 1
        try:
            yield
        finally:
            with self._lock:
                self._connections.remove(connection)

    def _words(self, body: Body) -> tuple[list[str], str | None]:
        tokens = list(self.tokens)
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        if self.honour_max_tokens and isinstance(most, int) and most < len(tokens):
            return tokens[:most], "length"
        return tokens, self.finish_reason

    def _usage(self, body: Body, sent: int) -> Body | None:
        usage = self.usage(body) if callable(self.usage) else self.usage
        if usage == COUNTED:
            return {
                "prompt_tokens": PROMPT_TOKENS,
                "completion_tokens": sent,
                "total_tokens": PROMPT_TOKENS + sent,
            }
        return usage


class _Left(Exception):
    """The caller has gone, or the test is over."""


class _Server(ThreadingHTTPServer):
    upstream: FakeUpstream
    daemon_threads = False  # the end of the block waits for every handler: none outlives its test
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller who cuts the line is what many tests are about, and no news for the terminal."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 30

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        with self.server.upstream._connected(self.connection):
            super().handle()

    def do_GET(self) -> None:
        self.close_connection = True
        if self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": "fake-model", "object": "model"}]})
        else:
            self._json(404, {"error": {"message": "no such address", "code": 404}})

    def do_POST(self) -> None:
        upstream = self.server.upstream
        self.close_connection = not upstream.keep_alive
        with upstream._busy(self.connection):
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/v1/chat/completions" or self.path in OTHER_KINDS:
                self._complete(json.loads(raw))
            elif self.path in ("/tokenize", "/apply-template") and upstream.tokenizer is not None:
                self._tokenize(json.loads(raw))
            else:
                self._json(404, {"error": {"message": "no such address", "code": 404}})
        if upstream.closes_silently:
            self.close_connection = True

    def end_headers(self) -> None:
        if self.close_connection:
            # Else a caller that keeps connections would send its next call into this one as it closes.
            self.send_header("Connection", "close")
        super().end_headers()

    def _complete(self, body: Body) -> None:
        upstream = self.server.upstream
        self._spent = upstream._remember(body, {name.lower(): value for name, value in self.headers.items()})
        try:
            self._answer(body)
        except (_Left, ConnectionError):
            self.close_connection = True
            if upstream.bills_after_cut:
                self._spent[1] = len(upstream._words(body)[0])
            if not upstream._stopping.is_set():
                upstream._left(self._spent)

    def _tokenize(self, body: Body) -> None:
        if self.path == "/apply-template":
            prompt = "".join(f"<{message['role']}>{message['content']}" for message in body["messages"])
            self._json(200, {"prompt": prompt})
            return
        count = self.server.upstream._count_tokens(body) or 0
        self._json(200, {"count": count, "max_model_len": 4096, "tokens": list(range(count))})

    def _answer(self, body: Body) -> None:
        upstream = self.server.upstream
        if upstream.parts is None and upstream.status is None:
            self._spent[0] = PROMPT_TOKENS
        if upstream.hang:
            self._wait(float("inf"))
        elif upstream.drop:
            self._drop()
        elif upstream.parts is not None:
            self._play(upstream.parts)
        elif upstream.status is not None:
            quoted = f"upstream says {upstream.status} to {self.headers.get('Authorization')}: {body.get('messages')}"
            self._json(upstream.status, {"error": {"message": quoted, "code": upstream.status}})
        elif upstream.html:
            self._send(200, "text/html", b"<!doctype html><title>Sign in to the proxy</title>")
        elif upstream.garbage:
            self._send(200, "text/event-stream", b"data: {oh no\n\ndata: \xff\xfe\n\n")
        elif upstream.raw is not None:
            self._send(200, "text/event-stream", upstream.raw)
        elif self.path in OTHER_KINDS:
            self._json(200, OTHER_KINDS[self.path](body, upstream.tokens))
        elif body.get("stream"):
            self._stream(body)
        else:
            self._whole(body)

    def _play(self, parts: list[Any]) -> None:
        upstream = self.server.upstream
        self.send_response(upstream.status or 200)
        for name, value in upstream.part_headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if (upstream.status or 200) == 200:
            self._spent[0] = PROMPT_TOKENS
        for part in parts:
            if isinstance(part, threading.Event):
                self._wait_for(part)
            elif not isinstance(part, dict):
                self._send_part(part)
            elif "wait_s" in part:
                self._wait(part["wait_s"])
            elif "repeat" in part:
                for _ in range(part["repeat"]):
                    self._send_part(part["frame"])
            else:
                return self._drop()
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _send_part(self, part: str | bytes) -> None:
        data = part.encode() if isinstance(part, str) else part
        if data:  # an empty chunk would be the end
            self._write(data)
            self._spent[1] += _pieces(data)

    def _stream(self, body: Body) -> None:
        upstream = self.server.upstream
        tokens, reason = upstream._words(body)
        deltas: list[Body] = [{"content": token} for token in tokens]
        if upstream.message is not None:
            said = upstream.message(body)
            deltas, reason = _deltas(said), _reason(said)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._wait(upstream.delay_first)
        self._event(_chunk(body, [_choice({"role": "assistant", "content": None})]))
        for number, delta in enumerate(deltas):
            if number == upstream.cut_after:
                return self._drop()
            if number:
                self._wait(upstream.delay_between)
            if number == len(deltas) - 1:
                self._wait_for(upstream.last_word_after)
            self._event(_chunk(body, [_choice(delta)]))
            self._spent[1] += 1
        if upstream.cut_after is not None:
            return self._drop()
        if reason:
            self._event(_chunk(body, [_choice({}, reason)]))
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = upstream._usage(body, len(deltas))
            if usage is not None:
                self._event({**_chunk(body, []), "usage": usage})
        if reason:
            self._write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        return None

    def _whole(self, body: Body) -> None:
        upstream = self.server.upstream
        tokens, reason = upstream._words(body)
        self._wait(upstream.delay_first + upstream.delay_between * (len(tokens) - 1))
        if upstream.cut_after is not None:
            return self._drop()
        message: Body = {"role": "assistant", "content": "".join(tokens)}
        if upstream.message is not None:
            message = {"role": "assistant", "content": None, **upstream.message(body)}
            reason = _reason(message)
        self._spent[1] = len(tokens)
        answer: Body = {
            "id": "chatcmpl-fake",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model"),
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        }
        usage = upstream._usage(body, len(tokens))
        return self._json(200, answer if usage is None else {**answer, "usage": usage})

    def _event(self, data: Body) -> None:
        self._write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        self._wait(0)  # notices who left before a write into the void would
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _json(self, status: int, data: Body) -> None:
        self._send(status, "application/json", json.dumps(data).encode())

    def _send(self, status: int, content_type: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _wait(self, seconds: float) -> None:
        """Raises _Left as soon as the caller has gone."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, min(deadline - time.monotonic(), 0.02))
            if select.select([self.connection], [], [], left)[0] and not self._more():
                raise _Left
            if self.server.upstream._stopping.is_set():
                raise _Left
            if time.monotonic() >= deadline:
                return

    def _wait_for(self, event: threading.Event | None) -> None:
        while event is not None and not event.wait(0.1):
            self._wait(0)

    def _more(self) -> bool:
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except ConnectionError:
            return False

    def _drop(self) -> None:
        """As a machine that dies: a reset, and no end of anything."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            self.connection.close()


def _chunk(body: Body, choices: list[Body]) -> Body:
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": body.get("model"),
        "choices": choices,
    }


def _deltas(message: Body) -> list[Body]:
    """The message as a stream brings it: the words in one piece, and each tool's arguments in two."""
    deltas: list[Body] = [{"content": message["content"]}] if message.get("content") else []
    for index, call in enumerate(message.get("tool_calls", [])):
        function, half = call["function"], len(call["function"]["arguments"]) // 2
        begun = {**call, "index": index, "function": {**function, "arguments": function["arguments"][:half]}}
        rest = {"index": index, "function": {"arguments": function["arguments"][half:]}}
        deltas += [{"tool_calls": [begun]}, {"tool_calls": [rest]}]
    return deltas


def _reason(message: Body) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


def _text(body: Body, tokens: list[str]) -> Body:
    choice = {"index": 0, "text": "".join(tokens), "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": len(tokens)}
    return {
        "id": "cmpl-fake",
        "object": "text_completion",
        "created": 0,
        "model": body.get("model"),
        "choices": [choice],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }


def _vectors(body: Body, tokens: list[str]) -> Body:
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = [{"object": "embedding", "index": index, "embedding": [0.5, -0.25]} for index in range(len(inputs))]
    usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
    return {"object": "list", "model": body.get("model"), "data": data, "usage": usage}


# What it answers beside chat, whole, by address.
OTHER_KINDS: dict[str, Callable[[Body, list[str]], Body]] = {"/v1/completions": _text, "/v1/embeddings": _vectors}


def _choice(delta: Body, finish_reason: str | None = None) -> Body:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _pieces(data: bytes) -> int:
    """Pieces of an answer in whole frames; one is taken for a token."""
    pieces = 0
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines():
        with suppress(ValueError, AttributeError, LookupError, TypeError):
            for choice in json.loads(line.removeprefix(b"data:"))["choices"]:
                said = choice.get("delta") or choice.get("message") or {}
                pieces += any(value for name, value in said.items() if name != "role")
    return pieces
