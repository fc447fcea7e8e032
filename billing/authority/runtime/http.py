"""One request and its answer, as the runtime plane's handlers see them. Owns the headers; knows no operation."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from pydantic_core import to_json

from billing.authority.errors import Refusal, body_of
from billing.authority.tracing import storable, trace_id
from billing.authority.wire import MAX_BODY

RATE_HEADERS = {"x-ratelimit-remaining": "-1", "x-ratelimit-reset": "0"}


@dataclass(slots=True)
class Call:
    """What was asked. Of a repeated header or query name the first counts."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    trace_id: str
    source_ip: str | None = None

    @property
    def secret(self) -> str:
        return self.headers.get("x-cycles-api-key", "").strip()

    @property
    def context(self) -> str:
        """What an event or an audit row says of the request it came by."""
        said = {
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "source_ip": self.source_ip,
            "user_agent": storable(self.headers.get("user-agent")),
        }
        return to_json(said, ensure_ascii=True).decode()

    @property
    def admin_key(self) -> str | None:
        return self.headers.get("x-admin-api-key")


@dataclass(slots=True)
class Answer:
    status: int
    body: str = ""
    tenant: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media: str = "application/json"


async def read_call(scope: Mapping[str, Any], receive: Any) -> Call:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
    query: dict[str, str] = {}
    if asked := scope["query_string"]:
        for name, value in parse_qsl(asked.decode("latin-1"), keep_blank_values=True):
            query.setdefault(name, value)
    traced = trace_id(headers.get("traceparent"), headers.get("x-cycles-trace-id", "").lower())
    source_ip = scope["client"][0] if scope.get("client") else None
    body = await _read_body(receive)
    return Call(scope["method"], scope["path"], query, headers, body, str(uuid.uuid4()), traced, source_ip)


async def _read_body(receive: Any) -> bytes:
    """The whole body, but never more than a little above the limit: the rest is read and forgotten."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        if len(body) <= MAX_BODY:
            body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def refused(call: Call, refusal: Refusal) -> Answer:
    body = body_of(refusal, call.request_id, call.trace_id)
    return Answer(refusal.status, json.dumps(body, ensure_ascii=False), headers=refusal.headers)


async def send_answer(call: Call, answer: Answer, send: Any) -> None:
    content = answer.body.encode("utf-8", "replace")
    headers = {
        "x-request-id": call.request_id,
        "x-cycles-trace-id": call.trace_id,
        "content-length": str(len(content)),
        **answer.headers,
    }
    if content:
        headers["content-type"] = answer.media
    if call.path.startswith("/v1/") and answer.status != 401:
        headers.update(RATE_HEADERS)
    if answer.tenant is not None:
        headers["x-cycles-tenant"] = answer.tenant
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if call.method == "HEAD" else content})
