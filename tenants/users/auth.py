"""Who is asking in web's views, and signing in. How it is decided: tenants.resolve, for both doors."""

from __future__ import annotations

from django.contrib.auth import SESSION_KEY, login

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import TenantRequest
from tenants.resolve import answered, find_member
from tenants.users.browsers import note_session
from tenants.users.models import User
from tenants.users.sessions import SESSION_TENANT


def caller(request: TenantRequest) -> User:
    """The member who asks on /api/: by key (cookies are then ignored), else by session (CSRF then applies).

    Raises Unauthenticated or CsrfFailed.
    """
    if request.asker is None:
        request.asker = answered(find_member(request, request.tenant))
    return request.asker.user


def sign_in(request: TenantRequest, user: User, *, method: str) -> None:
    """Start a session under a new key, tied to this tenant. `method` says how they got in: password, link, …

    Also for who is signed in already: Django keeps the old key then, which somebody else may know. Without the tie a
    session store that tenants shared would let t1's session open t2 as the user of the same id.
    """
    if SESSION_KEY in request.session:
        request.session.flush()
    login(request, user, backend="tenants.users.backends.MemberBackend")
    request.session[SESSION_TENANT] = request.tenant.pk if request.tenant else None
    note_session(request, user, method=method)
    record(Event.LOGGED_IN, request=request, actor=user, method=method)
