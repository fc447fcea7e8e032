"""The plane's own OpenAPI document, for operators. Written once, when the plane's paths are read."""

from __future__ import annotations

from django.http import HttpResponse

from billing.authority.admin.auth import admin_only
from billing.authority.admin.request import AdminRequest
from billing.authority.openapi.document import ADMIN, document_text

TEXT = document_text(ADMIN)


@admin_only
def show(request: AdminRequest) -> HttpResponse:
    return HttpResponse(TEXT, content_type="application/json")
