"""What can be bought here: a reply in a conversation, a summary. Parse-free: callers bring clean values.

Owns a conversation's one call at a time. What is read and written of it is in chat.turns. Must not hold money itself;
chat.calls does.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from billing.engine.statements import in_schema
from billing.errors import StillUnderWay
from billing.guard import guarded
from billing.ledgers import figures_for
from billing.money import usd
from billing.plans import plan_of
from billing.prices import estimate
from billing.repeats import MOST_WAITING, WAIT_SECONDS
from billing.subjects import Key
from chat import background, calls
from chat.attached import File
from chat.buying import ACTION, DEFAULT_MAX_TOKENS, Wanted, at_least_one, begin, refuse_unless_allowed
from chat.errors import ConversationBusy
from chat.facts import bought_by
from chat.history import Message, prompt_bound, prompt_bytes
from chat.pricing import members_of, price_for
from chat.repeats import conversation_told, told_of_failure, told_of_reply
from chat.standing import Standing
from chat.streams import Answering
from chat.terms import Completion, as_settled
from chat.titles import buy_title_after, is_on
from chat.trimming import Room, room_for
from chat.turns import NEW_ID, NEW_MESSAGES, NO_MESSAGE, Ask, Place, busy_key, files_of, found, rows_of, with_images
from chat.wishes import Wishes, chosen, of_workspace
from tenants.http import ApiError, NotFound
from tenants.models import Tenant


@dataclass(frozen=True, slots=True)
class Buyer:
    """Who asks: a person of a tenant, by session or by one of their keys. `account`: who pays, where it is known.
    `chat_settings`: the tenant's.
    """

    tenant_id: int
    slug: str
    schema: str
    user_id: int
    key: Key | None = None
    account: list[Any] | None = None
    chat_settings: Mapping[str, Any] = field(default_factory=dict)
    # Whether an answer goes on when its reader leaves, as the workspace has it.
    goes_on: bool = False
    # That they may ask, to be looked at again before a call that had to wait.
    standing: Standing | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer under way in its conversation. `known_id`: the conversation's, None for a new one."""

    answering: Answering[Call]
    known_id: int | None
    is_question: bool = True
    # Messages of the conversation that did not go along.
    left_out: int = 0
    # The title that the model writes for a new one, where the workspace has it so.
    titling: asyncio.Task[str] | None = None

    @property
    def conversation_id(self) -> int:
        """A new one has the number of the hold that pays, which is another once another model is asked."""
        return self.known_id or _number_of(self.answering.call)

    def facts(self, completion: Completion) -> dict[str, Any]:
        """What an answer says of itself. `budget` is null where it was not to be had in time."""
        question_id, answer_id = _numbers_of(self.answering.call)
        return {
            "conversation_id": self.conversation_id,
            "question_id": question_id if self.is_question else None,
            "answer_id": answer_id,
            **bought_by(completion),
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
            "call": str(call.id),
            "reserved": call.held,
            "remaining": budget["remaining"] if budget else None,
            "max_tokens": self.answering.terms.max_tokens,
            "fitted": call.is_fitted,
            "meter": self.answering.terms.meter(),
            "left_out": self.left_out,
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
    prompt: str = "",
    conversation_id: int | None = None,
    max_tokens: int | None = None,
    model: str | None = None,
    parent_id: int | None = None,
    again_id: int | None = None,
    continue_id: int | None = None,
    files: Sequence[int] = (),
    claim: Claim | None = None,
) -> Reply:
    """Hold the money for an answer, call the model, and give back the reply as it comes. The caller must leave it or
    read it to its end.

    It is asked `prompt`, after the message `parent_id` (see `Ask`), or in place of it the question of `again_id` once
    more, or for the rest of the answer `continue_id`. `files` are numbers of attachments, sent with the prompt.

    Raises NotFound, Invalid, ConversationBusy, ModelNotPriced, a BudgetError, or ModelFailed; the conversation is then
    as it was.
    """
    engine = here()
    payer = await payer_of(engine, buyer)
    workspace = workspace_of(buyer)
    # What cannot be bought is refused before the conversation's turn is waited for. Which model that has is not known
    # before; whatever it is, it is refused where it is bought.
    if model or conversation_id is None:
        refuse_unless_allowed(payer, buyer.key, model or workspace.model)
        price_for(model or workspace.model)
    attached = await files_for(engine, buyer, conversation_id, files)
    ask = Ask(prompt, parent_id, again_id, continue_id, attached)
    if conversation_id is None:
        if ask.starts_at:
            raise NotFound(NO_MESSAGE)
        place = Place(prompt, busy_key=busy_key(buyer.schema), wishes=workspace, files=attached)
        place = _with_model(place, buyer, model, workspace)
        return await _reply(engine, payer, buyer, place, max_tokens, claim)
    turn = turn_of(buyer, conversation_id)
    if not await engine.exclusive.acquire(turn, engine.wait_seconds):
        raise ConversationBusy
    try:
        place = await place_of(
            engine, payer, buyer, conversation_id=conversation_id, ask=ask, model=model, max_tokens=max_tokens
        )
        place = _with_model(place, buyer, model, workspace)
        reply = await _reply(engine, payer, buyer, place, max_tokens, claim)
    except BaseException:
        engine.exclusive.release(turn)
        raise
    reply.answering.when_settled(lambda: engine.exclusive.release(turn))
    return reply


def turn_of(buyer: Buyer, conversation_id: int) -> str:
    """What one call at a time has in this process. Of who asks, for nobody has looked yet whose conversation it is: who
    names another's must not wait for its answer, which would tell of it, nor let its owner wait.
    """
    return f"{busy_key(buyer.schema, conversation_id)} of {buyer.user_id}"


async def payer_of(engine: Engine, buyer: Buyer) -> Payer:
    return await payer_for(
        engine, tenant_id=buyer.tenant_id, slug=buyer.slug, schema=buyer.schema, account=buyer.account
    )


async def files_for(engine: Engine, buyer: Buyer, conversation_id: int | None, ids: Sequence[int]) -> list[File]:
    """The buyer's own files of these numbers; no statement where there are none."""
    return await files_of(engine, schema=buyer.schema, owner=buyer.user_id, conversation_id=conversation_id, ids=ids)


async def place_of(
    engine: Engine,
    payer: Payer,
    buyer: Buyer,
    *,
    conversation_id: int,
    ask: Ask,
    model: str | None,
    max_tokens: int | None,
    waits: bool = True,
) -> Place:
    """Where that is asked, in a conversation of the buyer's. Raises what `turns.found` does."""
    return await found(
        engine,
        schema=buyer.schema,
        owner=buyer.user_id,
        conversation_id=conversation_id,
        ask=ask,
        workspace=workspace_of(buyer),
        model=model,
        room=functools.partial(room_of, engine, payer, max_tokens=max_tokens),
        waits=waits,
    )


def workspace_of(buyer: Buyer) -> Wishes:
    """What holds in the buyer's workspace where a conversation asks for nothing."""
    default = Wishes(model=settings.LLM_MODEL)
    return of_workspace(buyer.chat_settings).over(default) if buyer.chat_settings else default


def _with_model(place: Place, buyer: Buyer, asked: str | None, workspace: Wishes) -> Place:
    """With the model that is asked for. What a person asks for is kept with the conversation; a program names it in
    each call, and what it names once must not stay.
    """
    if not asked:
        return place
    kept = chosen(asked, holds=place.wishes, workspace=workspace.model) if buyer.key is None else None
    return replace(place, wishes=replace(place.wishes, model=asked), kept_model=kept)


def room_of(engine: Engine, payer: Payer, model: str, *, max_tokens: int | None) -> Room:
    """For what is said to the model: what was said before, and the question."""
    allowed = min(max_tokens or DEFAULT_MAX_TOKENS, plan_of(payer.plan).max_tokens)
    return room_for(model, max_tokens=allowed, ratio=engine.habits.of(members_of(model)[0], "chat").input_ratio)


async def _reply(
    engine: Engine, payer: Payer, buyer: Buyer, place: Place, max_tokens: int | None, claim: Claim | None
) -> Reply:
    asked_at = datetime.now(UTC)
    messages = _messages(place, place.history)
    wanted = Wanted(
        messages=await with_images(engine, messages, schema=buyer.schema, owner=buyer.user_id),
        model=place.wishes.model,
        temperature=place.wishes.temperature,
        max_tokens=max_tokens,
        app="chat",
        user_id=buyer.user_id,
        key=buyer.key,
        workflow=f"conversation-{place.id}" if place.has_limit else None,
        busy_key=place.busy_key,
        numbered_by=in_schema(NEW_ID, buyer.schema) if place.id is None else "",
        numbers=in_schema(NEW_MESSAGES, buyer.schema),
        known=place.known,
        messages_for=_messages_for(place),
        keep_rows=lambda call, completion: rows_of(
            place,
            place.id or _number_of(call),
            _numbers_of(call),
            completion,
            asked_at=asked_at,
            owner=buyer.user_id,
        ),
        claim=claim,
        goes_on=buyer.goes_on,
        standing=buyer.standing,
    )
    answering = await begin(engine, payer, wanted)
    titling = None
    if place.id is None and is_on(buyer.chat_settings):
        titling = buy_title_after(
            engine,
            payer,
            answering,
            schema=buyer.schema,
            conversation_id=lambda: _number_of(answering.call),
            question=place.prompt,
            user_id=buyer.user_id,
            key=buyer.key,
            model=wanted.model,
            standing=buyer.standing,
        )
    reply = Reply(answering, place.id, place.is_question, len(place.left_out), titling)
    background.note(engine, buyer.schema, buyer.user_id, reply)
    if claim is not None:
        claim.tell = functools.partial(told_of_reply, reply)
    return reply


def _messages(place: Place, history: Sequence[Message]) -> list[Message]:
    return [*place.wishes.opening, *history, place.question]


def _messages_for(place: Place) -> Callable[[int], list[Message]] | None:
    history_for = place.history_for
    return None if history_for is None else lambda max_tokens: _messages(place, history_for(max_tokens))


def _number_of(call: Call) -> int:
    """The number that a new conversation got with its hold."""
    return int((call.busy_key or "").rpartition("-")[2])


def _numbers_of(call: Call) -> tuple[int, int]:
    """Those of the question and its answer."""
    assert call.numbers is not None  # its row is written
    question, answer = call.numbers
    return question, answer


# --- for pages without script ---------------------------------------------------------------------------------------


def reply_at_once(buyer: Buyer, *, page: str, **asked: Any) -> int:
    """The whole reply for a plain function: the conversation it stands in. Raises what `start_reply` does.

    `page` names the page that the form stood on, as it was written that once; empty where it is not known. What is sent
    twice from one page is bought once, and both get the one answer: whoever waits for it without a sign of it presses
    the button again.
    """
    refuse_in_transaction()
    return run(_reply_at_once(buyer, page, asked))


async def _reply_at_once(buyer: Buyer, page: str, asked: dict[str, Any]) -> int:
    if not page:
        return await _whole(await start_reply(buyer, **asked))
    body = json.dumps(asked, sort_keys=True)
    # The body is a part of the key: another message from the same page is another request.
    key = hashlib.sha256(f"{page} {body}".encode()).hexdigest()
    request = Request(buyer.schema, buyer.user_id, "page", key, key)
    try:
        found = await claim_or_told(here(), request, seconds=WAIT_SECONDS, most_of_workspace=MOST_WAITING)
    except StillUnderWay:
        raise ConversationBusy from None  # its own words are a program's
    if isinstance(found, Told):
        return conversation_told(found)
    try:
        reply = await start_reply(buyer, claim=found, **asked)
    except BaseException:
        found.give_back()
        raise
    return await _whole(reply)


async def _whole(reply: Reply) -> int:
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
    answer = _summary(messages, max_tokens=at_least_one(allowed), user_id=user_id, key_id=key_id, claim=claim)
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
    allowed = min(max_tokens or DEFAULT_MAX_TOKENS, plan_of(account_of(tenant).plan).max_tokens)
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
