"""The browsers in which a member is logged in: noting each, when it was last seen, and ending them.

Owns MemberSession, and the deletion of Django's session that lies behind one. Ending works at once, at web and at the
plane alike: both read the session's row with each request. A row here without a session behind it is nothing, and is
not shown.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth import SESSION_KEY, update_session_auth_hash
from django.contrib.sessions.models import Session
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from tenants.audit.trail import agent_of
from tenants.limits import address_of
from tenants.users.models import HandoffToken, MemberSession, User
from tenants.users.sessions import read_session

# A write for each page would double its cost. Also notes a session of before there were such rows.
_SEEN = """
    INSERT INTO users_membersession (user_id, session_key, created_at, seen_at, address, agent, method)
    SELECT %(user)s, %(key)s, now(), now(), %(address)s, %(agent)s, ''
    WHERE NOT EXISTS (
        SELECT 1 FROM users_membersession WHERE session_key = %(key)s AND seen_at > now() - interval '1 minute')
    ON CONFLICT (session_key) DO UPDATE
    SET seen_at = excluded.seen_at, address = excluded.address, agent = excluded.agent"""
KEY_LENGTH = 40
# What one run deletes at most, at a time.
BATCH = 1_000


def note_session(request: HttpRequest, user: User, *, method: str) -> None:
    """The request's session is that member's from now on.

    A key that is longer than ours is of a backend that keeps the session itself in it, and has no row to end.
    """
    if request.session.session_key is None:
        request.session.save()
    if len(request.session.session_key or "") > KEY_LENGTH:
        return
    MemberSession.objects.update_or_create(
        session_key=request.session.session_key,
        defaults={
            "user": user,
            "address": address_of(request),
            "agent": agent_of(request),
            "method": method,
        },
    )


def note_seen(request: HttpRequest, user: User) -> None:
    """That session is in use, to the minute; one statement."""
    if len(request.session.session_key or "") > KEY_LENGTH:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            _SEEN,
            {
                "user": user.pk,
                "key": request.session.session_key,
                "address": address_of(request),
                "agent": agent_of(request),
            },
        )


def browsers_of(user: User) -> QuerySet[MemberSession]:
    """Where they are logged in now, the one last seen first."""
    live = Session.objects.filter(expire_date__gt=timezone.now())
    return MemberSession.objects.filter(user=user, session_key__in=live.values("session_key")).order_by(
        "-seen_at", "pk"
    )


def keep_session(request: HttpRequest, user: User) -> None:
    """The request's session goes on after the member's password was changed: under a new key, as the same browser."""
    before = request.session.session_key
    update_session_auth_hash(request, user)
    MemberSession.objects.filter(session_key=before).update(session_key=request.session.session_key)


def forget_session(key: str | None) -> None:
    """The browser with this session key is logged out, and Django deletes the session itself."""
    MemberSession.objects.filter(session_key=key or "").delete()


def end_session(user: User, pk: int) -> MemberSession | None:
    """One of the member's browsers is logged out. None where it was not theirs, or is over already."""
    found = MemberSession.objects.filter(pk=pk, user=user).first()
    if found is None:
        return None
    Session.objects.filter(session_key=found.session_key).delete()
    MemberSession.objects.filter(pk=pk).delete()
    return found


def end_sessions(user: User, *, but: str | None = None) -> int:
    """All of them, but the one with the session key `but`; and hand-offs that are under way. How many there were."""
    # Those without a row first: one that gets its row just now is found by it, then.
    keys = {*_without_a_row(user)}
    keys |= {*MemberSession.objects.filter(user=user).values_list("session_key", flat=True)}
    keys.discard(but or "")
    ended, _ = Session.objects.filter(session_key__in=keys).delete()
    MemberSession.objects.filter(session_key__in=keys).delete()
    HandoffToken.objects.filter(user=user).delete()
    return ended


def forget_old(*, at_most: int = 20 * BATCH) -> int:
    """Delete sessions whose time is over, and rows here that have none behind them; how many sessions they were."""
    gone = 0
    while gone < at_most:
        over = Session.objects.filter(expire_date__lt=timezone.now()).values("session_key")[:BATCH]
        deleted, _ = Session.objects.filter(session_key__in=list(over.values_list("session_key", flat=True))).delete()
        gone += deleted
        if deleted < BATCH:
            break
    MemberSession.objects.exclude(session_key__in=Session.objects.values("session_key")).delete()
    return gone


def _without_a_row(user: User) -> list[str]:
    """Sessions of before there were rows, which no page has noted since. Two weeks after a deploy there are none."""
    known = MemberSession.objects.values("session_key")
    found = Session.objects.filter(expire_date__gt=timezone.now()).exclude(session_key__in=known)
    rows = found.values_list("session_key", "session_data").iterator(BATCH)
    return [key for key, data in rows if _is_of(user, read_session(data))]


def _is_of(user: User, session: dict[str, Any]) -> bool:
    return session.get(SESSION_KEY) == str(user.pk)
