"""Answers of no room in particular: what lies behind no address, and refused forms."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, resolve

from tenants.http import ApiError, CsrfFailed, NotFound, TenantRequired, error_response


def csrf_failed(request: HttpRequest, reason: str = "") -> HttpResponse:
    return error_response(request, CsrfFailed())


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    return error_response(request, NotFound())


def server_error(request: HttpRequest) -> HttpResponse:
    return error_response(request, ApiError())


def bare_host_api(request: HttpRequest) -> HttpResponse:
    """An API path on the bare host without X-Tenant-ID: a tenant's call lacks its tenant, all else is not there."""
    try:
        resolve(request.path_info, urlconf=settings.ROOT_URLCONF)
    except Resolver404:
        raise NotFound from None
    raise TenantRequired
