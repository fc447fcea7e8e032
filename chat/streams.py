"""One answer under way: reading the model, and paying for what was read.

Owns `Reply` (the answer and the reservation that pays for it) and `ReplyStream` (its bytes). Whatever ends a reply,
it is settled once, by what was used. Holds no transaction and no tenant while it waits for the model or the reader.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import django.db
from django.db import connection

from billing.balances import figures_for
from billing.guard import Outcome, Reservation
from billing.money import usd
from billing.prices import Price, Usage, cost
from chat.errors import ModelFailed
from chat.llm import ChatStream, Cut
from chat.models import Conversation, Message
from chat.sse import comment, event
from tenants.context import tenant_scope
from tenants.http import ApiError, Unavailable

logger = logging.getLogger(__name__)

# A reader, or a proxy between, gives up on a silent line; and only by writing is a reader who left noticed.
KEEP_ALIVE_SECONDS = 10.0
# Longer than one wait for words: a call is cut before its hold runs out, not after.
LEASE_MARGIN_SECONDS = 15.0
_END = object()


class Pump:
    """Reads the model on a thread of its own, so that waiting for it can be interrupted. Touches no database."""

    def __init__(self, open_stream: Callable[[Cut], ChatStream]) -> None:
        self._open_stream = open_stream
        self._cut = Cut()
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self.stream: ChatStream | None = None
        # How the model's side failed by itself, also where no reader is left to be told.
        self.failure: ModelFailed | None = None
        self._thread = threading.Thread(target=self._run, name="model-reader", daemon=True)

    def start(self) -> None:
        """Call the model. Raises RuntimeError where the machine has no thread left for it."""
        self._thread.start()

    def _run(self) -> None:
        try:
            stream = self._open_stream(self._cut)
            with self._lock:
                self.stream = stream
                closed = self._closed
            if closed:
                stream.close()
                return
            for delta in stream:
                self._items.put(delta)
            self._items.put(_END)
        except BaseException as exc:  # handed to the reader's thread, which raises it
            with self._lock:
                if isinstance(exc, ModelFailed) and not self._closed:
                    self.failure = exc
            self._items.put(exc)

    def get(self, timeout: float) -> Any:
        """The next delta; None when none came in time; _END at the end. Raises what the model's side raised."""
        try:
            item = self._items.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Cut the model's connection, whether or not it has answered yet."""
        with self._lock:
            self._closed = True
            stream = self.stream
        self._cut()
        if stream is not None:
            stream.close()
        # A reader that waits for a model which has not answered must not wait on.
        self._items.put(_END)
        # Bounded: a host name that does not resolve cannot be interrupted, and then nothing is bought either.
        if self._thread.ident is not None:
            self._thread.join(timeout=2.0)


@dataclass(slots=True)
class Terms:
    """What was asked for: the model, its price, the most it may write, and what its input can be billed."""

    model: str
    price: Price
    max_tokens: int
    tokens_input: int


# The answers under way in this process, so that a process which is told to stop can end them properly.
_live: weakref.WeakSet[Reply] = weakref.WeakSet()


def cut_all() -> None:
    """Cut every model's connection: each reader then gets its last event, and each hold is settled by what came.

    For a web process near the end of its grace: killed instead, it would leave the holds open and the readers nothing.
    """
    for reply in list(_live):
        reply.cut()


class Reply:
    """An answer under way, and the reservation that pays for it."""

    def __init__(self, reservation: Reservation, pump: Pump, *, terms: Terms, conversation: Conversation) -> None:
        self._reservation = reservation
        self._pump = pump
        self._terms = terms
        self._conversation = conversation
        self._parts: list[str] = []
        self._waiting: list[Any] = []
        self._ended = False
        self._closed = False
        self._closing = threading.Lock()
        self._finish_reason: str | None = None
        self._usage = Usage(tokens_input=0, tokens_output=0)
        _live.add(self)

    def wait_for_first(self) -> None:
        """Wait for the first words, so that a model that fails at once gets a status and not half an answer."""
        self._waiting.append(self._next(KEEP_ALIVE_SECONDS))

    def deltas(self) -> Iterator[str | None]:
        """Text as it comes; None for each stretch of silence. Raises ModelFailed."""
        while self._waiting or not self._ended:
            item = self._waiting.pop() if self._waiting else self._next(KEEP_ALIVE_SECONDS)
            if item is not _END:
                yield item

    def _next(self, timeout: float) -> Any:
        try:
            item = self._pump.get(timeout)
        except ModelFailed:
            self._ended = True
            raise
        if item is _END:
            self._ended = True
            return item
        if item is not None:
            self._parts.append(item)
        if self._reservation.lease_left() < LEASE_MARGIN_SECONDS:
            # The heartbeat fails, or the call outlives all its extensions: another call may soon be given this money.
            self._ended = True
        return item

    @property
    def conversation_id(self) -> int:
        return self._conversation.pk

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def cut(self) -> None:
        """Stop the model; whoever reads then comes to the end, and closes. From any thread."""
        self._pump.close()

    def close(self) -> None:
        """Cut the model, settle, keep the answer. Once, whoever calls and however often."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        try:
            self._pump.close()
            self._record()
        finally:
            self._reservation.settle()
        try:
            self._keep()
        except django.db.Error:
            # It is paid for and the reader has it: failing now would have it paid for twice.
            logger.exception("A paid answer could not be kept: conversation=%s", self._conversation.pk)

    def _record(self) -> None:
        usage, outcome = self._used()
        self._usage = usage
        stream = self._pump.stream
        if stream is not None:
            self._finish_reason = stream.finish_reason
        if self._pump.failure is not None and not self._pump.failure.reached:
            self._reservation.void()
            return
        self._reservation.record(
            cost=cost(usage, self._terms.price),
            outcome=outcome,
            model=self._terms.model,
            tokens_input=usage.tokens_input,
            tokens_output=usage.tokens_output,
        )

    def _used(self) -> tuple[Usage, str]:
        if self._pump.failure is not None:
            usage = self._pump.failure.usage
            return usage, Outcome.ESTIMATED if usage.counted else Outcome.EXACT
        stream = self._pump.stream
        if stream is None:
            # The reader left before the model answered at all; it has had the input.
            return Usage(tokens_input=self._terms.tokens_input, tokens_output=0, counted=True), Outcome.ESTIMATED
        usage = stream.usage
        if not usage.counted:
            return usage, Outcome.EXACT
        # A whole answer says why it ended.
        return usage, Outcome.ESTIMATED

    def _keep(self) -> None:
        if not self._parts:
            return
        with tenant_scope(self._reservation.tenant):
            Message.objects.create(
                conversation=self._conversation,
                role=Message.Role.ASSISTANT,
                # What Postgres cannot store, a model can still say.
                text=self.text.replace("\x00", ""),
                model=self._terms.model,
                finish_reason=self._finish_reason or "",
                outcome=self._reservation.outcome,
                tokens_input=self._usage.tokens_input,
                tokens_output=self._usage.tokens_output,
                cost=self._reservation.cost,
            )

    def facts(self) -> dict[str, Any]:
        """What an answer says of itself, once it is closed. `budget` is null where it cannot be had just now."""
        figures = figures_for(self._reservation.tenant)
        return {
            "conversation_id": self._conversation.pk,
            "model": self._terms.model,
            "finish_reason": self._finish_reason or "cancelled",
            "usage": {"input_tokens": self._usage.tokens_input, "output_tokens": self._usage.tokens_output},
            "cost": {"microcents": self._reservation.cost, "usd": usd(self._reservation.cost)},
            "budget": figures.as_budget() if figures else None,
        }


class ReplyStream:
    """The bytes of one answer, as server-sent events, and the reply that they come from.

    An object rather than a generator: one that never starts never runs its `finally`, but Django closes this one
    even before the first byte.
    """

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._events = self._make_events()

    def _make_events(self) -> Iterator[bytes]:
        try:
            for delta in self._reply.deltas():
                yield comment("waiting") if delta is None else event("token", {"text": delta})
            self._reply.close()
            last = event("done", self._reply.facts())
        except ApiError as exc:
            last = event("error", exc.body())
            self._reply.close()
        except django.db.Error:
            last = event("error", Unavailable().body())
        finally:
            connection.close()
        yield last

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        try:
            # First, so that its end does not race with the settling below.
            self._events.close()  # type: ignore[attr-defined]
        finally:
            try:
                self._reply.close()
            finally:
                connection.close()
