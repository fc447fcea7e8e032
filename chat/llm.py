"""The only module that reaches a model: OpenAI-compatible HTTP, one call at a time, never sent twice.

Owns the call, its time-outs, and the sorting of its failures; says of each call what it used. Must not know budgets
or tenants, and must not log what was said, the key, or the upstream's own words (they quote both).
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import os
import socket
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self, TypedDict, cast
from urllib.parse import urlsplit

import httpx2  # the transport of `openai`
from django.conf import settings
from openai import APIStatusError, Omit, OpenAI, OpenAIError, Stream
from openai.types.chat import ChatCompletionChunk

from billing.prices import Usage
from chat.errors import ModelFailed

logger = logging.getLogger(__name__)

# A model that is up accepts at once. One that reads a long prompt on a small machine is silent for many seconds, and
# a provider under load for more; after a minute nobody is waiting any longer.
TIMEOUT = httpx2.Timeout(connect=2.0, read=60.0, write=10.0, pool=2.0)

# For a whole answer. An upstream that trickles for ever would hold money and a thread for ever.
CALL_SECONDS = 600.0

# What a chat template adds, with room: the markers around each message, and around the whole a system prompt of the
# model's own, a date, the opening of the answer. SmolLM2 adds 5 or 6 tokens a message, and 25 once.
MESSAGE_OVERHEAD = 32
PROMPT_OVERHEAD = 256

# No answer and no context is as long as this: a report above it is a fault, not a bill.
MOST_TOKENS = 100_000_000

UNREACHABLE = "The language model cannot be reached just now. Nothing was charged; try again in a moment."
REFUSED = "The language model did not take this request. Nothing was charged; a shorter text may help."
BROKEN = "The language model did not finish its answer. Only what it used is charged; try again."


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    usage: Usage
    finish_reason: str | None
    model: str


def prompt_bound(messages: Iterable[Message]) -> int:
    """Tokens of input that these messages can be billed at most.

    A tokenizer falls back to bytes, so a text has at most as many tokens as bytes. Some normalize the text first,
    which can make it longer: the Arabic ligature U+FDFA is 3 bytes, and 33 once it is spelled out.
    """
    total = PROMPT_OVERHEAD
    for message in messages:
        total += MESSAGE_OVERHEAD + _most_bytes(message["role"]) + _most_bytes(message["content"])
    return total


def _most_bytes(text: str) -> int:
    if text.isascii():
        return len(text)
    forms = (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFKC", text))
    return max(len(form.encode("utf-8", "surrogatepass")) for form in forms)


def complete(
    messages: Sequence[Message], *, model: str, max_tokens: int, until: Callable[[], bool] = lambda: False
) -> Completion:
    """The whole answer at once, or as much of it as comes until `until()`. Raises ModelFailed; its usage has what the
    part that came has cost.
    """
    parts = []
    with open_stream(messages, model=model, max_tokens=max_tokens) as stream:
        for text in stream:
            parts.append(text)
            if until():
                break
    return Completion(text="".join(parts), usage=stream.usage, finish_reason=stream.finish_reason, model=model)


class Cut:
    """Ends a call from another thread, whatever it waits for: an upstream that has not answered yet, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._done = False

    def __call__(self) -> None:
        with self._lock:
            self._done = True
            self._shut()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Told by the transport of each step; a connection's socket comes with its completion."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
                if self._done:
                    self._shut()

    def _shut(self) -> None:
        # Wakes the reader, which closing the socket under it would not. Each call has a connection of its own.
        if self._socket is not None:
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


_cut: ContextVar[Cut | None] = ContextVar("model_call_cut", default=None)


def _watch(request: httpx2.Request) -> None:
    if (cut := _cut.get()) is not None:
        request.extensions = {**request.extensions, "trace": cut.trace}


def open_stream(messages: Sequence[Message], *, model: str, max_tokens: int, cut: Cut | None = None) -> ChatStream:
    """Call the model. Comes back when it has accepted; the caller must close the stream. Raises ModelFailed.

    `cut`, called from any thread, ends the call also before it comes back.
    """
    if max_tokens < 1:
        raise ValueError("max_tokens must be at least 1: below it, some upstreams read 'without limit'")
    bound = prompt_bound(messages)
    token = _cut.set(cut)
    try:
        source = _client(os.getpid(), settings.LLM_BASE_URL, settings.LLM_API_KEY).chat.completions.create(
            messages=cast(Any, messages),
            model=model,
            max_tokens=max_tokens,
            stream=True,
            stream_options={"include_usage": True},
            # Without a key the client wants to be told that none is to be sent.
            extra_headers=cast(Any, {} if settings.LLM_API_KEY else {"Authorization": Omit()}),
        )
    except FAILURES as exc:
        raise _failure(exc, model=model, usage=Usage(bound, 0, counted=True)) from None
    finally:
        _cut.reset(token)
    stream = ChatStream(source, model=model, tokens_input=bound, max_tokens=max_tokens)
    content_type = source.response.headers.get("content-type", "")
    if not content_type.lower().startswith("text/event-stream"):
        stream.close()
        raise _failure(Garbled("no event stream"), model=model, usage=stream.usage)
    return stream


class ChatStream:
    """One answer as it is written: an iterator of text that ends when the answer is whole.

    Raises ModelFailed where it breaks off. Whatever ended it, `usage` says what to charge: what the upstream
    reported, as it reported it, else what we count on the safe side. `close` may be called at any time, by any
    thread, and the upstream stops writing; the iterator then simply ends.
    """

    def __init__(self, source: Stream[ChatCompletionChunk], *, model: str, tokens_input: int, max_tokens: int) -> None:
        self.model = model
        self.finish_reason: str | None = None
        self.started = False
        self._source = source
        self._tokens_input = tokens_input
        self._max_tokens = max_tokens
        self._deltas = 0
        self._bytes = 0
        self._reported: Usage | None = None
        self._stale = False  # words came after the report
        self._closed = False
        self._deadline = time.monotonic() + CALL_SECONDS
        # Held while reading. Re-entrant: the reader closes what it has read to the end.
        self._reading = threading.RLock()
        self._socket = source.response.extensions["network_stream"].get_extra_info("socket")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        with self._reading:
            while not self._closed:
                if time.monotonic() > self._deadline:
                    self.close()
                    raise _failure(Garbled("too slow"), model=self.model, usage=self.usage)
                text = self._read()
                if text:
                    return text
        raise StopIteration

    def _read(self) -> str:
        """The next words; none when what came has none, or at the end, which also closes."""
        try:
            chunk = next(self._source, None)
            if chunk is not None:
                return self._take(chunk)
            if not self._whole:
                raise Garbled("ended in the middle")
        except FAILURES as exc:
            # Cut by `close`, or broken when everything had been said: then nothing is missing.
            if not self._closed and not self._whole:
                self.close()
                raise _failure(exc, model=self.model, usage=self.usage) from None
        self.close()
        return ""

    @property
    def _whole(self) -> bool:
        """A whole answer says why it ended. One that was cut can look like an end, too, but it says nothing."""
        return self.finish_reason is not None

    def _take(self, chunk: Any) -> str:
        # The client does not validate what it parses, so nothing here has its declared type for sure.
        self.started = True
        usage = getattr(chunk, "usage", None)
        choices = getattr(chunk, "choices", None)
        if not isinstance(choices, list) and usage is None:
            raise Garbled("no choices")
        text = self._take_choice(choices[0]) if choices else ""
        if usage is not None:
            self._reported, self._stale = self._plausible(usage), False
        return text

    def _take_choice(self, choice: Any) -> str:
        reason = getattr(choice, "finish_reason", None)
        if isinstance(reason, str) and reason:
            self.finish_reason = reason[:40]
        delta = getattr(choice, "delta", None)
        text = _text(delta, "content")
        # Thoughts and refusals are not shown, but they are billed.
        billed = text + _text(delta, "reasoning_content") + _text(delta, "refusal")
        if billed:
            self._deltas += 1
            self._bytes += len(billed.encode())
            self._stale = True
        if self._deltas > self._max_tokens:
            # Past max_tokens it writes past what was held for it: cut it, whatever it still has to say.
            self.finish_reason = self.finish_reason or "length"
            self.close()
        return text

    def _plausible(self, usage: Any) -> Usage | None:
        tokens_input = _count(usage, "prompt_tokens", least=1)
        tokens_output = _count(usage, "completion_tokens", least=1 if self._deltas else 0)
        if tokens_input is None or tokens_output is None:
            return None
        return Usage(tokens_input=tokens_input, tokens_output=tokens_output)

    @property
    def usage(self) -> Usage:
        # Upstreams send one to four bytes a token, and at times several tokens a delta.
        counted = min(max(self._deltas, -(-self._bytes // 4)), self._max_tokens)
        if self._reported is None:
            return Usage(self._tokens_input, counted, counted=True)
        if self._stale:
            # Some report as they go. Cut after that, the report is short of the last words.
            return Usage(self._reported.tokens_input, max(self._reported.tokens_output, counted), counted=True)
        return self._reported

    def close(self) -> None:
        """Stop the upstream. At once, also while another thread waits for it in a read."""
        self._closed = True
        # Wakes the reader, which closing the socket under it would not; and its number is not free for another
        # connection before the reader is out. Each call has a connection of its own, so this cuts nobody else's.
        with suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        with self._reading:
            self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _text(delta: Any, name: str) -> str:
    text = getattr(delta, name, None)
    if not isinstance(text, str):
        return ""
    # JSON can carry half of a surrogate pair, which no database and no socket takes.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(usage: Any, name: str, *, least: int) -> int | None:
    value = getattr(usage, name, None)
    return value if type(value) is int and least <= value <= MOST_TOKENS else None


# The client


@functools.lru_cache(maxsize=4)
def _client(pid: int, base_url: str, api_key: str) -> OpenAI:
    """One client a process (`pid`: locks that cross a fork may be held for ever) and for what the settings say."""
    http = httpx2.Client(
        timeout=TIMEOUT,
        # A connection for each call. One that is kept may be closing as the next call is written to it, and then
        # nobody can tell whether that call was worked on and billed.
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        # A redirect would hand key and prompt to an address that nobody has configured.
        follow_redirects=False,
        # The environment's proxy is the way out of many data centres, but it cannot know this machine's loopback.
        trust_env=not _is_loopback(base_url),
        event_hooks={"request": [_watch]},
    )
    return OpenAI(
        base_url=base_url,
        api_key=api_key,
        # Given, though empty: else the client looks in the environment for other credentials to send along.
        admin_api_key="",
        default_headers=cast(Any, {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}),
        # A call may be billed although its answer was lost. Sent again, it is billed twice and held once.
        max_retries=0,
        timeout=cast(Any, TIMEOUT),
        http_client=http,
    )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


# Failures


class Garbled(ValueError):
    """Something came, but not what the protocol says."""


# ValueError: not JSON, not UTF-8, not the protocol. Not TypeError and its like: those are our own mistakes.
FAILURES = (
    OpenAIError,
    httpx2.HTTPError,
    httpx2.StreamError,
    httpx2.InvalidURL,
    OSError,
    ValueError,
    RecursionError,
)

# Before the first byte of the request is on its way.
_NOT_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
    httpx2.LocalProtocolError,
    httpx2.InvalidURL,
    UnicodeEncodeError,
)


def _failure(exc: Exception, *, model: str, usage: Usage) -> ModelFailed:
    """Every failure of a call, sorted by what it can cost. `usage` is what is known to have been used.

    not sent     no connection, no TLS, no proxy        not reached, nothing used
    refused      3xx and 4xx, before any work           not reached, nothing used
    broken       5xx, time-outs (408 and 499 too), cut  reached: the provider may bill it, so it is charged
                 or garbled answers
    """
    cause = exc.__cause__ or exc
    if isinstance(cause, _NOT_SENT):
        message, reached = UNREACHABLE, False
    elif isinstance(exc, APIStatusError) and exc.status_code < 500 and exc.status_code not in (408, 499):
        message, reached = REFUSED, False
    else:
        message, reached = BROKEN, True
    what = f"HTTP {exc.status_code}" if isinstance(exc, APIStatusError) else type(cause).__name__
    logger.warning("model call failed: model=%s reached=%s failure=%s", model, reached, what)
    return ModelFailed(message, usage=usage if reached else Usage(0, 0), reached=reached)
