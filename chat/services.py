"""What can be bought: a reply in a conversation, a summary. Parse-free: callers bring clean values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import django.db
from django.conf import settings
from django.db import transaction

from billing.balances import figures_for
from billing.guard import Outcome, current_reservation, guarded, plan_max_tokens, reserve
from billing.money import usd
from billing.prices import Usage, cost, estimate
from chat import llm
from chat.errors import ModelFailed
from chat.models import Conversation, Message
from chat.pricing import price_for
from chat.streams import LEASE_MARGIN_SECONDS, Pump, Reply, Terms
from tenants.http import Forbidden, NotFound, Unavailable
from tenants.models import Tenant
from tenants.users.models import User

DEFAULT_MAX_TOKENS = 512
# How much of a conversation goes along: a small model's memory is short, and every token of it is paid for again.
HISTORY_MESSAGES = 8
HISTORY_BYTES = 4_000
ACTION = "llm.completion"


def start_reply(
    tenant: Tenant,
    *,
    user: User,
    prompt: str,
    conversation_id: int | None = None,
    max_tokens: int | None = None,
    model: str | None = None,
) -> Reply:
    """Hold the most this answer can cost, call the model, and give back the reply as it comes.

    The caller must close it. Raises NotFound, ModelNotPriced, a BudgetError, or ModelFailed; the conversation is then
    as it was before.
    """
    model = model or settings.LLM_MODEL
    price = price_for(model)
    conversation = _conversation(user, conversation_id)
    messages: list[llm.Message] = [*_history(conversation), {"role": "user", "content": prompt}]
    allowed = min(max_tokens or DEFAULT_MAX_TOKENS, plan_max_tokens(tenant))
    tokens_input = llm.prompt_bound(messages)
    with ExitStack() as stack:
        reservation = stack.enter_context(
            reserve(
                tenant,
                app="chat",
                action_kind=ACTION,
                action_name=model,
                estimate=estimate(tokens_input=tokens_input, max_tokens=allowed, price=price),
                user_id=user.pk,
                workflow=f"conversation-{conversation.pk}" if conversation else None,
            )
        )
        allowed = _some(reservation.cap(allowed))
        asked = stack.enter_context(_asked(conversation, user=user, prompt=prompt))
        conversation = asked.conversation
        pump = Pump(lambda cut: llm.open_stream(messages, model=model, max_tokens=allowed, cut=cut))
        try:
            reservation.dispatch(pump.start)
        except RuntimeError as exc:
            # No thread to be had: the model was not called after all.
            reservation.void()
            raise Unavailable from exc
        terms = Terms(model=model, price=price, max_tokens=allowed, tokens_input=tokens_input)
        reply = Reply(reservation, pump, terms=terms, conversation=conversation)
        stack.callback(reply.close)
        reply.wait_for_first()
        stack.pop_all()  # from here the caller owns the reply, and the reply the reservation
        return reply


def _some(max_tokens: int) -> int:
    """A cap of 0 is a cap: it allows no answer, and some models read a 0 as "without limit"."""
    if max_tokens < 1:
        raise Forbidden("This workspace's limits allow no answer just now.")
    return max_tokens


def _conversation(user: User, conversation_id: int | None) -> Conversation | None:
    if conversation_id is None:
        return None
    found = Conversation.objects.filter(pk=conversation_id, owner=user).first()
    if found is None:
        raise NotFound("There is no such conversation.")
    return found


@contextmanager
def _asked(conversation: Conversation | None, *, user: User, prompt: str) -> Iterator[Message]:
    """The question's row, taken back where the block fails: asked again, it would stand there twice, and be paid so."""
    with transaction.atomic():
        conversation = conversation or Conversation.objects.create(owner=user, title=_title(prompt))
        asked = Message.objects.create(conversation=conversation, role=Message.Role.USER, text=prompt)
    try:
        yield asked
    except Exception:
        with suppress(django.db.Error), transaction.atomic():
            asked.delete()
            Conversation.objects.filter(pk=conversation.pk, messages=None).delete()
        raise


def _history(conversation: Conversation | None) -> list[llm.Message]:
    """The latest messages that fit, oldest first."""
    if conversation is None:
        return []
    kept: list[llm.Message] = []
    room = HISTORY_BYTES
    for message in conversation.messages.order_by("-pk")[:HISTORY_MESSAGES]:
        room -= len(message.text.encode())
        if room < 0:
            break
        kept.append({"role": message.role, "content": message.text})
    return kept[::-1]


def _title(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def summarize(tenant: Tenant, *, user: User, text: str, max_tokens: int | None = None) -> dict[str, Any]:
    """{summary, model, usage, cost, budget}. Raises ModelNotPriced, a BudgetError, or ModelFailed."""
    model = settings.LLM_MODEL
    messages, allowed = _summary_terms(tenant, text=text, max_tokens=max_tokens)
    answer, charged = _summary(messages, model=model, max_tokens=allowed, user_id=user.pk)
    figures = figures_for(tenant)
    return {
        "summary": answer.text,
        "model": model,
        "usage": {"input_tokens": answer.usage.tokens_input, "output_tokens": answer.usage.tokens_output},
        "cost": {"microcents": charged, "usd": usd(charged)},
        "budget": figures.as_budget() if figures else None,
    }


def summary_estimate(tenant: Tenant, *, text: str, max_tokens: int | None) -> int:
    """Microcents that `summarize` will reserve for the same request."""
    messages, allowed = _summary_terms(tenant, text=text, max_tokens=max_tokens)
    return _most(messages, model=settings.LLM_MODEL, max_tokens=allowed, user_id=0)


def _summary_terms(tenant: Tenant, *, text: str, max_tokens: int | None) -> tuple[list[llm.Message], int]:
    allowed = min(max_tokens or DEFAULT_MAX_TOKENS, plan_max_tokens(tenant))
    return [{"role": "user", "content": f"Summarize this in a few sentences:\n\n{text}"}], allowed


def _most(messages: list[llm.Message], *, model: str, max_tokens: int, user_id: int) -> int:
    return estimate(tokens_input=llm.prompt_bound(messages), max_tokens=max_tokens, price=price_for(model))


@guarded(
    estimate=_most,
    action_kind=ACTION,
    action_name=lambda messages, *, model, **kw: model,
    app="summarize",
    user_id=lambda messages, *, user_id, **kw: user_id,
)
def _summary(messages: list[llm.Message], *, model: str, max_tokens: int, user_id: int) -> tuple[llm.Completion, int]:
    reservation = current_reservation()
    assert reservation is not None
    try:
        allowed = _some(reservation.cap(max_tokens))
    except Forbidden:
        reservation.void()
        raise
    try:
        answer = llm.complete(messages, model=model, max_tokens=allowed, until=_lease_ends)
    except ModelFailed as exc:
        if not exc.reached:
            reservation.void()
        _record(exc.usage, model)
        raise
    return answer, _record(answer.usage, model)


def _lease_ends() -> bool:
    reservation = current_reservation()
    return reservation is not None and reservation.lease_left() < LEASE_MARGIN_SECONDS


def _record(usage: Usage, model: str) -> int:
    reservation = current_reservation()
    assert reservation is not None
    spent = cost(usage, price_for(model))
    reservation.record(
        cost=spent,
        outcome=Outcome.ESTIMATED if usage.counted else Outcome.EXACT,
        model=model,
        tokens_input=usage.tokens_input,
        tokens_output=usage.tokens_output,
    )
    return spent
