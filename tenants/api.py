"""The API's frame: one NinjaAPI whose errors are ours and whose bodies are read strictly.

Owns how JSON is read and how a validation error is said. Must not know any call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from ninja import NinjaAPI, Schema
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.openapi.schema import OpenAPISchema
from ninja.parser import Parser
from pydantic import ConfigDict

from tenants.http import ApiError, Forbidden, Invalid, NotFound, NotJson, TenantRequired, TooLarge, Unauthenticated
from tenants.users.auth import caller


class Body(Schema):
    """A request's body: no field beyond those named, no type guessed. `"7"` is no number and 1 is not true."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorBody(Schema):
    """What every failure says; some say more beside it (`fields`, `reason`, `budget`)."""

    error: str
    message: str
    retry_after_ms: int | None


def failures(*statuses: int) -> dict[int, type[ErrorBody]]:
    """For `response=`: the statuses that a call's page of documentation names."""
    return dict.fromkeys(statuses, ErrorBody)


class StrictParser(Parser):
    """Reads a JSON object or says what is wrong; nothing it lets through can upset Postgres or a model."""

    def parse_body(self, request: HttpRequest) -> dict[str, Any]:
        if request.content_type != "application/json":
            raise NotJson
        if int(request.META.get("CONTENT_LENGTH") or 0) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            raise TooLarge
        try:
            text = request.body.decode("utf-8")
            body = json.loads(text)
        except (ValueError, RecursionError):
            raise Invalid({"body": ["This is not valid JSON."]}) from None
        if not isinstance(body, dict):
            raise Invalid({"body": ["Send a JSON object."]})
        # UTF-8 knows no lone surrogate and JSON no bare NUL: only an escape can bring one.
        if "\\u" in text:
            try:
                _refuse_unstorable(body)
            except RecursionError:
                raise Invalid({"body": ["This is nested too deep."]}) from None
        return body


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _refuse_unstorable(body: dict[str, Any]) -> None:
    """NUL bytes (Postgres refuses them) and lone surrogates (no UTF-8 for them), in any text, names included."""
    for name, value in body.items():
        if any(_UNSTORABLE.search(text) for text in _texts([name, value])):
            raise Invalid({_printable(name): ["Remove NUL characters and broken surrogates."]})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode().replace("\x00", "")


class Api(NinjaAPI):
    """NinjaAPI that leaves each failure to the middleware which makes all our error answers.

    `beside` is an API that another process serves under the same addresses: the documentation shows both as one.
    """

    def __init__(self, *, beside: NinjaAPI | None = None, **kwargs: Any) -> None:
        super().__init__(parser=StrictParser(), **kwargs)
        self._beside = beside

    def get_openapi_schema(
        self, *, path_prefix: str | None = None, path_params: dict[str, Any] | None = None
    ) -> OpenAPISchema:
        prefix = self.get_root_path(path_params or {}) if path_prefix is None else path_prefix
        schema = super().get_openapi_schema(path_prefix=prefix)
        if self._beside is not None:
            other = self._beside.get_openapi_schema(path_prefix=prefix)
            for path, operations in other["paths"].items():
                schema["paths"].setdefault(path, {}).update(operations)
            schema["components"]["schemas"].update(other["components"]["schemas"])
        return schema

    def on_exception(self, request: HttpRequest, exc: Any) -> HttpResponse:
        raise self._ours(exc)

    def _ours(self, exc: Exception) -> Exception:
        if isinstance(exc, ValidationError):
            return Invalid(_fields(exc))
        if isinstance(exc, AuthenticationError):
            return Unauthenticated()
        if isinstance(exc, Http404):
            return NotFound()
        if isinstance(exc, HttpError):
            # Ninja wraps whatever the parser said.
            if isinstance(exc.__cause__, ApiError):
                return exc.__cause__
            return Invalid({"body": [str(exc)]}) if exc.status_code < 403 else Forbidden()
        return exc


def _fields(exc: ValidationError) -> dict[str, list[str]]:
    """{"prompt": ["Field required"]}: the field as the caller wrote it, not as the code names its parameters."""
    fields: dict[str, list[str]] = {}
    for error in exc.errors:
        place = [str(part) for part in error["loc"] if part not in ("body", "payload", "query", "path", "header")]
        fields.setdefault(".".join(place) or "body", []).append(str(error["msg"]).removeprefix("Value error, "))
    return fields


def session_or_key(request: HttpRequest) -> Any:
    """Ninja's `auth=`: the calling member becomes `request.auth`. Raises our own 401 or 403.

    On the bare host without X-Tenant-ID there is nobody to ask as: 400.
    """
    if request.tenant is None:  # type: ignore[attr-defined]
        raise TenantRequired
    return caller(request)  # type: ignore[arg-type]
