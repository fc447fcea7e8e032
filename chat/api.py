"""The API of what is bought. Reads, calls one service, answers."""

from __future__ import annotations

from typing import Annotated, Any

from django.http import HttpRequest, HttpResponseBase, StreamingHttpResponse
from ninja import Router, Schema
from pydantic import Field, ValidationError, field_validator

from billing.api import Budget, Cost
from billing.middleware import preflighted
from chat import services
from chat.forms import MAX_TOKENS_MAX, PROMPT_MAX
from chat.streams import ReplyStream
from tenants.api import Body, StrictParser, failures
from tenants.http import ApiError, TenantRequest
from tenants.models import Tenant

router = Router(tags=["Chat"])

MaxTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS_MAX)]
Text = Annotated[str, Field(min_length=1, max_length=PROMPT_MAX)]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("Write something.")
    return text


class ChatBody(Body):
    prompt: Text
    max_tokens: MaxTokens | None = None
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    conversation_id: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = None
    stream: bool = False

    _prompt = field_validator("prompt")(_not_blank)


class SummarizeBody(Body):
    text: Text
    max_tokens: MaxTokens | None = None

    _text = field_validator("text")(_not_blank)


class Tokens(Schema):
    input_tokens: int
    output_tokens: int


class Summary(Schema):
    """`budget` is null where the authority cannot be asked just now; the cost is booked all the same."""

    summary: str
    model: str
    usage: Tokens
    cost: Cost
    budget: Budget | None


class Answer(Schema):
    response: str
    conversation_id: int
    model: str
    finish_reason: str
    usage: Tokens
    cost: Cost
    budget: Budget | None


_FAILURES = failures(400, 401, 402, 403, 404, 413, 415, 422, 502, 503)


@router.post("/chat/", summary="Ask, and pay for the answer", response={200: Answer, **_FAILURES})
def chat(request: TenantRequest, payload: ChatBody) -> Any:
    """The whole answer with its cost, or with `stream` its words as server-sent events.

    Events: `token {"text"}`…, then `done` with the facts; after the first byte a failure is `error`.
    """
    reply = services.start_reply(
        request.tenant,
        user=request.auth,  # type: ignore[attr-defined]
        prompt=payload.prompt,
        conversation_id=payload.conversation_id,
        max_tokens=payload.max_tokens,
        model=payload.model,
    )
    if payload.stream:
        return event_stream(ReplyStream(reply), conversation_id=reply.conversation_id)
    try:
        for _ in reply.deltas():
            pass
    finally:
        reply.close()
    return {"response": reply.text, **reply.facts()}


def event_stream(stream: ReplyStream, *, conversation_id: int) -> HttpResponseBase:
    response = StreamingHttpResponse(stream, content_type="text/event-stream")
    response["Cache-Control"] = "no-cache"
    # nginx would collect the stream and hand it over in lumps.
    response["X-Accel-Buffering"] = "no"
    # A reader who stops the first answer has no `done` event to learn it from.
    response["X-Conversation-ID"] = str(conversation_id)
    return response


def _summary_needs(request: HttpRequest) -> int | None:
    """What the summary asked for will reserve; None for a request that the view refuses by itself."""
    if request.method != "POST":
        return None
    try:
        body = SummarizeBody.model_validate(StrictParser().parse_body(request))
    except (ApiError, ValidationError):
        return None
    tenant: Tenant = request.tenant  # type: ignore[attr-defined]
    return services.summary_estimate(tenant, text=body.text, max_tokens=body.max_tokens)


@router.post("/summarize/", summary="Summarize a text", response={200: Summary, **_FAILURES})
@preflighted(app="summarize", action_kind=services.ACTION, action_name="summarize", needs=_summary_needs)
def summarize(request: TenantRequest, payload: SummarizeBody) -> dict[str, Any]:
    """A few sentences for a long text."""
    return services.summarize(
        request.tenant,
        user=request.auth,  # type: ignore[attr-defined]
        text=payload.text,
        max_tokens=payload.max_tokens,
    )
