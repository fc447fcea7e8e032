"""The plane's operations: calls that buy, as async views. No ORM, no thread a stream.

Owns a reply's way to its reader: whole, or as server-sent events, for the first time or again. Parses, calls one
service, answers. Must not settle: a reader who leaves ends the words and never the books.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Self

from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from ninja import Router, Schema
from pydantic import Field, model_validator

from billing.api import Budget
from billing.engine.loop import here
from billing.repeats import Told, request_of
from chat import services, streams, titles
from chat.forms import PROMPT_MAX
from chat.quotes import quote
from chat.repeats import KEY_HEADER, REPLAYED, IdempotencyKey, is_stream, replayed, replayed_events, whole
from chat.services import Buyer, Reply
from chat.shapes import Bought, Files, MaxTokens, ModelName, Number, NumberOrNone, Text, not_blank
from chat.shown import Shown, html_of
from chat.sse import comment, event
from chat.standing import Standing, key_of
from tenants.api import Body, failures
from tenants.http import ApiError
from tenants.limits import Rate, atake
from tenants.resolve import Asker
from tenants.roles import Action
from tenants.users.access import needs

logger = logging.getLogger(__name__)

router = Router(tags=["Chat"])

# Nothing is bought, so that no budget bounds it; and with megabytes of files one takes 0.1 s of everybody's loop.
PRICES = Rate("prices", burst=120, every=0.5, words="You have asked for a great many prices just now.")


class AnswerBody(Body):
    """What every way to ask for an answer has."""

    max_tokens: MaxTokens | None = None
    model: ModelName | None = None
    stream: bool = False
    # With `stream`: its words as HTML, too.
    rendered: bool = False

    def asked(self) -> dict[str, Any]:
        """What is bought. How it is delivered is not: a repeat may ask for the other form."""
        return self.model_dump(exclude={"stream", "rendered"})


class PriceBody(Body):
    """A message. `parent_id`: the one that it follows, 0 for none: a branch. Without it, the last one shown. `files`:
    the numbers of files that were added on the page; pictures among them are for models that take some.
    """

    prompt: Text
    max_tokens: MaxTokens | None = None
    model: ModelName | None = None
    conversation_id: Number | None = None
    parent_id: NumberOrNone | None = None
    files: Files = Field(default_factory=list)


class QuoteBody(PriceBody):
    """A message of which nothing may be written yet, where it has files."""

    prompt: Annotated[str, Field(max_length=PROMPT_MAX)] = ""

    @model_validator(mode="after")
    def _has_something(self) -> Self:
        if not self.files:
            not_blank(self.prompt)
        return self


class ChatBody(AnswerBody, PriceBody):
    """The message, and how its answer is delivered."""


class MessageBody(AnswerBody):
    """A message of a conversation."""

    conversation_id: Number
    message_id: Number

    def asked_as(self, name: str) -> dict[str, Any]:
        """The same, with the message under the name of what is asked of it."""
        asked = self.asked()
        asked[name] = asked.pop("message_id")
        return asked


class Answer(Bought):
    """`budget` is null where the commit took longer than a second; the cost is booked all the same. `fitted`: the
    answer was made shorter, for the budget covers no longer one.
    """

    fitted: bool
    budget: Budget | None


_ANSWERS = {200: Answer, **failures(400, 401, 402, 403, 404, 409, 413, 415, 422, 429, 502, 503)}


@router.post("/chat/", summary="Ask, and pay for the answer", response=_ANSWERS)
@needs(Action.CHAT)
async def chat(request: HttpRequest, payload: ChatBody, key: IdempotencyKey = KEY_HEADER) -> Any:
    """The whole answer with its cost, or with `stream` its words as server-sent events.

    Events: `held {call, reserved, remaining, max_tokens, fitted, meter, left_out}`, then `token {"text"}`…, then
    `done` with the facts; after the first byte a failure is `error`. With `rendered` the words come as HTML, too:
    `block {"html", "length"}` where a block of Markdown has ended, of so many characters since the last one; and `done`
    has the whole's `html`. Where the model writes titles, `title {"title"}` follows a new conversation's `done` then.

    Without `model` the conversation's own is asked, else the workspace's. One that a key names is for this call alone.
    """
    asked = payload.asked()
    if asked["parent_id"] is None:
        del asked["parent_id"]  # a key of before there were branches names the same request
    if not asked["files"]:
        del asked["files"]  # nor were there files
    return await _bought(request, "chat", payload, key, asked)


class Price(Schema):
    """Money in microcents. `likely` is a guess, and `most` what would be held for the longest answer."""

    model: str
    likely: int
    most: int
    input_tokens: int
    history_tokens: int
    max_tokens: int


@router.post(
    "/chat/price/",
    summary="What a message would cost",
    response={200: Price, **failures(400, 401, 403, 404, 413, 415, 422, 429, 503)},
)
@needs(Action.CHAT)
async def price(request: HttpRequest, payload: QuoteBody) -> Any:
    """Nothing is held, and no model is called. `history_tokens` of the input are what was said before."""
    buyer = buyer_of(request)
    await atake(PRICES, here().store.fetch, buyer.tenant_id, buyer.user_id)
    return await quote(buyer, **payload.model_dump())


@router.post("/chat/again/", summary="Ask a question once more", response=_ANSWERS)
@needs(Action.CHAT)
async def again(request: HttpRequest, payload: MessageBody, key: IdempotencyKey = KEY_HEADER) -> Any:
    """Another answer to the question of `message_id`, which is a question's number or an answer's. Both answers are
    kept, and the new one is shown. Else as `/chat/`.
    """
    return await _bought(request, "again", payload, key, payload.asked_as("again_id"))


@router.post("/chat/continue/", summary="Go on with an answer that was cut", response=_ANSWERS)
@needs(Action.CHAT)
async def go_on(request: HttpRequest, payload: MessageBody, key: IdempotencyKey = KEY_HEADER) -> Any:
    """The rest of the answer `message_id`, as a message of its own that follows it. Else as `/chat/`."""
    return await _bought(request, "continue", payload, key, payload.asked_as("continue_id"))


async def _bought(request: HttpRequest, what: str, payload: AnswerBody, key: str | None, asked: dict[str, Any]) -> Any:
    if key is None:
        return await _answer(await services.start_reply(buyer_of(request), **asked), payload)
    asker = asker_of(request)
    named, is_first = request_of(asker, what, key, asked), asyncio.Event()
    finding = asyncio.create_task(services.reply_or_told(buyer_of(request), named, is_first, **asked))
    try:
        if payload.stream:
            await asyncio.wait({finding}, timeout=streams.KEEP_ALIVE_SECONDS)
            if not finding.done() and not is_first.is_set():
                return streaming(LateEvents(finding, shows=payload.rendered))
        await asyncio.wait({finding})
    except asyncio.CancelledError:
        finding.cancel()
        raise
    found = finding.result()
    if isinstance(found, Reply):
        return await _answer(found, payload)
    if payload.stream and is_stream(found):
        return _replayed_stream(found, shows=payload.rendered)
    return replayed(request, found)


def asker_of(request: HttpRequest) -> Asker:
    """Who asks, as the plane has put it on the request before any view."""
    asker: Asker = request.asker  # type: ignore[attr-defined]  # HttpRequest has no such attribute of its own
    return asker


def buyer_of(request: HttpRequest) -> Buyer:
    """Who pays for what the request buys."""
    asker = asker_of(request)
    tenant = asker.tenant
    return Buyer(
        tenant_id=tenant.pk,
        slug=tenant.slug,
        schema=tenant.schema_name,
        user_id=asker.user_id,
        key=key_of(asker),
        account=asker.beside,
        chat_settings=tenant.chat_settings,
        # A program that leaves wants no more of it: nobody there comes back.
        goes_on=asker.by_session and tenant.chat_settings.get("goes_on") is True,
        standing=Standing(request, asker),
    )


async def _answer(reply: Reply, payload: AnswerBody) -> HttpResponseBase:
    try:
        return await (_event_stream(reply, shows=payload.rendered) if payload.stream else _whole(reply))
    except BaseException:
        reply.answering.leave()
        raise


async def _whole(reply: Reply) -> HttpResponseBase:
    completion = await reply.answering.finished()
    if reply.answering.failure is not None:
        raise reply.answering.failure
    return _with_headers(whole(reply.body(completion)), {**reply.headers(), **reply.rates()})


async def _event_stream(reply: Reply, *, shows: bool) -> HttpResponseBase:
    await reply.answering.begun()
    # A reader who stops the first answer has no `done` event to learn the conversation from.
    headers = {"X-Conversation-ID": str(reply.conversation_id), **reply.headers(), **reply.rates()}
    return _with_headers(streaming(EventStream(reply, shows=shows)), headers)


def streaming(events: AsyncIterator[bytes]) -> HttpResponseBase:
    response = StreamingHttpResponse(events, content_type="text/event-stream")
    response["Cache-Control"] = "no-cache"
    # nginx would collect the stream and hand it over in lumps.
    response["X-Accel-Buffering"] = "no"
    return response


def _replayed_stream(told: Told, *, shows: bool) -> HttpResponseBase:
    headers = {"X-Conversation-ID": str(told.answer["conversation_id"]), **told.answer["headers"], **REPLAYED}
    return _with_headers(streaming(replayed_events(told, shows=shows)), headers)


def _with_headers(response: HttpResponseBase, headers: dict[str, str]) -> HttpResponseBase:
    for name, value in headers.items():
        response[name] = value
    return response


class EventStream:
    """The bytes of one answer. An object with an `aclose` that works before the first byte, too: a generator that
    never starts never runs its `finally`, and the upstream would write on.
    """

    def __init__(self, reply: Reply, *, shows: bool) -> None:
        self._reply = reply
        self._shown = Shown() if shows else None
        self._events = self._make_events()

    async def _make_events(self) -> AsyncGenerator[bytes]:
        answering = self._reply.answering
        yield event("held", self._reply.held())
        try:
            async for words in answering.events():
                yield b"".join(event("token", {"text": word}) for word in words) if words else comment("waiting")
                if self._shown is not None and words and (shown := await self._shown.after(words)):
                    yield shown
            completion = await answering.finished()
            failure: ApiError | None = answering.failure
            html = {"html": await html_of(completion.shown)} if self._shown is not None and failure is None else {}
        except Exception:
            # A status can no longer say it, and a stream that just stops looks like a lost connection.
            logger.exception("A stream broke on our side: hold=%s", answering.call.id)
            failure = ApiError()
        yield event("error", failure.body()) if failure else event("done", {**self._reply.facts(completion), **html})
        if self._shown is not None and failure is None and self._reply.titling is not None:
            async for part in titles.told(self._reply.titling):
                yield part

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._events)

    async def aclose(self) -> None:
        self._reply.answering.leave()
        await self._events.aclose()


class LateEvents:
    """The bytes of a stream whose request waits for the answer of an equal one: silence, then that answer's events.

    Where that one came to nothing, the reply is bought here after all. To close it is to stop waiting.
    """

    def __init__(self, finding: asyncio.Task[Reply | Told], *, shows: bool) -> None:
        self._finding = finding
        self._shows = shows
        self._events = self._make_events()

    async def _make_events(self) -> AsyncGenerator[bytes]:
        yield comment("waiting")
        while not (await asyncio.wait({self._finding}, timeout=streams.KEEP_ALIVE_SECONDS))[0]:
            yield comment("waiting")
        try:
            found = self._finding.result()
        except ApiError as exc:
            yield event("error", exc.body())
            return
        except Exception:
            logger.exception("A repeat broke on our side")
            yield event("error", ApiError().body())
            return
        if isinstance(found, Told) and not is_stream(found):
            yield event("error", found.answer["body"])
            return
        shows = self._shows
        events = EventStream(found, shows=shows) if isinstance(found, Reply) else replayed_events(found, shows=shows)
        async for part in events:
            yield part

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._events)

    async def aclose(self) -> None:
        self._finding.cancel()
        await self._events.aclose()
