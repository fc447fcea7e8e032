"""A session of one tenant means nothing at another, wherever sessions are kept."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.contrib.auth import SESSION_KEY, logout
from django.http import HttpResponseBase

from tenants.http import TenantRequest, wants_json
from tenants.users.sessions import SESSION_TENANT


class TenantSessionMiddleware:
    """Drops a session whose tenant is not the request's: the reader is then nobody, not somebody else."""

    def __init__(self, get_response: Callable[[TenantRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: TenantRequest) -> HttpResponseBase:
        # On the API a request with a key ignores cookies; its session is not even read. Pages know no keys: there a
        # header that looks like one would let a foreign session through unlooked at.
        by_key = wants_json(request) and "Authorization" in request.headers
        cookie = None if by_key else request.COOKIES.get(settings.SESSION_COOKIE_NAME)
        if cookie is not None and not cookie.isprintable():
            # Postgres refuses a NUL, and no session of ours has one in its key.
            request.session = type(request.session)()
        elif cookie is not None and self._is_foreign(request):
            logout(request)
        return self.get_response(request)

    def _is_foreign(self, request: TenantRequest) -> bool:
        here = request.tenant.pk if request.tenant else None
        return SESSION_KEY in request.session and request.session.get(SESSION_TENANT, 0) != here
