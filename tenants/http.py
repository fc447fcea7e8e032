"""The one shape of an error, for all apps.

Owns `ApiError` and its response: JSON under /api/, a page that says the same elsewhere. Chat's and billing's errors
derive from it. Must not know what any of them means.

    ApiError(status, code, message)
     ├─ Invalid              400 invalid, with `fields`
     ├─ TenantRequired       400 tenant_required
     ├─ TenantConflict       400 tenant_conflict
     ├─ Unauthenticated      401 unauthenticated
     ├─ CsrfFailed           403 csrf_failed
     ├─ AccountOnHold        403 account_on_hold
     ├─ SecondStepRequired   403 second_step_required
     ├─ Forbidden            403 forbidden
     ├─ NotFound             404 not_found
     │   └─ NoWorkspace
     ├─ MethodNotAllowed     405 method_not_allowed
     ├─ TooLarge             413 too_large
     ├─ NotJson              415 not_json
     ├─ RateLimited          429 rate_limited
     ├─ TenantNotReady       503 tenant_not_ready
     ├─ Unavailable          503 unavailable
     │   └─ Unreadable
     ├─ chat.errors …
     └─ billing.errors.BudgetError …
"""

from __future__ import annotations

import codecs
import io
import logging
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any

import psycopg
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.utils.cache import patch_vary_headers
from django.utils.functional import cached_property

from tenants.typed import longest_text

if TYPE_CHECKING:
    from tenants.models import Tenant
    from tenants.resolve import Asker
    from tenants.users.models import User

logger = logging.getLogger(__name__)

# Django writes each refusal's log line with it, and Python reads it from a file at the first. A process that could open
# no further file answered every refusal with a bare 500.
codecs.lookup("unicode_escape")

API_PREFIX = "/api/"
TENANT_VARY = "Host, X-Tenant-ID, Authorization, Cookie"


class TenantRequest(HttpRequest):
    """A request that TenantMiddleware has let through to a tenant's urlconf.

    `asker` is known once somebody had to be: from the middleware on where a header named the tenant, else from
    `tenants.users.auth.caller` on.
    """

    tenant: Tenant
    user: User
    asker: Asker | None


class _Readable(HttpRequest):
    """A request whose headers cost little to read, whatever is in them.

    Django reads a Content-Type before any of our code runs: what it cannot read ended there, in a page of the server's
    own, and one of 31 KB of semicolons took 0.6 s. Now such a request has none, and so neither a form nor JSON. Python
    before 3.11.10 and 3.12.6 takes 1.8 s to unquote a cookie of 30 KB of backslashes: a cookie of so many is left out.
    """

    LONGEST_TYPE, BACKSLASHES = 1_000, 100

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        self.content_type, self.content_params = "", {}
        if len(meta.get("CONTENT_TYPE", "")) <= self.LONGEST_TYPE:
            with suppress(ValueError):
                super()._set_content_type_params(meta)  # type: ignore[misc]

    @cached_property
    def COOKIES(self) -> dict[str, str]:  # type: ignore[override]
        header: str = self.META.get("HTTP_COOKIE", "")
        if header.count("\\") > self.BACKSLASHES:
            kept = (cookie for cookie in header.split(";") if cookie.count("\\") <= self.BACKSLASHES)
            self.META["HTTP_COOKIE"] = ";".join(kept)
        return super().COOKIES


class WebRequest(_Readable, WSGIRequest):
    """What web's handler makes of each request. An address in LARGER_BODIES takes as large a body as that says."""

    @property
    def body(self) -> bytes:
        most = settings.LARGER_BODIES.get(self.path_info)
        if most is not None and not hasattr(self, "_body") and not getattr(self, "_read_started", False):
            body = self.read(most + 1)
            if len(body) > most:
                raise TooLarge(f"The request is larger than {most // 1024 // 1024} MiB. Send less at a time.")
            self._body = body
            self._stream = io.BytesIO(body)
        return super().body


class BareRequest(HttpRequest):
    """What tenants.resolve reads of a request: host, X-Tenant-ID and a key. Django's own costs ten times as much."""

    def __init__(self, scope: dict[str, Any]) -> None:
        # Not Django's: it makes what no reader of this asks for.
        self.META = {"SERVER_NAME": "", "SERVER_PORT": ""}
        for name, value in scope["headers"]:
            if (read := _READ_OF_BARE.get(name)) is not None:
                # Twice in a request, a header is one that nobody can say the meaning of.
                self.META[read] = (
                    f"{self.META[read]},{value.decode('latin1')}" if read in self.META else value.decode("latin1")
                )
        self.path_info = self.path = scope["path"]
        self.method = scope["method"]
        self.content_params: dict[str, str] = {}


_READ_OF_BARE = {
    b"host": "HTTP_HOST",
    b"authorization": "HTTP_AUTHORIZATION",
    b"x-tenant-id": "HTTP_X_TENANT_ID",
    b"x-forwarded-proto": "HTTP_X_FORWARDED_PROTO",
}


class PlaneRequest(_Readable, ASGIRequest):
    """A request that PlaneMiddleware has let through to a view of the plane: somebody asks, and can be charged."""

    tenant: Tenant
    asker: Asker
    auth: User


class ApiError(Exception):
    """A failure with a status, a code for programs and a sentence for people.

    `extra` goes into the body beside them. Nothing in it may change from request to request, hold a secret, or tell
    of another tenant. `why` is for the operator alone: it is logged with the answer, and never in it.
    """

    status: int = HTTPStatus.INTERNAL_SERVER_ERROR
    code: str = "internal_error"
    # What broke may have broken after a call was paid for.
    message: str = "Something went wrong on our side. See whether it was done before you send it again."
    retry_after_ms: int | None = None
    # Whether the page leads to the site, where no workspace answers.
    is_of_no_workspace = False
    # Sent beside the body, for programs that read them.
    headers: Mapping[str, str] = {}
    why: str = ""

    def __init__(self, message: str | None = None, *, retry_after_ms: int | None = None, **extra: Any) -> None:
        if message is not None:
            self.message = message
        if retry_after_ms is not None:
            self.retry_after_ms = retry_after_ms
        self.extra = extra
        super().__init__(self.message)

    def body(self) -> dict[str, Any]:
        return {
            "error": self.code,
            "message": self.message,
            "retry_after_ms": self.retry_after_ms,
            **self.extra,
        }


class Invalid(ApiError):
    """The request cannot be read as it stands; `fields` says where: {"prompt": ["Write a question."]}."""

    status = HTTPStatus.BAD_REQUEST
    code = "invalid"
    message = "Something in the request cannot be used. Correct the fields named and send it again."

    # What is said of a request is no longer than people read, however much was sent and is echoed.
    FIELDS, NAME_LENGTH, TEXT_LENGTH = 20, 100, 300

    def __init__(self, fields: dict[str, list[str]]) -> None:
        fields = {
            shortened(name, self.NAME_LENGTH): [shortened(text, self.TEXT_LENGTH) for text in texts[: self.FIELDS]]
            for name, texts in islice(fields.items(), self.FIELDS)
        }
        # What concerns the whole of it is the sentence for people, too: a page has no fields to show it beside.
        super().__init__(" ".join(fields["body"]) if fields.keys() == {"body"} else None, fields=fields)


class TenantRequired(ApiError):
    status = HTTPStatus.BAD_REQUEST
    code = "tenant_required"
    message = (
        "Name a workspace: send a key that names it, or X-Tenant-ID beside an older key, or use the workspace's own "
        "address."
    )


class TenantConflict(ApiError):
    status = HTTPStatus.BAD_REQUEST
    code = "tenant_conflict"
    message = "X-Tenant-ID names another workspace than this address. Send one of them."


class Unauthenticated(ApiError):
    status = HTTPStatus.UNAUTHORIZED
    code = "unauthenticated"
    message = "Send a valid API key of this workspace as Authorization: Bearer <key>, or log in on its own address."


class CsrfFailed(ApiError):
    status = HTTPStatus.FORBIDDEN
    code = "csrf_failed"
    message = "The form's security token is missing or old. Reload the page and try again."


class AccountOnHold(ApiError):
    """Frozen, suspended or closed: nothing is spent until the operator lifts it."""

    status = HTTPStatus.FORBIDDEN
    code = "account_on_hold"
    message = "This workspace's account is on hold. Its owner can ask support what to do."


class Forbidden(ApiError):
    status = HTTPStatus.FORBIDDEN
    code = "forbidden"
    message = "You may not do this."


class SecondStepRequired(ApiError):
    """The workspace requires a second step of everybody, and this member has none yet. Keys are not asked for one."""

    status = HTTPStatus.FORBIDDEN
    code = "second_step_required"
    message = (
        "This workspace requires two-step log-in, and yours is not set up yet. What you sent was not taken: set it up "
        "under Settings, Security, then send it again."
    )


class NotFound(ApiError):
    status = HTTPStatus.NOT_FOUND
    code = "not_found"
    message = "There is nothing at this address."


class NoWorkspace(NotFound):
    """The same for a name that nobody has had, for a closed workspace and for a host that is no name of ours."""

    message = "There is no workspace at this address."
    is_of_no_workspace = True


class MethodNotAllowed(ApiError):
    status = HTTPStatus.METHOD_NOT_ALLOWED
    code = "method_not_allowed"
    message = "This address does not answer that method."


class TooLarge(ApiError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = "too_large"
    message = "The request is larger than 1 MiB. Send less at a time."


class NotJson(ApiError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    code = "not_json"
    message = "Send JSON, with Content-Type: application/json."


class RateLimited(ApiError):
    """Too often; `retry_after_ms` says when there is room again. What is counted: tenants.limits."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    code = "rate_limited"
    message = "Too many requests just now. Try again in a moment."
    retry_after_ms: int | None = 1_000


class TenantNotReady(ApiError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "tenant_not_ready"
    message = "This workspace is still being set up. Try again in a moment."
    retry_after_ms = 2_000


class Unavailable(ApiError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"
    message = "The service is busy. Try again in a moment."
    retry_after_ms = 2_000


class Unreadable(Unavailable):
    """Something that we keep sealed cannot be opened, such as after a restore with another KEY_SEALING_KEY."""

    message = "The service cannot read something that it keeps for this. Its operator must mend that; try again later."
    retry_after_ms = 60_000

    def __init__(self, *, why: str) -> None:
        super().__init__()
        self.why = why


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def wants_json(request: HttpRequest) -> bool:
    """Whether a program asks. The plane serves nobody else."""
    return isinstance(request, PlaneRequest | BareRequest) or request.path_info.startswith(API_PREFIX)


def error_response(request: HttpRequest, exc: ApiError, *, as_json: bool = False) -> HttpResponse:
    """The answer for `exc`: what a program reads under /api/, or `as_json`; a page with the same words elsewhere."""
    if exc.why:
        logger.error("%s %s: %s", exc.status, exc.code, exc.why)
    response: HttpResponse
    if as_json or wants_json(request):
        response = JsonResponse(exc.body(), status=exc.status)
    else:
        # What is too large or cannot be read is not read again.
        is_read = exc.status in (403, 429) or exc.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        context = {"error": exc, "user": _known_user(request, exc), "typed": is_read and longest_text(request)}
        response = render(request, "error.html", context, status=exc.status)
    say_when(response, exc)
    if exc.status == HTTPStatus.UNAUTHORIZED and wants_json(request):
        response["WWW-Authenticate"] = "Bearer"
    response["Cache-Control"] = "private, no-store"
    response["Vary"] = TENANT_VARY
    return response


def _known_user(request: HttpRequest, exc: ApiError) -> Any:
    """Whose navigation an error's page keeps; None where that is not known.

    A failure of ours looks nobody up: the database may be what failed, and each try would wait for it again. An
    address that leads nowhere is refused before any view has asked who looks, so then it is asked here.
    """
    if getattr(request, "tenant", None) is None:
        return None
    if exc.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        # Where AuthenticationMiddleware keeps whom the view has asked for.
        return getattr(request, "_cached_user", None)
    user = getattr(request, "user", None)
    try:
        return user if user is not None and user.is_authenticated else None
    except (DatabaseError, InterfaceError, psycopg.Error):
        return None


def say_when(response: HttpResponse, exc: ApiError) -> None:
    """Retry-After and the error's own headers, for those who read no words."""
    for name, value in exc.headers.items():
        response[name] = value
    if exc.retry_after_ms is not None and exc.status in (429, 503):
        response["Retry-After"] = str(-(-exc.retry_after_ms // 1000))


def mark_private(response: HttpResponseBase) -> None:
    """What belongs to one tenant is kept by nobody on the way, unless the view said how it may be."""
    response.headers.setdefault("Cache-Control", "private, no-store")


def mark_varying(response: HttpResponseBase) -> None:
    """Every answer depends on what chose the tenant and the person."""
    if response.has_header("Vary"):
        patch_vary_headers(response, TENANT_VARY.split(", "))
    else:
        response["Vary"] = TENANT_VARY
