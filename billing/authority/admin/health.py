"""Is the admin plane alive, can it reach its database? Open to all; the rest of /actuator needs the admin key."""

from __future__ import annotations

from django.db import Error, connection
from django.http import HttpResponse, JsonResponse

from billing.authority.admin.auth import admin_only
from billing.authority.admin.request import AdminRequest
from billing.authority.tracing import HEALTH_MEDIA


def _answer(body: dict[str, object], status: int = 200) -> HttpResponse:
    return JsonResponse(body, status=status, content_type=HEALTH_MEDIA)


def liveness(request: AdminRequest) -> HttpResponse:
    return _answer({"status": "UP"})


def readiness(request: AdminRequest) -> HttpResponse:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM tenant LIMIT 1")
    except Error:
        connection.close()
        return _answer({"status": "DOWN"}, 503)
    return _answer({"status": "UP"})


@admin_only
def health(request: AdminRequest) -> HttpResponse:
    return _answer({"status": "UP", "groups": ["liveness", "readiness"]})
