"""The API of what is bought under `guarded`: plain views, as builders write them. Reads, calls one service, answers."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Router, Schema
from pydantic import ValidationError

from billing.api import Budget, Cost
from billing.middleware import preflighted
from billing.repeats import Told, once, request_of
from chat import services
from chat.buying import ACTION
from chat.repeats import KEY_HEADER, IdempotencyKey, replayed, whole
from chat.shapes import MaxTokens, Text, Tokens
from tenants.api import Body, StrictParser, failures
from tenants.http import ApiError, TenantRequest
from tenants.models import Tenant
from tenants.roles import Action
from tenants.users.access import needs

router = Router(tags=["Chat"])


class SummarizeBody(Body):
    text: Text
    max_tokens: MaxTokens | None = None


class Summary(Schema):
    """`budget` is null where the authority cannot be asked just now; the cost is booked all the same."""

    summary: str
    model: str
    usage: Tokens
    cost: Cost
    outcome: str
    budget: Budget | None


_FAILURES = failures(400, 401, 402, 403, 404, 409, 413, 415, 422, 429, 502, 503)


def _summary_needs(request: HttpRequest) -> int | None:
    """What the summary asked for will reserve; None for a request that the view refuses by itself, and for one under
    a key: it may have been paid for already, and then an empty budget must not refuse its answer.
    """
    if request.method != "POST" or "Idempotency-Key" in request.headers:
        return None
    try:
        body = SummarizeBody.model_validate(StrictParser().parse_body(request))
    except (ApiError, ValidationError):
        return None
    tenant: Tenant = request.tenant  # type: ignore[attr-defined]
    return services.summary_estimate(tenant, text=body.text, max_tokens=body.max_tokens)


@router.post("/summarize/", summary="Summarize a text", response={200: Summary, **_FAILURES})
@needs(Action.SUMMARIZE)
@preflighted(app="summarize", action_kind=ACTION, action_name="summarize", needs=_summary_needs)
def summarize(request: TenantRequest, payload: SummarizeBody, key: IdempotencyKey = KEY_HEADER) -> Any:
    """A few sentences for a long text."""
    asker = request.asker
    assert asker is not None  # ninja's auth has seen to it
    asked = {"user_id": asker.user_id, "key_id": asker.key_id, **payload.model_dump()}
    if key is None:
        return services.summarize(request.tenant, **asked)
    with once(request_of(asker, "summarize", key, payload.model_dump())) as found:
        if isinstance(found, Told):
            return replayed(request, found)
        return whole(services.summarize(request.tenant, claim=found, **asked))
