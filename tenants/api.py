"""The API's frame: one NinjaAPI whose errors are ours and whose bodies are read strictly.

Owns how JSON is read and how a validation error is said. Must not know any call.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from ninja import NinjaAPI, Schema
from ninja.errors import (
    AuthenticationError,
    AuthorizationError,
    HttpError,
    Throttled,
    ValidationError,
    ValidationErrorContext,
)
from ninja.openapi.docs import Swagger
from ninja.openapi.schema import OpenAPISchema
from ninja.parser import Parser
from pydantic import ConfigDict

from tenants.bodies import read_object
from tenants.headers import POLICY, policy
from tenants.http import (
    ApiError,
    Forbidden,
    Invalid,
    NotFound,
    NotJson,
    RateLimited,
    TenantRequired,
    TooLarge,
    Unauthenticated,
)
from tenants.users.auth import caller

# So many are read for the first ones to be named.
ERRORS = 1_000


class Body(Schema):
    """A request's body: no field beyond those named, no type guessed. `"7"` is no number and 1 is not true."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorBody(Schema):
    """What every failure says; some say more beside it (`fields`, `reason`, `budget`, `login_url`)."""

    error: str
    message: str
    retry_after_ms: int | None


def failures(*statuses: int) -> dict[int, type[ErrorBody]]:
    """For `response=`: the statuses that a call's page of documentation names."""
    return dict.fromkeys(statuses, ErrorBody)


class StrictParser(Parser):
    """Reads a JSON object or says what is wrong."""

    def parse_body(self, request: HttpRequest) -> dict[str, Any]:
        # A view's preflight reads the body before ninja does: once is enough.
        if (read := getattr(request, "read_body", None)) is not None:
            return read  # type: ignore[no-any-return]
        if request.content_type != "application/json":
            raise NotJson
        if int(request.META.get("CONTENT_LENGTH") or 0) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            raise TooLarge
        body = request.read_body = read_object(request.body)  # type: ignore[attr-defined]
        return body


class Docs(Swagger):
    """The page of documentation: Swagger's, from our own static files. Its icons are written into its style sheet."""

    def __init__(self) -> None:
        # Else it would ask a stranger's server what it thinks of our document; and put a link into each button that
        # opens a call, which no screen reader can reach.
        super().__init__(settings={"validatorUrl": None, "deepLinking": False})

    def render_page(self, request: HttpRequest, api: NinjaAPI, **kwargs: Any) -> HttpResponse:
        response = super().render_page(request, api, **kwargs)
        response[POLICY] = policy({"img-src": ["data:"]})
        return response


class Api(NinjaAPI):
    """NinjaAPI that leaves each failure to the middleware which makes all our error answers.

    `beside` is an API that another process serves under the same addresses: the documentation shows both as one.
    """

    def __init__(self, *, beside: NinjaAPI | None = None, **kwargs: Any) -> None:
        super().__init__(parser=StrictParser(), docs=Docs(), **kwargs)
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

    def validation_error_from_error_contexts(
        self, error_contexts: list[ValidationErrorContext[Any]]
    ) -> ValidationError:
        # Each error becomes a dict or two: with one for each value of a long list that alone takes most of a second.
        if any(context.pydantic_validation_error.error_count() > ERRORS for context in error_contexts):
            raise Invalid({"body": [f"More than {ERRORS:,} values in it cannot be used."]})
        return super().validation_error_from_error_contexts(error_contexts)

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
            if isinstance(exc, AuthorizationError):
                return Forbidden()
            return Invalid({"body": [str(exc)]}) if exc.status_code == HTTPStatus.BAD_REQUEST else _of_a_view(exc)
        return exc


def _of_a_view(exc: HttpError) -> ApiError:
    """What a view has raised in ninja's way: its own status and its own words."""
    if isinstance(exc, Throttled):
        return RateLimited(retry_after_ms=None if exc.wait is None else 1_000 * exc.wait)
    error = ApiError(str(exc))
    error.status = exc.status_code
    known = {status.value: status.name.lower() for status in HTTPStatus}
    error.code = known.get(exc.status_code, "error")
    return error


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
