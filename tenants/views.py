"""Answers of no room in particular: what lies behind no address, and refused forms."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

from tenants.http import ApiError, CsrfFailed, NotFound, error_response


def csrf_failed(request: HttpRequest, reason: str = "") -> HttpResponse:
    return error_response(request, CsrfFailed())


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return error_response(request, NotFound())


def server_error(request: HttpRequest) -> HttpResponse:
    return error_response(request, ApiError())
