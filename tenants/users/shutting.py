"""Nobody gets in any more: every session, key, link and invitation of a workspace ends.

Owns which rows those are. Must not decide that a workspace is closed.
"""

from __future__ import annotations

from django.contrib.sessions.models import Session
from django.utils import timezone

from tenants.users.models import ApiKey, HandoffToken, Invitation, Link, MemberSession


def shut_everybody_out() -> None:
    """Of the bound tenant, in the caller's transaction, and for good: members who are let in again log in anew."""
    now = timezone.now()
    Session.objects.all().delete()
    MemberSession.objects.all().delete()
    HandoffToken.objects.all().delete()
    ApiKey.objects.filter(revoked_at=None).update(revoked_at=now, sealed_secret="")
    Link.objects.filter(used_at=None, expires_at__gt=now).update(expires_at=now)
    Invitation.objects.filter(accepted_at=None, revoked_at=None).update(revoked_at=now)
