"""Answers that nobody may be reading: found by their call's number, followed from their first word on, and stopped.

Owns which replies are under way in this process, what is read of those that are not, and the ear for stops that were
asked of another process. Must not buy, nor settle: an answer that is stopped here ends as any other does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID
from weakref import WeakKeyDictionary

from billing.engine.engine import Engine
from billing.engine.loop import here, run
from billing.engine.statements import in_schema
from billing.engine.store import FAILURES
from chat.facts import bought
from chat.turns import busy_key
from tenants.http import NotFound, RateLimited, Unavailable
from tenants.kept import hear

if TYPE_CHECKING:
    from chat.services import Reply

CHANNEL = "chat_stop"
# How often it is looked whether an answer of another process is there, and for how long: none takes longer.
LOOK_SECONDS = 1.0
FOLLOW_SECONDS = 900.0
# Each look is a statement. A person has a few tabs.
FOLLOWERS_MAX = 8
# How long a page without script waits for a stopped answer's cost. Not there by then, it is there soon after.
STOP_SECONDS, STOP_AGAIN_SECONDS = 5.0, 0.25

NO_CALL = "There is no such call of yours, or nothing of it was kept. What it cost, if anything, is in the usage."

# Its hold, whose conversation's name has the schema in it: members of two workspaces may have the same number. And the
# answer that it became. Both in one statement, for the one goes when the other comes.
NOW = """
SELECT (
    SELECT busy_key FROM public.billing_hold
    WHERE id = %(call)s AND user_id = %(owner)s AND starts_with(busy_key, %(of)s)
), (
    SELECT json_build_array(
        message.id, message.parent_id, parent.role, message.conversation_id, message.text, message.model,
        message.finish_reason, message.outcome, message.tokens_input, message.tokens_output, message.cost
    )
    FROM {schema}.chat_message AS message
    JOIN {schema}.chat_conversation AS conversation
      ON conversation.id = message.conversation_id AND conversation.owner_id = %(owner)s
         AND conversation.deleted_at IS NULL
    LEFT JOIN {schema}.chat_message AS parent ON parent.id = message.parent_id
    WHERE message.hold = %(call)s
    LIMIT 1
)
"""

STOP = """
SELECT pg_notify('chat_stop', id::text) FROM public.billing_hold
WHERE id = %(call)s AND user_id = %(owner)s AND starts_with(busy_key, %(of)s)
"""


@dataclass(frozen=True, slots=True)
class Whose:
    """A member of a workspace."""

    schema: str
    user_id: int


@dataclass(eq=False, slots=True)
class _Here:
    """The replies of one engine, and who follows some."""

    replies: dict[Reply, Whose] = field(default_factory=dict)
    followers: dict[Whose, int] = field(default_factory=dict)
    stop_hearing: Callable[[], None] | None = None

    def forget(self, reply: Reply) -> None:
        self.replies.pop(reply, None)

    def stop_listening(self) -> None:
        if self.stop_hearing is not None:
            self.stop_hearing()
            self.stop_hearing = None


_engines: WeakKeyDictionary[Engine, _Here] = WeakKeyDictionary()


def _of(engine: Engine) -> _Here:
    return _engines.setdefault(engine, _Here())


def note(engine: Engine, schema: str, user_id: int, reply: Reply) -> None:
    """A reply has begun. It is forgotten once it is settled."""
    ours = _of(engine)
    ours.replies[reply] = Whose(schema, user_id)
    reply.answering.when_settled(lambda: ours.forget(reply))
    if ours.stop_hearing is None:
        ours.stop_hearing = _listen(ours)
        engine.add_cut(ours.stop_listening)


def _reply(engine: Engine, call: UUID, whose: Whose | None = None) -> Reply | None:
    """By a walk over all of them: another model in its place has another number, and this is asked for rarely."""
    for reply, owner in _of(engine).replies.items():
        if reply.answering.call.id == call and whose in (None, owner):
            return reply
    return None


# --- what is known of a call ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A call of one's own: under way in this process (`reply`), in another, or answered (`facts`)."""

    conversation_id: int
    reply: Reply | None = None
    facts: dict[str, Any] | None = None


async def find(engine: Engine, whose: Whose, call: UUID) -> Found:
    """Raises NotFound, also for a call that was released: nothing of it is kept. Or Unavailable."""
    if (reply := _reply(engine, call, whose)) is not None:
        return Found(reply.conversation_id, reply)
    ((held_as, row),) = await _fetch(engine, NOW, whose, call)
    if row is not None:
        facts = _facts(*row)
        return Found(facts["conversation_id"], facts=facts)
    if held_as is None:
        raise NotFound(NO_CALL)
    return Found(int(held_as.rpartition("-")[2]))


async def stop(engine: Engine, whose: Whose, call: UUID) -> Found:
    """End it, in whichever process it is. What came is paid and kept. Raises as `find` does."""
    found = await find(engine, whose, call)
    if found.reply is not None:
        found.reply.answering.stop_for_reader()
    elif found.facts is None:
        await _fetch(engine, STOP, whose, call)
    return found


def stop_at_once(whose: Whose, call: UUID, conversation_id: int) -> Found | None:
    """`stop` for a plain function, which waits until what it cost is settled; None where it came to nothing."""
    return run(_stop_at_once(whose, call, conversation_id))


async def _stop_at_once(whose: Whose, call: UUID, conversation_id: int) -> Found | None:
    engine, until = here(), time.monotonic() + STOP_SECONDS
    if (await find(engine, whose, call)).conversation_id != conversation_id:
        raise NotFound(NO_CALL)
    found = await stop(engine, whose, call)
    while found.facts is None and time.monotonic() < until:
        await engine.pause(STOP_AGAIN_SECONDS)
        try:
            found = await stop(engine, whose, call)
        except NotFound:
            return None
    return found


async def _fetch(engine: Engine, statement: str, whose: Whose, call: UUID) -> list[Any]:
    params = {"call": call, "owner": whose.user_id, "of": busy_key(whose.schema)}
    try:
        return await engine.store.fetch(in_schema(statement, whose.schema), params)
    except FAILURES as exc:
        raise Unavailable from exc


def _facts(
    answer_id: int, parent_id: int | None, parent_role: str | None, conversation_id: int, text: str, *of_the_call: Any
) -> dict[str, Any]:
    """As an answer says them of itself, with what is kept of it."""
    return {
        "response": text,
        "conversation_id": conversation_id,
        "question_id": parent_id if parent_role == "user" else None,
        "answer_id": answer_id,
        **bought(*of_the_call),
    }


# --- who comes back to one ------------------------------------------------------------------------------------------


class Followed:
    """An answer for one who comes back to it: its words from the first on, None for silence; then `facts`, or None
    where it came to nothing. Must be closed.

    Raises RateLimited for who follows too many at once.
    """

    def __init__(self, engine: Engine, whose: Whose, call: UUID, found: Found) -> None:
        self._engine, self._whose, self._call, self._found = engine, whose, call, found
        self.facts: dict[str, Any] | None = None
        self._followers = _of(engine).followers
        if self._followers.get(whose, 0) >= FOLLOWERS_MAX:
            raise RateLimited("Too many tabs follow your answers. Close some of them.", retry_after_ms=5_000)
        self._followers[whose] = self._followers.get(whose, 0) + 1
        self._is_closed = False

    @property
    def titling(self) -> asyncio.Task[str] | None:
        """The title that is written after it in this process."""
        return self._found.reply.titling if self._found.reply is not None else None

    async def words(self) -> AsyncIterator[str | None]:
        found = self._found
        if found.reply is not None:
            async for words in found.reply.answering.followed():
                yield words
            completion = await found.reply.answering.finished()
            if found.reply.answering.failure is None:
                self.facts = found.reply.facts(completion)
                return
        async for nothing in self._until_kept():
            yield nothing
        if self.facts is not None and found.reply is None:
            yield self.facts["response"]

    async def _until_kept(self) -> AsyncIterator[None]:
        until = asyncio.get_running_loop().time() + FOLLOW_SECONDS
        found = self._found
        while True:
            if found.reply is None and found.facts is not None:
                self.facts = found.facts
                return
            if asyncio.get_running_loop().time() > until or self._engine.is_closing:
                raise Unavailable
            yield None
            await self._engine.pause(LOOK_SECONDS)
            try:
                ((held_as, row),) = await _fetch(self._engine, NOW, self._whose, self._call)
            except Unavailable:
                continue
            if row is not None:
                self.facts = _facts(*row)
                return
            if held_as is None:
                return

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._followers[self._whose] -= 1
        if not self._followers[self._whose]:
            del self._followers[self._whose]


# --- stops that were asked of another process -----------------------------------------------------------------------


def _listen(ours: _Here) -> Callable[[], None]:
    """For as long as the process lives. What is missed while the connection is made is asked for again by the page,
    which repeats its stop until the answer has ended.
    """
    loop = asyncio.get_running_loop()

    def told(payload: str) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(_stop_here, ours, payload)

    return hear(CHANNEL, told)


def _stop_here(ours: _Here, payload: str) -> None:
    """Who asks was checked before it was told."""
    with suppress(ValueError):
        call = UUID(payload)
        for reply in list(ours.replies):
            if reply.answering.call.id == call:
                reply.answering.stop_for_reader()
