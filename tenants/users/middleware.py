"""What is asked of each session, between the cookie and the view.

A session of one tenant means nothing at another, wherever sessions are kept; it is noted that one is in use; and where
the workspace requires a second step, whoever has none sets it up before anything else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY, logout
from django.db import DatabaseError
from django.http import HttpResponseBase
from django.shortcuts import redirect

from tenants.http import SecondStepRequired, TenantRequest, error_response, wants_json
from tenants.users.browsers import note_seen
from tenants.users.models import User
from tenants.users.sessions import SESSION_TENANT

logger = logging.getLogger(__name__)


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


class SeenMiddleware:
    """Notes that a session is in use, by the pages that somebody looks at. Not by the API, nor by a form: the page that
    it leads to does that, and what a form buys costs no statement more.
    """

    def __init__(self, get_response: Callable[[TenantRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: TenantRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if request.method not in ("GET", "HEAD") or wants_json(request):
            return response
        # Where AuthenticationMiddleware keeps whom the view has asked for: nobody is looked up for this alone.
        user = getattr(request, "_cached_user", None)
        if isinstance(user, User) and request.tenant and request.session.session_key:
            try:
                note_seen(request, user)
            except DatabaseError:
                # The page is made, and may say that something was done.
                logger.exception("A session's use was not noted.")
        return response


class SecondStepMiddleware:
    """Where the workspace requires a second step, a member without one reaches the pages that set it up, and no other.

    Whatever the view is: it need not know. A page leads there; what was sent is refused in words, so that a form is not
    lost unsaid. /api/ by a session is refused the same way, by a key it is not asked.
    """

    # Where one sets it up, and the ways in and out.
    OPEN = ("/settings/security/two-step/", "/login/", "/logout/", "/welcome/")

    def __init__(self, get_response: Callable[[TenantRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: TenantRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(self, request: TenantRequest, view: Any, args: Any, kwargs: Any) -> HttpResponseBase | None:
        if not (request.tenant and request.tenant.requires_second_step) or request.path_info.startswith(self.OPEN):
            return None
        if not request.user.is_authenticated or request.user.second_step_at is not None:
            return None
        if request.method not in ("GET", "HEAD") or wants_json(request):
            return error_response(request, SecondStepRequired())
        return redirect("two_step")
