"""The browsers in which a member is logged in: noting each, and ending them.

Owns MemberSession, and the deletion of Django's session that lies behind one. Ending works at once, at web and at the
plane alike: both read the session's row with each request.
"""

from __future__ import annotations

from django.contrib.sessions.models import Session
from django.http import HttpRequest

from tenants.audit.trail import agent_of
from tenants.limits import address_of
from tenants.users.models import HandoffToken, MemberSession, User


def note_session(request: HttpRequest, user: User, *, method: str) -> None:
    """The request's session is that member's from now on."""
    if request.session.session_key is None:
        request.session.save()
    MemberSession.objects.update_or_create(
        session_key=request.session.session_key,
        defaults={
            "user": user,
            "address": address_of(request),
            "agent": agent_of(request),
            "method": method,
        },
    )


def end_session(user: User, pk: int) -> bool:
    """One of the member's browsers is logged out. False where it was not theirs, or is over already."""
    found = MemberSession.objects.filter(pk=pk, user=user).first()
    if found is None:
        return False
    Session.objects.filter(session_key=found.session_key).delete()
    found.delete()
    return True


def end_sessions(user: User, *, but: str | None = None) -> int:
    """All of them, but the one with the session key `but`; and hand-offs that are under way. How many there were."""
    ended = MemberSession.objects.filter(user=user).exclude(session_key=but or "")
    keys = list(ended.values_list("session_key", flat=True))
    Session.objects.filter(session_key__in=keys).delete()
    ended.delete()
    HandoffToken.objects.filter(user=user).delete()
    return len(keys)
