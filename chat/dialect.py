"""How one model is spoken to: its address, its names for things, its patience, its bill; and what its refusals mean.

Owns the settings of a model and the request. Pure but for `dialect_for`, which reads the settings. Must not reach a
model (chat.llm does) nor keep an upstream's words. What comes back is read by chat.answer.
"""

from __future__ import annotations

import email.utils
import functools
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from pydantic_core import to_json

from chat.errors import ModelBusy, ModelDeclined, ModelDeclinedTooLong, ModelFailed, ModelMisconfigured
from chat.history import Message
from chat.passed import Kind, Passed

# Hosts that stop working, and billing, when a stream's connection is closed, as far as is published: the list
# "Stream cancellation: supported providers" at openrouter.ai/docs/api-reference/streaming (read November 2026), for
# those whose own address is certain. All others are taken to bill the whole answer.
STOPS_WHEN_CUT = (
    "api.openai.com",
    ".openai.azure.com",
    "api.anthropic.com",
    "api.fireworks.ai",
    "api.deepinfra.com",
    "api.together.xyz",
    "api.deepseek.com",
    "api.x.ai",
)

# An operator must act: a key, a bill, an address or a model's name is wrong. 3xx too: a redirect is never followed.
MISCONFIGURED = (401, 402, 403, 404, 405, 407, 410)
BUSY = (429, 503, 529)
DECLINED = (400, 413, 415, 422)
NO_ROUTE = (404, 405, 501)

RETRY_AFTER_MS = 2_000
RETRY_AFTER_LEAST_MS, RETRY_AFTER_MOST_MS = 1_000, 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    base_url: str
    api_key: str
    max_tokens_name: str = "max_tokens"
    stream_options: bool = True
    # Whether it takes a temperature: some models refuse a call that has one.
    temperature: bool = True
    first_byte_seconds: float = 60.0
    idle_seconds: float = 60.0
    # The provider works on, and bills, after its connection was cut.
    bills_after_cut: bool
    # What its server calls it; empty: what we do.
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What a client may ask of a model although it can cost more than its tokens do: the operator's word for it."""

    extra_fields: frozenset[str] = frozenset()
    hosted_tools: frozenset[str] = frozenset()
    # What one image is billed at most; None where nobody has said it.
    image_tokens: int | None = None


NO_WORDS = Words()
_WORDS = frozenset(Words.__dataclass_fields__)


def words_for(*models: str) -> Words:
    """What all of these models may be asked, for any of them may be the one that answers."""
    first, *others = (_words_of(model) for model in models)
    for other in others:
        first = _in_common(first, other)
    return first


def _words_of(model: str) -> Words:
    own = _said_of(model)
    if _WORDS.isdisjoint(own):
        return NO_WORDS
    return Words(
        extra_fields=frozenset(own.get("extra_fields", ())),
        hosted_tools=frozenset(own.get("hosted_tools", ())),
        image_tokens=own.get("image_tokens"),
    )


def _in_common(one: Words, other: Words) -> Words:
    tokens = (one.image_tokens, other.image_tokens)
    return Words(
        extra_fields=one.extra_fields & other.extra_fields,
        hosted_tools=one.hosted_tools & other.hosted_tools,
        image_tokens=None if None in tokens else max(known for known in tokens if known is not None),
    )


def _said_of(model: str) -> dict[str, Any]:
    entry = settings.MODELS.get(model)
    said: dict[str, Any] = settings.LLM_DIALECT.get(model, {}) if entry is None else entry["dialect"]
    return said


def dialect_for(model: str) -> Dialect:
    """As MODELS or LLM_DIALECT says of this model, else as most servers speak."""
    own = {name: value for name, value in _said_of(model).items() if name not in _WORDS}
    base_url = own.pop("base_url", settings.LLM_BASE_URL)
    # The common key is for the common address: another host must not be handed it.
    api_key = own.pop("api_key", settings.LLM_API_KEY if base_url == settings.LLM_BASE_URL else "")
    own.setdefault("bills_after_cut", _bills_after_cut(base_url))
    return Dialect(base_url=base_url, api_key=api_key, **own)


@functools.lru_cache(maxsize=64)
def _bills_after_cut(base_url: str) -> bool:
    host = (urlsplit(base_url).hostname or "").lower()
    known = any(host.endswith(name) if name.startswith(".") else host == name for name in STOPS_WHEN_CUT)
    return not known and not _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass(frozen=True, slots=True)
class Sent:
    """A call as it is sent: the path at the model's server, and the body. `most` tokens come at most, of all its
    `answers` together; none where it writes nothing.
    """

    path: str
    body: bytes
    most: int | None
    answers: int = 1
    in_one_piece: bool = False
    # A client's own request: what is wrong with it is his to mend.
    is_passed_on: bool = False


def asked(
    messages: Sequence[Message],
    *,
    model: str,
    max_tokens: int,
    dialect: Dialect,
    temperature: Decimal | None = None,
) -> Sent:
    """A call that we make ourselves."""
    body = request_body(messages, model=model, max_tokens=max_tokens, dialect=dialect, temperature=temperature)
    return Sent("chat/completions", body, max_tokens)


def passed_on(passed: Passed, *, model: str, max_tokens: int, dialect: Dialect) -> Sent:
    """A client's own call: its fields as they came, but for the model's name, the limit and the report of a stream."""
    body = {**passed.body, "model": dialect.model or model}
    if passed.kind != Kind.EMBEDDINGS:
        for name in ("max_tokens", "max_completion_tokens"):
            body.pop(name, None)
        # A completion's limit has the one name everywhere.
        body[dialect.max_tokens_name if passed.kind == Kind.CHAT else "max_tokens"] = max_tokens
    if passed.is_stream and dialect.stream_options:
        body["stream_options"] = {**(passed.body.get("stream_options") or {}), "include_usage": True}
    data = to_json(body)
    return Sent(
        passed.kind.value,
        data,
        max_tokens * passed.n + passed.echoed if passed.kind != Kind.EMBEDDINGS else None,
        answers=passed.n,
        in_one_piece=not passed.is_stream,
        is_passed_on=True,
    )


def request_body(
    messages: Sequence[Message],
    *,
    model: str,
    max_tokens: int,
    dialect: Dialect,
    temperature: Decimal | None = None,
) -> bytes:
    """The call as it is sent: always a stream, for only a stream can be cut, and always with a limit."""
    if max_tokens < 1:
        raise ValueError("max_tokens must be at least 1: below it, some upstreams read 'without limit'")
    body: dict[str, Any] = {
        "model": dialect.model or model,
        "messages": [_in_parts(message) for message in messages],
        dialect.max_tokens_name: max_tokens,
        "stream": True,
    }
    if dialect.stream_options:
        body["stream_options"] = {"include_usage": True}
    if temperature is not None and dialect.temperature:
        body["temperature"] = float(temperature)
    return json.dumps(body, separators=(",", ":")).encode()


def _in_parts(message: Message) -> Message | dict[str, Any]:
    """A message with images as it is sent: its words, then each of them."""
    if "images" not in message:
        return message
    images = [{"type": "image_url", "image_url": {"url": image.url}} for image in message["images"]]
    return {"role": message["role"], "content": [{"type": "text", "text": message["content"]}, *images]}


def failure_of_status(status: int, headers: Mapping[str, str]) -> ModelFailed:
    """Every refusal of a provider, sorted by who can do something about it. None of them costs anything.

    misconfigured  3xx, 401–405, 407, 410   the operator; to be logged as an error
    busy           429, 503, 529            the caller, by waiting
    failed         all others               nobody here

    `failure_of_passed_on` comes first where the request is a client's own.
    """
    if status in MISCONFIGURED or 300 <= status < 400:
        return ModelMisconfigured()
    if status in BUSY:
        return ModelBusy(retry_after_ms=_retry_after_ms(headers))
    if 400 <= status < 500:
        return ModelFailed("The language model did not take this request; a shorter text may help.")
    return ModelFailed("The language model failed before it began; try again in a moment.")


# Statuses with which servers say that a prompt is too long, and how their errors name it. Their words are matched and
# never shown.
MAY_BE_TOO_LONG = frozenset({400, 413, 422})
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|string_above_max_length|prompt[ _]is[ _]too[ _]long"
    r"|(maximum|max|available)\W{0,3}(model\W)?(context|prompt|input)\W(length|size|window)"
    r"|context (size|window|length)",
    re.IGNORECASE,
)


def says_too_long(body: bytes) -> bool:
    """Whether the beginning of a refusal says that the prompt is longer than the model's context."""
    return _TOO_LONG.search(body.decode("utf-8", "replace")) is not None


# Which field of a request a refusal is about: as OpenAI says it, and as servers do that check with pydantic.
_FIELD = re.compile(rb'"param"\s*:\s*"([A-Za-z_]{1,64})|"loc"\s*:\s*\[\s*"body"\s*,\s*"([A-Za-z_]{1,64})"')


def failure_of_passed_on(status: int, path: str, *, said: bytes = b"", asked: bytes = b"") -> ModelFailed | None:
    """What a client can mend himself: a request that the model does not take, or a route that it does not have.

    `said` is the beginning of the refusal. Of its words none is told but a name that stands in the request, `asked`.
    """
    if status in DECLINED:
        if status in MAY_BE_TOO_LONG and says_too_long(said):
            return ModelDeclinedTooLong()
        found = _FIELD.search(said)
        name = (found[1] or found[2]) if found is not None else b""
        return ModelDeclined(param=name.decode() if name and b'"%b":' % name in asked else None)
    # Of a chat it says that the model's name or the address is wrong, which only the operator can mend.
    if status in NO_ROUTE and path != Kind.CHAT:
        return ModelDeclined(f"The model that was named does not answer /v1/{path}.", status=404)
    return None


def _retry_after_ms(headers: Mapping[str, str]) -> int:
    """Their Retry-After, which is seconds or a date, within reason."""
    given = next((value for name, value in headers.items() if name.lower() == "retry-after"), "").strip()
    milliseconds = _milliseconds(given)
    if milliseconds is None:
        return RETRY_AFTER_MS
    return int(min(max(milliseconds, RETRY_AFTER_LEAST_MS), RETRY_AFTER_MOST_MS))


def _milliseconds(given: str) -> float | None:
    if given.isascii() and given.replace(".", "", 1).isdigit():
        return float(given) * 1_000
    try:
        then = email.utils.parsedate_to_datetime(given)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return (then - datetime.now(UTC)).total_seconds() * 1_000
