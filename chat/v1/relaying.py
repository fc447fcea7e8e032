"""An answer on its way to an OpenAI client: its bytes as they came, then what it cost.

Owns the order of a stream's end: the call is settled, or a second has passed; then the budget's chunk; then [DONE],
for stock clients close there. Must not settle: a reader who leaves ends the words and never the books.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

from billing.engine.authority import budget_of
from billing.engine.call import Call
from billing.money import usd
from billing.prices import Usage
from chat.errors import ModelStopped
from chat.passed import Kind, Passed
from chat.relay import as_event
from chat.sse import comment
from chat.streams import Answering
from chat.terms import Completion
from chat.v1.refusals import error_chunk
from tenants.http import ApiError

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
# Ends an event whose server left out its blank line. Where it did not, readers skip it.
BLANK = b"\n\n"
# Of an answer and of its model.
LONGEST_NAME = 256
# What may be a report of the use, and the longest frame that is looked at for one.
_MAY_REPORT = re.compile(rb'"usage"\s*:\s*\{')
LONGEST_REPORT = 16 * 1024
_EVENT = re.compile(rb"(?:event:[^\r\n]*\r?\n)?data:")
_LINE_ENDS = (b"\n", b"\r\n")
# What ended the answer was the money, or that it was past its limit: the protocol has one word for both.
_CUT_BY_US = ("budget", "length")


async def stream(answering: Answering[Call], passed: Passed) -> AsyncIterator[bytes]:
    """The bytes of a stream. To close it is to leave."""
    report = b""
    try:
        async for part in answering.frames():
            shown, report = (report + comment("waiting"), b"") if part is None else _parted(report, part, passed)
            if shown:
                yield shown
        completion = await answering.finished()
        # Some of it never reached him, and must not look like the whole.
        if answering.gave_up_reader:
            end = report + _error(ModelStopped())
        else:
            end = _end_of(answering, completion, passed, report)
    except Exception:
        # A status can no longer say it, and a stream that just stops looks like a lost connection.
        logger.exception("A stream broke on our side: hold=%s", answering.call.id)
        end = report + _error(ApiError())
    yield end


def _parted(report: bytes, part: bytes, passed: Passed) -> tuple[bytes, bytes]:
    """What goes out now, and the report at its end, which may be the stream's last frame. `report`: of the part before.

    The helper of OpenAI's Python client takes the use and the fingerprint of the last chunk, and the budget's chunk has
    neither; other clients add up every report. So for stock clients a report at the end and the budget are one chunk.
    """
    if not passed.for_stock_client:
        return part, b""
    if report and part in _LINE_ENDS:
        # Its blank line, or one more, which says nothing.
        return b"", report if report.endswith((b"\n\n", b"\n\r\n")) else report + part
    at = _last_event(part)
    may_report = len(part) - at <= LONGEST_REPORT and _MAY_REPORT.search(part, at) is not None
    if not may_report or (chunk := _report(part[at:])) is None:
        return report + part, b""
    shown = report + part[:at]
    if not chunk["choices"]:
        return shown, part[at:]
    # The last words and that they are the last, for which a reader waits, go out without it.
    words = {name: value for name, value in chunk.items() if name != "usage"}
    return shown + as_event(words), as_event({**chunk, "choices": []})


def _last_event(part: bytes) -> int:
    """Where it begins: with its name, for to OpenAI's clients a name alone is an event, whose data is no JSON."""
    at = part.rfind(b"\ndata:") + 1
    before = part.rfind(b"\n", 0, max(0, at - 1)) + 1
    return before if part.startswith(b"event:", before) else at


def _report(frame: bytes) -> dict[str, Any] | None:
    """The chunk of a frame that reports the use, and ends each of its answers."""
    if (begins := _EVENT.match(frame)) is None:
        return None
    try:
        chunk = json.loads(frame[begins.end() :])
    except (ValueError, RecursionError):
        return None  # more than a chunk
    choices = chunk.get("choices") if type(chunk) is dict else None
    if type(choices) is not list or type(chunk.get("usage")) is not dict:
        return None
    is_end = all(type(choice) is dict and choice.get("finish_reason") for choice in choices)
    return chunk if is_end else None


def told_again(frames: bytes, answering: Answering[Call], completion: Completion, passed: Passed) -> bytes:
    """The whole stream once more. `frames`: all that was passed on of the model's own."""
    shown, report = _parted(b"", frames, passed)
    return shown + _end_of(answering, completion, passed, report)


def _end_of(answering: Answering[Call], completion: Completion, passed: Passed, report: bytes) -> bytes:
    """What stands after the model's own frames. `report`: the last of these, where it has not gone out."""
    if answering.failure is not None:
        return report + _error(answering.failure)
    budgets, reported = _budget_chunk(answering, completion, passed), _report(report)
    chunks = [budgets]
    if completion.finish_reason in _CUT_BY_US and (missing := _unended(answering)):
        chunks.insert(0, _head(answering, completion, passed) | {"choices": [_ended(i, passed) for i in missing]})
    if reported is not None:
        # Where the model's own report says too little, ours stands in its place.
        use = budgets.get("usage", reported["usage"])
        chunks[-1] = {**reported, "usage": use, "budget": budgets["budget"]}
    return BLANK + b"".join(as_event(chunk) for chunk in chunks) + DONE


def _error(exc: ApiError) -> bytes:
    return BLANK + error_chunk(exc) + DONE


async def whole(answering: Answering[Call]) -> tuple[bytes, dict[str, str]]:
    """The body of an answer in one piece, and its headers, once it is settled. Raises what it failed with."""
    completion = await answering.finished()
    if answering.failure is not None:
        raise answering.failure
    assert completion.passed is not None  # it did not fail
    return completion.passed, headers(answering, completion)


def as_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _unended(answering: Answering[Call]) -> list[int]:
    """The answers that have no finish_reason yet, by index."""
    return [index for index in range(answering.terms.n) if index not in answering.said.reasons]


def _ended(index: int, passed: Passed) -> dict[str, Any]:
    words: dict[str, Any] = {"text": ""} if passed.kind == Kind.COMPLETIONS else {"delta": {}}
    return {"index": index, **words, "logprobs": None, "finish_reason": "length"}


def _head(answering: Answering[Call], completion: Completion, passed: Passed) -> dict[str, Any]:
    """As the stream's own chunks begin, for clients take all of a stream's chunks to be of one answer."""
    own = answering.said.head or {}
    is_chat = passed.kind == Kind.CHAT
    return {
        "id": _text(own.get("id")) or f"{'chatcmpl' if is_chat else 'cmpl'}-{answering.call.id.hex}",
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": _time(own.get("created")),
        "model": _text(own.get("model")) or completion.model,
    }


def _text(value: Any) -> str | None:
    """What can stand in a chunk of ours: a nest, or a megabyte, is the model's own to send."""
    return value if type(value) is str and len(value) <= LONGEST_NAME else None


def _time(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 53 else 0


def _budget_chunk(answering: Answering[Call], completion: Completion, passed: Passed) -> dict[str, Any]:
    chunk = _head(answering, completion, passed) | {"choices": []}
    # Clients add up every report of a stream, so that there is only one.
    if passed.wants_usage and answering.said.report() is None:
        chunk["usage"] = _as_usage(completion.usage)
    return chunk | {"budget": budget(answering.call, completion)}


def _as_usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.tokens_input,
        "completion_tokens": usage.tokens_output,
        "total_tokens": usage.tokens_input + usage.tokens_output,
    }


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
        "outcome": str(completion.outcome) if completion is not None else None,
        "ended": completion is not None and completion.finish_reason == "budget",
    }


_IN_HEADERS = ("cost", "remaining", "limit", "held", "resets_at", "scope", "outcome")


def headers(answering: Answering[Call], completion: Completion | None) -> dict[str, str]:
    """Of an answer to whoever bought it: the same as headers, and what is left of their key's rates."""
    rates = answering.call.rates
    return headers_of_money(answering, completion) | (rates.headers() if rates is not None else {})


def headers_of_money(answering: Answering[Call], completion: Completion | None) -> dict[str, str]:
    """What is not known is left out."""
    call = answering.call
    facts = budget(call, completion)
    named = {name: str(facts[name]) for name in _IN_HEADERS if facts[name] is not None}
    found = {f"x-budget-{name.replace('_', '-')}": value for name, value in named.items()}
    if facts["ended"]:
        found["x-budget-ended"] = "true"
    if call.is_fitted:
        # Of each answer, where several were asked for.
        found["x-budget-fitted"] = str(answering.terms.max_tokens)
    return found
