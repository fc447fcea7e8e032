"""What every answer of the admin plane has: its ids, its error shape. Knows no view."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable

from django.core.exceptions import RequestDataTooBig
from django.db import DataError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse

from billing.authority.admin.auth import GUARDED, check_admin_key
from billing.authority.admin.request import UNKNOWN, AdminRequest
from billing.authority.admin.trail import record_failure
from billing.authority.errors import Refusal, body_of, internal, invalid
from billing.authority.tracing import trace_id

log = logging.getLogger(__name__)


class EnvelopeMiddleware:
    """Gives a request its ids, an answer its headers, a refusal its body. The only place that catches everything."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: AdminRequest) -> HttpResponse:
        request.request_id = request.headers.get("X-Request-Id") or str(uuid.uuid4())
        request.trace_id = trace_id(request.headers.get("traceparent"), request.headers.get("X-Cycles-Trace-Id"))
        request.answers_to = UNKNOWN
        response = self.get_response(request)
        if request.method == "HEAD":
            response.content = b""
        response["X-Request-Id"] = request.request_id
        response["X-Cycles-Trace-Id"] = request.trace_id
        return response

    def process_exception(self, request: AdminRequest, exception: Exception) -> HttpResponse | None:
        if isinstance(exception, Http404):
            return None
        if isinstance(exception, RequestDataTooBig | DataError):
            exception = invalid("The request is too large, or a value in it cannot be stored as text.")
        if not isinstance(exception, Refusal):
            log.exception("%s %s failed, request %s", request.method, request.path, request.request_id)
            exception = internal()
        record_failure(request, exception)
        return JsonResponse(
            body_of(exception, request.request_id, request.trace_id),
            status=exception.status,
            headers=dict(exception.headers),
        )


def not_found(request: AdminRequest, exception: Exception) -> HttpResponse:
    refusal = Refusal(404, "NOT_FOUND", f"There is nothing at {request.path}.")
    if request.path.startswith(GUARDED):
        try:
            check_admin_key(request)
        except Refusal as unauthorized:
            refusal = unauthorized
    return JsonResponse(body_of(refusal, request.request_id, request.trace_id), status=refusal.status)
