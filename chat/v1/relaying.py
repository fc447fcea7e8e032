"""An answer on its way to an OpenAI client: its bytes as they came, then what it cost.

Owns the order of a stream's end: the call is settled, or a second has passed; then the budget's chunk; then [DONE],
for stock clients close there. Must not settle: a reader who leaves ends the words and never the books.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from billing.engine.authority import budget_of
from billing.engine.call import Call
from billing.money import usd
from chat.sse import comment
from chat.streams import Answering, Completion
from chat.v1.refusals import error_chunk
from tenants.http import ApiError

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
# What ended the answer was the money, or somebody who stopped it: the protocol has one word for both.
_ENDED_BY_US = ("budget", "length", "cancelled")


async def stream(answering: Answering[Call]) -> AsyncIterator[bytes]:
    """The bytes of a stream. To close it is to leave."""
    try:
        async for part in answering.frames():
            yield comment("waiting") if part is None else part
        completion = await answering.finished()
        failure: ApiError | None = answering.failure
    except Exception:
        # A status can no longer say it, and a stream that just stops looks like a lost connection.
        logger.exception("A stream broke on our side: hold=%s", answering.call.id)
        failure = ApiError()
    if failure is not None:
        yield error_chunk(failure)
    else:
        yield _last_chunk(answering, completion)
    yield DONE


def _last_chunk(answering: Answering[Call], completion: Completion) -> bytes:
    chunk = {
        "id": f"chatcmpl-{answering.call.id.hex}",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": completion.model,
        "choices": [],
        "budget": budget(answering.call, completion),
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def budget(call: Call, completion: Completion | None) -> dict[str, Any]:
    """What an answer says of the money. Amounts are decimal dollars; null is unknown."""
    known = completion.budget if completion is not None else budget_of(call.first_balances, call.hold.scope)
    figures = {name: usd(known[name]) if known else None for name in ("remaining", "allocated", "reserved")}
    return {
        "cost": usd(completion.cost) if completion is not None else None,
        "remaining": figures["remaining"],
        "limit": figures["allocated"],
        "held": figures["reserved"],
        "resets_at": call.payer.resets_at,
        "scope": call.hold.scope,
        "unit": "USD",
        "ended": completion is not None and completion.finish_reason == "budget",
    }


def headers(call: Call, completion: Completion | None) -> dict[str, str]:
    """The same as headers; what is not known is left out."""
    facts = budget(call, completion)
    named = {name: facts[name] for name in ("cost", "remaining", "limit", "held", "resets_at", "scope")}
    found = {f"x-budget-{name.replace('_', '-')}": value for name, value in named.items() if value is not None}
    if call.is_fitted:
        found["x-budget-fitted"] = str(call.max_tokens)
    return found
