"""The plane's operations: calls that buy, as async views. No ORM, no thread a stream.

Owns a reply's way to its reader: whole, or as server-sent events. Parses, calls one service, answers. Must not settle:
a reader who leaves ends the words and never the books.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypeVar

from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from ninja import Router, Schema
from pydantic import Field

from billing.api import Budget, Cost
from billing.engine.authority import budget_of
from chat import services
from chat.services import Buyer, Reply
from chat.shapes import MaxTokens, Text, Tokens
from chat.sse import comment, event
from tenants.api import Body, failures
from tenants.http import ApiError
from tenants.resolve import Asker

logger = logging.getLogger(__name__)

router = Router(tags=["Chat"])


class ChatBody(Body):
    prompt: Text
    max_tokens: MaxTokens | None = None
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    conversation_id: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    stream: bool = False


class Answer(Schema):
    """`budget` is null where the commit took longer than a second; the cost is booked all the same.

    `outcome` says how the cost is known. `fitted`: the answer was made shorter, for the budget covers no longer one.
    """

    response: str
    conversation_id: int
    model: str
    finish_reason: str
    usage: Tokens
    cost: Cost
    outcome: str
    fitted: bool
    budget: Budget | None


@router.post(
    "/chat/",
    summary="Ask, and pay for the answer",
    response={200: Answer, **failures(400, 401, 402, 403, 404, 409, 413, 415, 422, 429, 502, 503)},
)
async def chat(request: HttpRequest, payload: ChatBody) -> Any:
    """The whole answer with its cost, or with `stream` its words as server-sent events.

    Events: `held {reserved, remaining, max_tokens, fitted}`, then `token {"text"}`…, then `done` with the facts; after
    the first byte a failure is `error`.
    """
    reply = await services.start_reply(
        buyer_of(request),
        prompt=payload.prompt,
        conversation_id=payload.conversation_id,
        max_tokens=payload.max_tokens,
        model=payload.model,
    )
    try:
        return await (_event_stream(reply) if payload.stream else _whole(reply))
    except BaseException:
        reply.answering.leave()
        raise


def buyer_of(request: HttpRequest) -> Buyer:
    """Who pays for what the request buys."""
    asker: Asker = request.asker  # type: ignore[attr-defined]
    tenant = asker.tenant
    return Buyer(
        tenant_id=tenant.pk,
        slug=tenant.slug,
        schema=tenant.schema_name,
        user_id=asker.user_id,
        key_id=asker.key_id,
        account=asker.beside,
    )


async def _whole(reply: Reply) -> HttpResponse:
    completion = await reply.answering.finished()
    if reply.answering.failure is not None:
        raise reply.answering.failure
    body = {"response": completion.shown, **reply.facts(completion)}
    response = HttpResponse(json.dumps(body), content_type="application/json")
    return _marked(response, reply)


async def _event_stream(reply: Reply) -> HttpResponseBase:
    await reply.answering.begun()
    response = StreamingHttpResponse(EventStream(reply), content_type="text/event-stream")
    response["Cache-Control"] = "no-cache"
    # nginx would collect the stream and hand it over in lumps.
    response["X-Accel-Buffering"] = "no"
    # A reader who stops the first answer has no `done` event to learn it from.
    response["X-Conversation-ID"] = str(reply.conversation_id)
    return _marked(response, reply)


R = TypeVar("R", bound=HttpResponseBase)


def _marked(response: R, reply: Reply) -> R:
    if reply.answering.call.is_fitted:
        response["X-Budget-Fitted"] = str(reply.answering.terms.max_tokens)
    return response


class EventStream:
    """The bytes of one answer. An object with an `aclose` that works before the first byte, too: a generator that
    never starts never runs its `finally`, and the upstream would write on.
    """

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._events = self._make_events()

    async def _make_events(self) -> AsyncIterator[bytes]:
        answering = self._reply.answering
        yield event("held", _held(self._reply))
        try:
            async for words in answering.events():
                yield b"".join(event("token", {"text": word}) for word in words) if words else comment("waiting")
            completion = await answering.finished()
            failure: ApiError | None = answering.failure
        except Exception:
            # A status can no longer say it, and a stream that just stops looks like a lost connection.
            logger.exception("A stream broke on our side: hold=%s", answering.call.id)
            failure = ApiError()
        yield event("error", failure.body()) if failure else event("done", self._reply.facts(completion))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._events)

    async def aclose(self) -> None:
        self._reply.answering.leave()
        await self._events.aclose()  # type: ignore[attr-defined]


def _held(reply: Reply) -> dict[str, Any]:
    answering = reply.answering
    budget = budget_of(answering.call.first_balances, answering.call.hold.scope)
    return {
        "reserved": answering.call.held,
        "remaining": budget["remaining"] if budget else None,
        "max_tokens": answering.terms.max_tokens,
        "fitted": answering.call.is_fitted,
    }
