"""A session of one tenant means nothing at another, wherever sessions are kept."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.contrib.auth import SESSION_KEY, logout
from django.http import HttpResponseBase

from tenants.http import TenantRequest, wants_json
from tenants.users.sessions import SESSION_TENANT


class TenantSessionMiddleware:
    """Drops a session whose tenant is not the request's: the reader is then nobody, not somebody else.

    A request to the API with an Authorization header has no session at all, its own tenant's neither: it ignores
    cookies. Left unlooked at instead, a session that was copied here from another tenant's schema would be somebody
    to any view that asks `request.user`.
    """

    def __init__(self, get_response: Callable[[TenantRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: TenantRequest) -> HttpResponseBase:
        if (cookie := request.COOKIES.get(settings.SESSION_COOKIE_NAME)) is not None:
            if wants_json(request) and "Authorization" in request.headers:
                # Without the cookie, so that it is neither read nor deleted in the browser that sent it.
                del request.COOKIES[settings.SESSION_COOKIE_NAME]
                request.session = type(request.session)()
            elif not cookie.isprintable():
                # Postgres refuses a NUL, and no session of ours has one in its key.
                request.session = type(request.session)()
            elif self._is_foreign(request):
                logout(request)
        return self.get_response(request)

    def _is_foreign(self, request: TenantRequest) -> bool:
        here = request.tenant.pk if request.tenant else None
        return SESSION_KEY in request.session and request.session.get(SESSION_TENANT, 0) != here
