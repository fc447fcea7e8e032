"""The plane's operations beside asking: what became of a call, its words from the first on, its stop; and a summary of
what no longer goes along.

Parses, asks chat.background or chat.summary, answers. A call that is not one's own is none.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from ninja import Router, Schema

from billing.api import Budget, Cost
from billing.engine.loop import here
from chat import background, titles
from chat.async_api import asker_of, buyer_of, streaming
from chat.background import Followed, Found, Whose
from chat.shapes import Bought, MaxTokens, ModelName, Number, Tokens
from chat.shown import Shown, html_of
from chat.sse import comment, event
from chat.summary import summarize_left_out
from tenants.api import Body, failures
from tenants.http import ApiError, NotFound
from tenants.roles import Action
from tenants.users.access import needs

logger = logging.getLogger(__name__)

router = Router(tags=["Chat"])


class UnderWay(Schema):
    """`state` is `answering`."""

    state: str
    conversation_id: int


_FAILURES = failures(400, 401, 403, 404, 429, 503)


@router.get(
    "/chat/calls/{uuid:call}/", summary="What became of an answer", response={200: Bought, 202: UnderWay, **_FAILURES}
)
@needs(Action.CHAT)
async def call_now(request: HttpRequest, call: UUID, rendered: bool = False) -> Any:
    """The answer that the `held` event of a stream called `call`, with what it cost; 202 while it is under way.

    With `Accept: text/event-stream` its words as events, from the first on: `token`, then `done` or `error`, as
    `/chat/` has them; with `rendered` as HTML, too.
    """
    whose, engine = _whose(request), here()
    found = await background.find(engine, whose, call)
    if "text/event-stream" in request.headers.get("Accept", ""):
        response = streaming(FollowedEvents(Followed(engine, whose, call, found), shows=rendered))
        response["X-Conversation-ID"] = str(found.conversation_id)
        # Of a GET: with "no-cache", as other streams have it, a browser may keep the words on its disk.
        response["Cache-Control"] = "private, no-store"
        return response
    return _said(found)


@router.post(
    "/chat/calls/{uuid:call}/stop/", summary="Stop an answer", response={200: Bought, 202: UnderWay, **_FAILURES}
)
@needs(Action.CHAT)
async def stop(request: HttpRequest, call: UUID) -> Any:
    """End an answer that is under way, in whichever process it is: what came until then is kept and charged. 202; or
    200 with the answer, where it had ended already.
    """
    return _said(await background.stop(here(), _whose(request), call))


class SummaryBody(Body):
    """Of which conversation."""

    conversation_id: Number
    max_tokens: MaxTokens | None = None
    model: ModelName | None = None


class Summary(Schema):
    """`messages`: so many are summarized here, besides what an earlier summary said."""

    summary: str
    conversation_id: int
    messages: int
    model: str
    finish_reason: str
    usage: Tokens
    cost: Cost
    outcome: str
    budget: Budget | None


@router.post(
    "/chat/summary/",
    summary="Summarize what no longer fits",
    response={200: Summary, **failures(400, 401, 402, 403, 404, 409, 413, 415, 422, 429, 502, 503)},
)
@needs(Action.CHAT)
async def summary(request: HttpRequest, payload: SummaryBody) -> Any:
    """Buy a summary of the messages that a question would leave out (`left_out` of the `held` event). From then on it
    goes along in their place.
    """
    body = await summarize_left_out(buyer_of(request), **payload.model_dump())
    return HttpResponse(json.dumps(body), content_type="application/json")


def _whose(request: HttpRequest) -> Whose:
    asker = asker_of(request)
    return Whose(asker.tenant.schema_name, asker.user_id)


def _said(found: Found) -> HttpResponseBase:
    body = found.facts or {"state": "answering", "conversation_id": found.conversation_id}
    return HttpResponse(json.dumps(body), content_type="application/json", status=200 if found.facts else 202)


class FollowedEvents:
    """The bytes of an answer for one who comes back to it. Closing it leaves the answer alone."""

    def __init__(self, followed: Followed, *, shows: bool) -> None:
        self._followed = followed
        self._shown = Shown() if shows else None
        self._events = self._make_events()

    async def _make_events(self) -> AsyncGenerator[bytes]:
        followed, text = self._followed, ""
        try:
            async for words in followed.words():
                text += words or ""
                yield event("token", {"text": words}) if words else comment("waiting")
                if self._shown is not None and words and (block := await self._shown.after([words])):
                    yield block
            facts = followed.facts
            if facts is None:
                raise NotFound(background.NO_CALL)
            html = {"html": await html_of(text)} if self._shown is not None else {}
            last = event("done", {**{name: value for name, value in facts.items() if name != "response"}, **html})
        except ApiError as exc:
            last = event("error", exc.body())
        except Exception:
            logger.exception("Following an answer broke on our side")
            last = event("error", ApiError().body())
        finally:
            followed.close()
        yield last
        if self._shown is not None and followed.facts is not None and followed.titling is not None:
            async for part in titles.told(followed.titling):
                yield part

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        self._followed.close()
