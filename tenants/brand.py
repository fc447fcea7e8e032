"""The brand's own files on any host: the style sheet of its accent, and its logo.

Owns their addresses' answers, also where no workspace is, for the page that says so looks like the others. What a brand
may be is decided in config.brand, and read here from settings.BRAND.
"""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase

FOREVER = "public, max-age=31536000, immutable"


class BrandMiddleware:
    """Beside what serves static files, and before a tenant is looked for."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        file = settings.BRAND.files.get(request.path_info) if request.path_info.startswith("/brand/") else None
        if file is None or request.method not in ("GET", "HEAD"):
            return self.get_response(request)
        return HttpResponse(file.content, content_type=file.kind, headers={"Cache-Control": FOREVER})
