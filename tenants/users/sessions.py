"""What a session proves, in Django's own format and by Django's own code, but without its queries.

Reads what it is given; asks no database. Who is signed in where is decided in tenants.resolve.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.crypto import constant_time_compare

if TYPE_CHECKING:
    from tenants.users.models import User

SESSION_TENANT = "tenant_id"


def session_key(request: HttpRequest) -> str | None:
    """The cookie's key where it can be one. Postgres refuses a NUL, and no session of ours has one in its key."""
    key = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    return key if key and key.isascii() and key.isalnum() and 8 <= len(key) <= 40 else None


def read_session(data: str) -> dict[str, Any]:
    """The facts in a row of django_session; none where the signature is not ours."""
    store = import_module(settings.SESSION_ENGINE).SessionStore()
    facts: dict[str, Any] = store.decode(data)
    return facts


def signed_in_user_id(session: dict[str, Any], *, tenant_id: int) -> int | None:
    """Whose session it is, at this tenant. A session that another tenant's log-in began means nothing here."""
    if session.get(SESSION_TENANT, 0) != tenant_id or SESSION_KEY not in session:
        return None
    if session.get(BACKEND_SESSION_KEY) not in settings.AUTHENTICATION_BACKENDS:
        return None
    return int(session[SESSION_KEY])


def is_sessions_user(session: dict[str, Any], user: User) -> bool:
    """Whether the password is still the one that the session began with, under this or an earlier SECRET_KEY."""
    shown = session.get(HASH_SESSION_KEY) or ""
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    return any(constant_time_compare(shown, known) for known in hashes)


class _CsrfCheck(CsrfViewMiddleware):
    """Django's check without its page: the reason back, or None."""

    def _reject(self, request: HttpRequest, reason: str) -> str:
        return reason


def _no_view(request: HttpRequest) -> HttpResponse:
    """Not marked csrf_exempt, as ninja's views are: the check then applies."""
    return HttpResponse()


def passes_csrf(request: HttpRequest) -> bool:
    check = _CsrfCheck(_no_view)
    check.process_request(request)
    return check.process_view(request, _no_view, (), {}) is None
