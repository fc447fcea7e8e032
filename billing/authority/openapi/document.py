"""A plane's whole document, from its operations. Adds what every operation has in common; knows none by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from billing.authority.errors import sentence
from billing.authority.openapi import money, runtime, shown, shown_admin, trail
from billing.authority.openapi.requests import request_schemas
from billing.authority.openapi.words import MEDIA, TEXT, TRACE, Json, Opens, Operation, Parameter, ref

PROTOCOL = "0.1.25"
_PARENT = {"type": "string", "pattern": "^(?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"}
_TRACED = (
    Parameter("traceparent", _PARENT, "The caller's trace, as W3C writes it; a bad one is replaced.", where="header"),
    Parameter("X-Cycles-Trace-Id", TRACE, "The caller's trace, where there is no traceparent.", where="header"),
)
_REQUEST_ID = Parameter("X-Request-Id", TEXT, "The caller's own name of this request; it is echoed.", where="header")
_KEYED = Parameter(
    "X-Idempotency-Key", {"type": "string", "minLength": 1, "maxLength": 256},
    "The body's idempotency_key once more, or nothing.", where="header",
)  # fmt: skip
_HEADERS: dict[str, Json] = {
    "X-Request-Id": {"required": True, "schema": TEXT, "description": "The name of this request."},
    "X-Cycles-Trace-Id": {"required": True, "schema": TRACE, "description": "The trace it belongs to."},
}
_RATES: dict[str, Json] = {
    name: {"required": True, "schema": {"type": "integer"}, "description": "No rate is limited here."}
    for name in ("X-RateLimit-Remaining", "X-RateLimit-Reset")
}
_SECURITY: dict[str, Json] = {
    "TenantKey": {"type": "apiKey", "in": "header", "name": "X-Cycles-API-Key"},
    "AdminKey": {"type": "apiKey", "in": "header", "name": "X-Admin-API-Key"},
}
# Said by the admin plane's listener, before there is a request: none of our headers, no JSON.
_LONG: Json = {
    "description": "The request line is longer than 4094 bytes.",
    "content": {"text/html": {"schema": TEXT}},
}
_UNAUTHORIZED = {401: ("UNAUTHORIZED",)}
_BROKEN = {500: ("INTERNAL_ERROR",)}


@dataclass(frozen=True)
class Plane:
    """What is the same for all operations of a plane."""

    title: str
    operations: Mapping[str, Operation]
    schemas: Mapping[str, Json]
    path: Mapping[str, Json]
    is_runtime: bool

    def headers(self, path: str, operation: Operation, status: int) -> dict[str, Json]:
        if not self.is_runtime or not path.startswith("/v1/") or status == 401:
            return _HEADERS
        # Whose key it was. Not there with the admin key, nor where the database itself refuses a value or is away.
        certain = operation.opens is Opens.TENANT and status not in (400, 500)
        tenant = {"required": certain, "schema": TEXT, "description": "The tenant whose key it was."}
        return {**_HEADERS, **_RATES, "X-Cycles-Tenant": tenant}


RUNTIME = Plane("Budget authority, runtime plane", runtime.OPERATIONS, shown.RUNTIME, runtime.PATH, is_runtime=True)
ADMIN = Plane(
    "Budget authority, admin plane", {**money.OPERATIONS, **trail.OPERATIONS}, shown_admin.ADMIN,
    {**money.PATH, **trail.PATH}, is_runtime=False,
)  # fmt: skip


def document_text(plane: Plane) -> str:
    return json.dumps(document(plane), ensure_ascii=False)


def document(plane: Plane) -> Json:
    paths: dict[str, Json] = {}
    for route, operation in plane.operations.items():
        method, path = route.split(" ")
        paths.setdefault(path, {})[method.lower()] = _operation(plane, method, path, operation)
    bodies = {operation.body for operation in plane.operations.values() if operation.body is not None}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": plane.title,
            "version": PROTOCOL,
            "description": "The embedded authority of Tenantry. Bodies are strict: no unknown field, no text for a "
            "number. Text with U+0000 or half a surrogate pair is refused everywhere.",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "securitySchemes": _SECURITY,
            "schemas": {**request_schemas(bodies), **plane.schemas},
        },
    }


def _operation(plane: Plane, method: str, path: str, operation: Operation) -> Json:
    written: Json = {
        "operationId": _identity(method, path),
        "summary": operation.summary,
        "security": [{name: []} for name in operation.opens.value],
        "parameters": [parameter.written() for parameter in _parameters(plane, path, operation)],
        "responses": _responses(plane, method, path, operation),
    }
    if operation.body is not None:
        written["requestBody"] = {
            "required": operation.body_required,
            "content": {MEDIA: {"schema": ref(operation.body.__name__)}},
        }
    if operation.embedded:
        written["x-embedded"] = True
    return written


def _identity(method: str, path: str) -> str:
    words = re.findall(r"[a-z]+", path.replace("/v1/", "/"))
    return method.lower() + "".join(word.capitalize() for word in words)


def _parameters(plane: Plane, path: str, operation: Operation) -> list[Parameter]:
    named = re.findall(r"\{(\w+)\}", path)
    found = [Parameter(name, plane.path[name], "Its id.", required=True, where="path") for name in named]
    found += [*operation.query, *_TRACED]
    if not plane.is_runtime:
        found.append(_REQUEST_ID)
    elif operation.body is not None:
        found.append(_KEYED)
    return found


def _responses(plane: Plane, method: str, path: str, operation: Operation) -> Json:
    responses: Json = {}
    for status, schema in operation.answers.items():
        content = {} if schema is None else {"content": {operation.media: {"schema": schema}}}
        headers = plane.headers(path, operation, status)
        responses[str(status)] = {"description": operation.summary, "headers": headers, **content}
    for status, codes in _refusals(method, operation).items():
        narrowed = {"allOf": [ref("Refusal"), {"properties": {"error": {"enum": list(codes)}}}]}
        responses[str(status)] = {
            "description": "\n".join(f"{code}: {sentence(code, {})}" for code in codes),
            "headers": plane.headers(path, operation, status),
            "content": {MEDIA: {"schema": narrowed}},
        }
    if not plane.is_runtime and (operation.query or "{" in path):
        responses["414"] = _LONG
    return responses


def _refusals(method: str, operation: Operation) -> dict[int, tuple[str, ...]]:
    refusals = {**operation.refusals, **_BROKEN}
    if operation.opens is not Opens.NOTHING:
        refusals |= _UNAUTHORIZED
    if method in ("POST", "PATCH", "PUT"):
        refusals[415] = ("INVALID_REQUEST",)
    return dict(sorted(refusals.items()))
