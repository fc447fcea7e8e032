"""What every answer tells a browser: what a page may load, where its forms may go, that nobody frames it.

Owns these headers for web and plane alike; the front writes them on answers of its own (config/Caddyfile). Must not
know any page: one that needs another policy sets the header itself, and that one stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.security import SecurityMiddleware

from tenants.hosts import every_workspace
from tenants.http import mark_private, mark_varying

POLICY = "Content-Security-Policy"


def policy(more: Mapping[str, list[str]] | None = None) -> str:
    """`settings.SECURE_CSP` as the header's text; what `more` names is allowed beside it."""
    directives = {name: list(sources) for name, sources in settings.SECURE_CSP.items()}
    for name, sources in (more or {}).items():
        directives[name] = [*directives.get(name, directives["default-src"]), *sources]
    return "; ".join(f"{name} {' '.join(sources)}" for name, sources in directives.items())


def set_policy(request: HttpRequest, response: HttpResponseBase) -> None:
    # Django's debug pages are made of inline style and script.
    if settings.DEBUG and response.status_code in (404, 500):
        return
    if response.has_header(POLICY):
        return
    # The bare host hands people over to their workspace by a form, and browsers hold redirects after it to this, too.
    # A workspace's own pages send forms to nobody else, so that what gets into one cannot post to a neighbour.
    bare = getattr(request, "tenant", None) is None
    response.headers[POLICY] = policy({"form-action": [every_workspace()]} if bare else None)


class PolicyMiddleware:
    """Web's, outside of all that answers by itself: health, static files, a tenant that is not found."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        set_policy(request, response)
        return response


def headers_of_programs(request: HttpRequest) -> dict[bytes, bytes]:
    """The same for a program's answer that Django does not make, as ASGI has them."""
    return dict(_headers_of_programs(request.is_secure()))


@lru_cache(maxsize=2)
def _headers_of_programs(is_secure: bool) -> dict[bytes, bytes]:
    request, response = HttpRequest(), HttpResponse()
    request.is_secure = lambda: is_secure  # type: ignore[method-assign]
    PlaneHeaders().set(request, response)
    del response["Content-Type"]
    mark_varying(response)
    mark_private(response)
    return {name.lower().encode("ascii"): value.encode("latin1") for name, value in response.items()}


class PlaneHeaders:
    """The same on the plane: Django's two middlewares would go through a thread there, though they only set headers."""

    def __init__(self) -> None:
        def nobody(request: HttpRequest) -> HttpResponse:
            raise NotImplementedError  # they are asked about answers alone

        self._parts: list[Any] = [SecurityMiddleware(nobody), XFrameOptionsMiddleware(nobody)]

    def set(self, request: HttpRequest, response: HttpResponseBase) -> None:
        for part in self._parts:
            part.process_response(request, response)
        set_policy(request, response)
