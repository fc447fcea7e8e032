"""Who is asking in web's views, and signing in. How it is decided: tenants.resolve, for both doors."""

from __future__ import annotations

import time

from django.contrib.auth import SESSION_KEY, login
from django.http import HttpRequest

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import TenantRequest
from tenants.resolve import answered, find_member
from tenants.users.actions import action_of, allow
from tenants.users.browsers import forget_session, note_session
from tenants.users.models import User
from tenants.users.sessions import SESSION_TENANT

# In a session: when its member last proved who they are, by logging in or by the password.
PROVEN_AT = "proven_at"
FRESH_SECONDS = 600


def caller(request: TenantRequest) -> User:
    """The member who asks on /api/: by key (cookies are then ignored), else by session (CSRF then applies).

    And who may do what the view says it is (`tenants.users.access.needs`). Raises Unauthenticated, CsrfFailed,
    SecondStepRequired or Forbidden.
    """
    if request.asker is None:
        request.asker = answered(find_member(request, request.tenant))
    match = request.resolver_match
    allow(request.asker, action_of(match.func if match else None, request.method))
    return request.asker.user


def sign_in(request: TenantRequest, user: User, *, method: str, proven_at: int | None = None) -> None:
    """Start a session under a new key, tied to this tenant. `method` says how they got in: password, link, …;
    `proven_at` when, where that was not now.

    Also for who is signed in already: Django keeps the old key then, which somebody else may know. Without the tie a
    session store that tenants shared would let t1's session open t2 as the user of the same id.
    """
    if SESSION_KEY in request.session:
        forget_session(request.session.session_key)
        request.session.flush()
    login(request, user, backend="tenants.users.backends.MemberBackend")
    request.session[SESSION_TENANT] = request.tenant.pk if request.tenant else None
    note_proof(request, at=proven_at)
    note_session(request, user, method=method)
    record(Event.LOGGED_IN, request=request, actor=user, method=method)


def is_signed_in(request: HttpRequest) -> bool:
    """For pages that are open to nobody, too: a TenantRequest's user is a member by its type."""
    return request.user.is_authenticated


def note_proof(request: TenantRequest, *, at: int | None = None) -> None:
    """Whoever is at this browser has shown that the session is theirs: just now, or then."""
    request.session[PROVEN_AT] = int(time.time()) if at is None else at


def proven_at(request: TenantRequest) -> int:
    """When they last did; 0 where nobody knows."""
    return int(request.session.get(PROVEN_AT, 0))


def is_fresh(request: TenantRequest) -> bool:
    """Whether that is ten minutes ago at most: a browser that was left open may not change how its member gets in."""
    return bool(time.time() - proven_at(request) < FRESH_SECONDS)
