"""Idempotency-Key at both doors: how the header is read, and an answer told again.

Owns what is kept of an answer for that, and its words, whole and streamed. Who may call a model is decided in
billing.engine.repeats.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from django.http import HttpRequest, HttpResponse
from ninja.params.functions import Header
from pydantic import AfterValidator

from billing.engine.repeats import WHAT_A_KEY_IS, Told, is_key
from billing.engine.settling import Settled
from chat.shown import html_of
from chat.sse import event
from tenants.http import ApiError, error_response

if TYPE_CHECKING:
    from chat.services import Reply


def _read(value: str | None) -> str | None:
    if value is None:
        return None
    key = value.strip()
    if not is_key(key):
        raise ValueError(WHAT_A_KEY_IS)
    return key


IdempotencyKey = Annotated[str | None, AfterValidator(_read)]
KEY_HEADER: Any = Header(
    None,
    alias="Idempotency-Key",
    description="Names this request, for 24 hours. Sent again with the same body it is charged once and gets the same "
    "answer, with the header `Idempotent-Replayed: true`; while the first is under way, it waits for that. A request "
    "that failed and cost nothing is tried anew.",
)


# --- what is kept ---------------------------------------------------------------------------------------------------


def told_of_reply(reply: Reply, settled: Settled) -> Told | None:
    """A reply that has ended, for either form; None where nothing was bought."""
    completion, failure = reply.answering.as_settled(settled), reply.answering.failure
    stream = {"held": reply.held(), "conversation_id": reply.conversation_id, "headers": reply.headers()}
    if failure is None:
        return Told(200, {"body": reply.body(completion), "words": completion.shown, **stream})
    told = told_of_failure(failure, settled)
    return told and Told(told.status, {**told.answer, "words": completion.text, **stream})


def told_of_failure(failure: ApiError, settled: Settled) -> Told | None:
    return Told(failure.status, {"body": failure.body()}) if settled.final.cost else None


# --- how it is told again -------------------------------------------------------------------------------------------

REPLAYED = {"Idempotent-Replayed": "true"}


def whole(body: dict[str, Any]) -> HttpResponse:
    return HttpResponse(json.dumps(body), content_type="application/json")


class _Again(ApiError):
    """A failure that was charged, told again."""

    def __init__(self, told: Told) -> None:
        self._body = told.answer["body"]
        self.status = told.status
        super().__init__(self._body["message"], retry_after_ms=self._body["retry_after_ms"])

    def body(self) -> dict[str, Any]:
        return dict(self._body)


def replayed(request: HttpRequest, told: Told) -> HttpResponse:
    """The whole answer, byte for byte."""
    response = whole(told.answer["body"]) if told.status == 200 else error_response(request, _Again(told))
    for name, value in {**told.answer.get("headers", {}), **REPLAYED}.items():
        response[name] = value
    return response


def conversation_told(told: Told) -> int:
    """Of a page: the conversation that the answer stands in. Raises the failure that it was."""
    if told.status != 200:
        raise _Again(told)
    return int(told.answer["conversation_id"])


def is_stream(told: Told) -> bool:
    """Whether it is told as events. What failed before its first word is a status."""
    return told.status == 200 or bool(told.answer["words"])


async def replayed_events(told: Told, *, shows: bool) -> AsyncIterator[bytes]:
    """The events of the same answer, its words in one."""
    answer = told.answer
    yield event("held", answer["held"])
    yield event("token", {"text": answer["words"]})
    if told.status == 200:
        html = {"html": await html_of(answer["words"])} if shows else {}
        yield event("done", {**{name: value for name, value in answer["body"].items() if name != "response"}, **html})
    else:
        yield event("error", answer["body"])
