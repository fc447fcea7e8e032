"""Answers of no room in particular: what lies behind no address, and refused forms."""

from __future__ import annotations

import logging
import sys

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from tenants.http import ApiError, CsrfFailed, Invalid, NotFound, error_response, wants_json
from tenants.middleware import as_api_error
from tenants.users.signed_out import older_form

logger = logging.getLogger(__name__)

NO_SUCH_CALL = (
    "There is nothing at this address. The base URL of an OpenAI client ends with /v1; /api/docs describes the other "
    "calls."
)


def csrf_failed(request: HttpRequest, reason: str = "") -> HttpResponse:
    if settings.SITE_URL.startswith("https://") and not request.is_secure():
        # Then all forms are refused, and nothing that their senders see says why.
        logger.error(
            "A form came without X-Forwarded-Proto: https. The proxy that does TLS must send it, and "
            "FRONT_TRUSTED_PROXIES must name that proxy."
        )
    return error_response(request, CsrfFailed()) if wants_json(request) else older_form(request)  # type: ignore[arg-type]


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    if not wants_json(request) and request.headers.get("Authorization", "").lower().startswith("bearer "):
        # A program, whose client shows all of what came: a page of HTML would hide what it has to mend. One that asks
        # below /api/ has the right base, and web and the plane say the same to it.
        return error_response(request, NotFound(NO_SUCH_CALL), as_json=True)
    return error_response(request, NotFound())


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """What Django refuses before any middleware of ours may see it. Reads nothing of the request again."""
    return error_response(
        request, as_api_error(exception) or Invalid({"body": ["This cannot be read as it was sent."]})
    )


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's last resort, called while the failure is still being handled: a lost database is said as such."""
    failure = sys.exc_info()[1]
    known = as_api_error(failure) if isinstance(failure, Exception) else None
    return error_response(request, known or ApiError())
