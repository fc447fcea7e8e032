"""What can be bought here: a reply in a conversation, a summary. Parse-free: callers bring clean values.

Owns conversations: their history, their one call at a time, and the rows that are written with the settled line. Must
not hold money itself; chat.calls does.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from django.conf import settings

from billing.client import account_of
from billing.engine.authority import Payer, budget_of
from billing.engine.call import Call
from billing.engine.engine import Engine
from billing.engine.loop import here, refuse_in_transaction, run
from billing.engine.payers import payer_for
from billing.engine.repeats import Claim, Request, Told, claim_or_told
from billing.engine.rules import USUAL_INPUT_RATIO, likely_tokens
from billing.engine.settling import Keep
from billing.engine.statements import in_schema
from billing.engine.store import FAILURES
from billing.guard import guarded
from billing.ledgers import figures_for
from billing.money import usd
from billing.plans import PLANS
from billing.prices import estimate
from billing.subjects import Key
from chat import calls
from chat.buying import ACTION, DEFAULT_MAX_TOKENS, Known, Wanted, begin, refuse_unless_allowed
from chat.errors import ConversationBusy
from chat.history import Message, as_taken, prompt_bound, prompt_bytes
from chat.pricing import price_for
from chat.repeats import told_of_failure, told_of_reply
from chat.streams import Answering, Completion, as_settled
from tenants.http import ApiError, NotFound, Unavailable
from tenants.models import Tenant

# How much of a conversation goes along: a small model's memory is short, and every token of it is paid for again.
HISTORY_MESSAGES = 8
HISTORY_BYTES = 4_000
LOOK_AGAIN_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Buyer:
    """Who asks: a person of a tenant, by session or by one of their keys. `account`: who pays, where it is known."""

    tenant_id: int
    slug: str
    schema: str
    user_id: int
    key: Key | None = None
    account: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer under way in its conversation. `known_id`: the conversation's, None for a new one."""

    answering: Answering[Call]
    known_id: int | None

    @property
    def conversation_id(self) -> int:
        """A new one has the number of the hold that pays, which is another once another model is asked."""
        return self.known_id or _number_of(self.answering.call)

    def facts(self, completion: Completion) -> dict[str, Any]:
        """What an answer says of itself. `budget` is null where it was not to be had in time."""
        return {
            "conversation_id": self.conversation_id,
            "model": completion.model,
            "finish_reason": completion.finish_reason,
            "usage": {
                "input_tokens": completion.usage.tokens_input,
                "output_tokens": completion.usage.tokens_output,
            },
            "cost": {"microcents": completion.cost, "usd": usd(completion.cost)},
            "outcome": str(completion.outcome),
            "fitted": self.answering.call.is_fitted,
            "budget": completion.budget,
        }

    def body(self, completion: Completion) -> dict[str, Any]:
        """The whole answer."""
        return {"response": completion.shown, **self.facts(completion)}

    def held(self) -> dict[str, Any]:
        """What a stream says before its first word."""
        call = self.answering.call
        budget = budget_of(call.first_balances, call.hold.scope)
        return {
            "reserved": call.held,
            "remaining": budget["remaining"] if budget else None,
            "max_tokens": self.answering.terms.max_tokens,
            "fitted": call.is_fitted,
        }

    def headers(self) -> dict[str, str]:
        """What every answer says beside its body, also a stream before its first byte."""
        fitted = self.answering.call.is_fitted
        return {"X-Budget-Fitted": str(self.answering.terms.max_tokens)} if fitted else {}

    def rates(self) -> dict[str, str]:
        """What is left to its key, as headers: of this call, so that nobody who repeats the request is told it."""
        rates = self.answering.call.rates
        return rates.headers() if rates is not None else {}


async def reply_or_told(buyer: Buyer, request: Request, is_first: asyncio.Event, **asked: Any) -> Reply | Told:
    """`start_reply`, or what was answered to the same request before: its reply is bought once.

    `is_first` is set where it is to be bought here. The answer goes on when its reader leaves. Raises what
    `claim_or_told` does, too.
    """
    claimed = await claim_or_told(here(), request)
    if isinstance(claimed, Told):
        return claimed
    is_first.set()
    try:
        return await start_reply(buyer, claim=claimed, **asked)
    except BaseException:
        claimed.give_back()
        raise


async def start_reply(
    buyer: Buyer,
    *,
    prompt: str,
    conversation_id: int | None = None,
    max_tokens: int | None = None,
    model: str | None = None,
    claim: Claim | None = None,
) -> Reply:
    """Hold the money for an answer, call the model, and give back the reply as it comes. The caller must leave it or
    read it to its end.

    Raises NotFound, ConversationBusy, ModelNotPriced, a BudgetError, or ModelFailed; the conversation is then as
    it was.
    """
    engine = here()
    payer = await payer_for(
        engine, tenant_id=buyer.tenant_id, slug=buyer.slug, schema=buyer.schema, account=buyer.account
    )
    # What cannot be bought is refused before the conversation's turn is waited for.
    refuse_unless_allowed(payer, buyer.key, model)
    price_for(model or settings.LLM_MODEL)
    if conversation_id is None:
        conversation = Conversation(busy_key=_busy_key(buyer))
        return await _reply(engine, payer, buyer, conversation, prompt, max_tokens, model, claim)
    busy_key = f"{_busy_key(buyer)}{conversation_id}"
    if not await engine.exclusive.acquire(busy_key, engine.wait_seconds):
        raise ConversationBusy
    try:
        conversation = await _found(engine, buyer, conversation_id, busy_key)
        reply = await _reply(engine, payer, buyer, conversation, prompt, max_tokens, model, claim)
    except BaseException:
        engine.exclusive.release(busy_key)
        raise
    reply.answering.when_settled(lambda: engine.exclusive.release(busy_key))
    return reply


async def _reply(
    engine: Engine,
    payer: Payer,
    buyer: Buyer,
    conversation: Conversation,
    prompt: str,
    max_tokens: int | None,
    model: str | None,
    claim: Claim | None,
) -> Reply:
    asked_at = datetime.now(UTC)
    wanted = Wanted(
        messages=[*conversation.history, {"role": "user", "content": prompt}],
        model=model or "",
        max_tokens=max_tokens,
        app="chat",
        user_id=buyer.user_id,
        key=buyer.key,
        workflow=f"conversation-{conversation.id}" if conversation.has_limit else None,
        busy_key=conversation.busy_key,
        numbered_by=in_schema(NEW_ID, buyer.schema) if conversation.id is None else "",
        known=conversation.known,
        keep_rows=lambda call, completion: rows_of(
            conversation.id or _number_of(call),
            Asked(prompt, asked_at, buyer.user_id, is_new=conversation.id is None),
            completion,
        ),
        claim=claim,
    )
    answering = await begin(engine, payer, wanted)
    reply = Reply(answering, conversation.id)
    if claim is not None:
        claim.tell = functools.partial(told_of_reply, reply)
    return reply


def _busy_key(buyer: Buyer) -> str:
    """What one call of a conversation holds at a time, but for the conversation's number."""
    return f"{buyer.schema}:conversation-"


def _number_of(call: Call) -> int:
    """The number that a new conversation got with its hold."""
    return int((call.busy_key or "").rpartition("-")[2])


# --- conversations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as a call needs it. A new one gets its number with the hold, and its row with the answer."""

    id: int | None = None
    has_limit: bool = False
    busy_key: str | None = None
    history: Sequence[Message] = ()
    known: Known | None = None


NEW_ID = "nextval(pg_get_serial_sequence('{schema}.chat_conversation', 'id'))"

# A new conversation is busy before it has a row: its first answer is under way.
FOUND = """
SELECT conversation.has_limit,
       EXISTS (SELECT 1 FROM public.billing_hold WHERE busy_key = %(busy_key)s AND user_id = %(owner)s),
       (SELECT coalesce(json_agg(json_build_array(role, text, tokens_input, outcome) ORDER BY id), '[]')
        FROM (SELECT id, role, text, tokens_input, outcome FROM {schema}.chat_message
              WHERE conversation_id = conversation.id ORDER BY id DESC LIMIT %(most)s) AS newest)
FROM (VALUES (1)) AS always
LEFT JOIN {schema}.chat_conversation AS conversation
       ON conversation.id = %(id)s AND conversation.owner_id = %(owner)s
"""


async def _found(engine: Engine, buyer: Buyer, conversation_id: int, busy_key: str) -> Conversation:
    """The buyer's own conversation, once no other process answers in it."""
    until = time.monotonic() + engine.wait_seconds
    params = {"id": conversation_id, "owner": buyer.user_id, "busy_key": busy_key, "most": HISTORY_MESSAGES}
    while True:
        try:
            ((has_limit, is_busy, turns),) = await engine.store.fetch(in_schema(FOUND, buyer.schema), params)
        except FAILURES as exc:
            raise Unavailable from exc
        if not is_busy:
            break
        if time.monotonic() > until:
            raise ConversationBusy
        await asyncio.sleep(LOOK_AGAIN_SECONDS)
    if has_limit is None:
        raise NotFound("There is no such conversation.")
    history, known = _history(turns)
    return Conversation(conversation_id, has_limit=has_limit, busy_key=busy_key, history=history, known=known)


def _history(turns: list[list[Any]]) -> tuple[list[Message], Known | None]:
    """The latest messages that fit, oldest first, as strict models take them; and what their last report counted.

    The report stands for the whole prompt of its time, so it is known only while nothing of that has been cut off.
    """
    kept: list[Message] = []
    room = HISTORY_BYTES
    for role, text, *_ in reversed(turns):
        room -= len(text.encode())
        if room < 0:
            break
        kept.insert(0, {"role": role, "content": text})
    known = None
    if turns and len(kept) == len(turns) < HISTORY_MESSAGES:
        role, _, tokens_input, outcome = turns[-1]
        if role == "assistant" and outcome == "exact" and tokens_input:
            known = Known(tokens_input, prompt_bytes(as_taken(kept[:-1])))
    return kept, known


def _title(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


CONVERSATION_ROW = """
, conversation AS (
    INSERT INTO {schema}.chat_conversation (id, owner_id, title, created_at, has_limit)
    SELECT %(conversation)s, %(owner)s, %(title)s, %(asked_at)s, false FROM gone
)"""

# In one INSERT, so that the question's number is below its answer's.
TURNS = """
, turns AS (
    INSERT INTO {schema}.chat_message (
        conversation_id, role, text, model, finish_reason, outcome, tokens_input, tokens_output, cost, created_at
    )
    SELECT %(conversation)s, turn.role, turn.text, turn.model, turn.finish_reason, turn.outcome, turn.tokens_input,
           turn.tokens_output, turn.cost, turn.created_at
    FROM gone, jsonb_to_recordset(%(turns)s::jsonb) AS turn (
        place int, role text, text text, model text, finish_reason text, outcome text, tokens_input bigint,
        tokens_output bigint, cost bigint, created_at timestamptz
    )
    ORDER BY turn.place
)"""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and whether it begins a conversation."""

    prompt: str
    at: datetime
    owner: int
    is_new: bool


def rows_of(conversation: int, asked: Asked, completion: Completion) -> Keep:
    """The question and its answer, and a new conversation's own row: written with the line, or not at all."""
    question = {
        "place": 1,
        "role": "user",
        "text": asked.prompt,
        "model": "",
        "finish_reason": "",
        "outcome": "",
        "created_at": asked.at.isoformat(),
    }
    answer = {
        "place": 2,
        "role": "assistant",
        # What Postgres cannot store, a model can still say.
        "text": completion.text.replace("\x00", ""),
        "model": completion.model[:200],
        "finish_reason": completion.finish_reason[:40],
        "outcome": str(completion.outcome),
        "tokens_input": completion.usage.tokens_input,
        "tokens_output": completion.usage.tokens_output,
        "cost": completion.cost,
        "created_at": datetime.now(UTC).isoformat(),
    }
    params = {"conversation": conversation, "turns": json.dumps([question, answer])}
    if not asked.is_new:
        return Keep(TURNS, params)
    new = {"owner": asked.owner, "title": _title(asked.prompt), "asked_at": asked.at}
    return Keep(CONVERSATION_ROW + TURNS, {**params, **new})


# --- for pages without script ---------------------------------------------------------------------------------------


def reply_at_once(buyer: Buyer, **asked: Any) -> int:
    """The whole reply for a plain function: the conversation it stands in. Raises what `start_reply` does."""
    refuse_in_transaction()
    return run(_reply_at_once(buyer, asked))


async def _reply_at_once(buyer: Buyer, asked: dict[str, Any]) -> int:
    reply = await start_reply(buyer, **asked)
    await reply.answering.finished(seconds=5.0)
    if reply.answering.failure is not None:
        raise reply.answering.failure
    return reply.conversation_id


# --- summaries ------------------------------------------------------------------------------------------------------


def summarize(
    tenant: Tenant,
    *,
    user_id: int,
    key_id: int | None,
    text: str,
    max_tokens: int | None = None,
    claim: Claim | None = None,
) -> dict[str, Any]:
    """{summary, model, usage, cost, budget}. Raises ModelNotPriced, a BudgetError, or ModelFailed."""
    messages, allowed = _summary_terms(tenant, text=text, max_tokens=max_tokens)
    answer = _summary(messages, max_tokens=allowed, user_id=user_id, key_id=key_id, claim=claim)
    if claim is not None and claim.told is not None:
        body: dict[str, Any] = claim.told.answer["body"]  # as whoever repeats the request will read it
        return body
    figures = figures_for(tenant)
    return _summary_body(replace(answer, budget=figures.as_budget() if figures else None))


def _summary_body(answer: Completion) -> dict[str, Any]:
    return {
        "summary": answer.shown,
        "model": answer.model,
        "usage": {"input_tokens": answer.usage.tokens_input, "output_tokens": answer.usage.tokens_output},
        "cost": {"microcents": answer.cost, "usd": usd(answer.cost)},
        "outcome": str(answer.outcome),
        "budget": answer.budget,
    }


def summary_estimate(tenant: Tenant, *, text: str, max_tokens: int | None) -> int:
    """Microcents that `summarize` will reserve for the same request."""
    messages, allowed = _summary_terms(tenant, text=text, max_tokens=max_tokens)
    return _most(messages, max_tokens=allowed)


def _summary_terms(tenant: Tenant, *, text: str, max_tokens: int | None) -> tuple[list[Message], int]:
    allowed = min(max_tokens or DEFAULT_MAX_TOKENS, PLANS[account_of(tenant).plan].max_tokens)
    return [{"role": "user", "content": f"Summarize this in a few sentences:\n\n{text}"}], allowed


def _most(messages: list[Message], *, max_tokens: int, **who: Any) -> int:
    return estimate(tokens_input=prompt_bound(messages), max_tokens=max_tokens, price=price_for(settings.LLM_MODEL))


def _least(messages: list[Message], **who: Any) -> int:
    """What is charged when the process dies under a summary: its input, for the model was perhaps reading it."""
    likely = likely_tokens(prompt_bytes(messages), USUAL_INPUT_RATIO)
    return estimate(tokens_input=likely, max_tokens=0, price=price_for(settings.LLM_MODEL))


@guarded(
    estimate=_most,
    least=_least,
    action_kind=ACTION,
    action_name=lambda messages, **kw: settings.LLM_MODEL,
    app="summarize",
    user_id=lambda messages, *, user_id, **kw: user_id,
    key_id=lambda messages, *, key_id, **kw: key_id,
    claim=lambda messages, *, claim, **kw: claim,
)
def _summary(
    messages: list[Message], *, max_tokens: int, user_id: int, key_id: int | None, claim: Claim | None
) -> Completion:
    try:
        answer = calls.complete(messages, app="summarize", max_tokens=max_tokens)
    except ApiError as exc:
        if claim is not None:
            claim.tell = functools.partial(told_of_failure, exc)
        raise
    if claim is not None:
        claim.tell = lambda settled: Told(200, {"body": _summary_body(as_settled(answer, settled))})
    return answer
