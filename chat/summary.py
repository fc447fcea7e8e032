"""A summary of what a conversation's history leaves out: bought as an answer is, and kept with the conversation.

Owns what is summarized and where it is kept. Must not hold money itself: chat.buying does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from billing.engine.call import Call
from billing.engine.engine import Engine
from billing.engine.loop import here, refuse_in_transaction, run
from billing.engine.settling import Keep
from billing.engine.statements import in_schema
from billing.engine.store import FAILURES
from chat.answer import MOST_BYTES
from chat.buying import Wanted, begin, refuse_unless_allowed
from chat.chunks import bytes_of
from chat.errors import ConversationBusy, ModelFailed
from chat.facts import bought_by
from chat.history import Message
from chat.pricing import price_for
from chat.services import Buyer, payer_of, place_of, room_of, turn_of
from chat.streams import Answering
from chat.terms import Completion
from chat.trimming import Room
from chat.turns import Ask, Place
from tenants.http import Invalid, Unavailable

# Tokens that a summary may have, unless somebody says otherwise.
LENGTH = 256
ASKED = (
    "Summarize the conversation below for somebody who goes on with it: what was asked, what was found and decided, "
    "names and numbers. Write a few sentences and nothing else."
)

# The earliest first. The first is cut, and not left out, where it alone is too long: else there would be no way on.
LEFT_OUT = """
SELECT id, role, left(text, %(bytes)s) FROM (
    SELECT id, role, text, sum(octet_length(text)) OVER (ORDER BY id) AS size, row_number() OVER (ORDER BY id) AS place
    FROM {schema}.chat_message WHERE conversation_id = %(conversation)s AND id = ANY(%(ids)s)
) AS said
WHERE place = 1 OR size <= %(bytes)s
ORDER BY id
"""

# Nothing that it covers is deleted meanwhile: the conversation is busy.
KEPT = """
, summary AS (
    UPDATE {schema}.chat_conversation SET summary = %(summary)s, summary_upto = %(upto)s
    FROM gone WHERE chat_conversation.id = %(conversation)s
)"""


@dataclass(frozen=True, slots=True)
class Covered:
    """What a summary is made of: `messages` of them, up to the message `upto`."""

    text: str
    messages: int
    upto: int


async def summarize_left_out(
    buyer: Buyer, *, conversation_id: int, model: str | None = None, max_tokens: int | None = None
) -> dict[str, Any]:
    """Buy a summary of what the next question would leave out, and let it go along instead. As much of that as the
    model takes at once; of what is left, the next summary.

    Raises NotFound, ConversationBusy, Invalid where nothing is left out, ModelNotPriced, a BudgetError, or ModelFailed.
    """
    engine = here()
    payer = await payer_of(engine, buyer)
    turn = turn_of(buyer, conversation_id)
    if not await engine.exclusive.acquire(turn, engine.wait_seconds):
        raise ConversationBusy
    try:
        # As beside a next question, for it is that which leaves them out.
        place = await place_of(
            engine, payer, buyer, conversation_id=conversation_id, ask=Ask(), model=model, max_tokens=None
        )
        model = model or place.wishes.model
        refuse_unless_allowed(payer, buyer.key, model)
        price_for(model)
        if not place.left_out:
            raise Invalid({"conversation_id": ["All of this conversation still goes along, so nothing is summarized."]})
        room = room_of(engine, payer, model, max_tokens=max_tokens or LENGTH)
        covered = await _covered(engine, buyer.schema, place, room)
        answering = await begin(
            engine,
            payer,
            Wanted(
                messages=_messages(place, covered),
                model=model,
                max_tokens=max_tokens or LENGTH,
                app="chat",
                user_id=buyer.user_id,
                key=buyer.key,
                workflow=f"conversation-{place.id}" if place.has_limit else None,
                busy_key=place.busy_key,
                keep_rows=functools.partial(_rows, conversation_id, covered.upto, max_tokens or LENGTH),
                standing=buyer.standing,
            ),
        )
    except BaseException:
        engine.exclusive.release(turn)
        raise
    answering.when_settled(lambda: engine.exclusive.release(turn))
    return await _answer(answering, conversation_id, covered, max_tokens or LENGTH)


async def _answer(
    answering: Answering[Call], conversation_id: int, covered: Covered, max_tokens: int
) -> dict[str, Any]:
    try:
        completion = await answering.finished()
    except BaseException:
        answering.leave()
        raise
    if answering.failure is not None:
        raise answering.failure
    if not _is_kept(completion, max_tokens):
        raise ModelFailed(
            "The summary was not written to its end, or is far longer than was asked for, so it is not kept.",
            outcome=completion.outcome,
            usage=completion.usage,
        )
    return {
        "summary": completion.text,
        "conversation_id": conversation_id,
        "messages": covered.messages,
        **bought_by(completion),
        "budget": completion.budget,
    }


async def _covered(engine: Engine, schema: str, place: Place, room: Room) -> Covered:
    room = room.left_beside(ASKED, place.summary)
    most = max(400, room.bytes)
    params = {"conversation": place.id, "ids": list(place.left_out), "bytes": most}
    try:
        rows = await engine.store.fetch(in_schema(LEFT_OUT, schema), params)
    except FAILURES as exc:
        raise Unavailable from exc
    if not rows:
        raise ConversationBusy  # somebody deletes them just now
    said = [f"{'User' if role == 'user' else 'Assistant'}: {_cut(text, most)}" for _, role, text in rows]
    return Covered("\n\n".join(said), len(rows), rows[-1][0])


def _cut(text: str, size: int) -> str:
    """So many bytes of it: the statement cuts letters, of which one may have four."""
    return text.encode()[:size].decode(errors="ignore")


def _messages(place: Place, covered: Covered) -> list[Message]:
    before = f"Summary of what was said before that: {place.summary}\n\n" if place.summary else ""
    return [{"role": "user", "content": f"{ASKED}\n\n{before}{covered.text}"}]


def _rows(conversation_id: int, upto: int, max_tokens: int, call: Call, completion: Completion) -> Keep | None:
    if not _is_kept(completion, max_tokens):
        return None
    summary = completion.text.replace("\x00", "").strip()
    return Keep(KEPT, {"conversation": conversation_id, "summary": summary, "upto": upto})


def _is_kept(completion: Completion, max_tokens: int) -> bool:
    """One that was stopped, broke off or ran out of money is none: what it does not say would be forgotten. At the
    length that was asked for it is a summary, if a short one. It goes along with each question from then on: from a
    model that sent a megabyte at once, none of them would fit any more.
    """
    if completion.finish_reason not in ("stop", "length") or bytes_of(completion.text) > MOST_BYTES * max_tokens:
        return False
    return bool(completion.text.replace("\x00", "").strip())


def summarize_at_once(buyer: Buyer, *, conversation_id: int) -> dict[str, Any]:
    """The same for a plain function."""
    refuse_in_transaction()
    return run(summarize_left_out(buyer, conversation_id=conversation_id))
