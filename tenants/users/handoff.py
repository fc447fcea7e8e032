"""The sign-in hand-off: the bare host cannot set the tenant host's cookie, so it hands over a token.

60 seconds, used once (compare-and-set on its hash in the tenant's schema), bound to tenant and user. It travels in a
form, never in an address. It says when its user last proved who they are: a session that is moved to another host is no
younger there.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

from django.utils import timezone

from tenants.context import tenant_scope
from tenants.models import Tenant
from tenants.users.keys import digest
from tenants.users.models import HandoffToken, User

LIFETIME = timedelta(seconds=60)


def issue_token(tenant: Tenant, *, user_id: int, proven_at: int | None = None) -> str:
    """`proven_at`: as in the session that is moved; None where they prove it now."""
    # Part of what is hashed, so nobody makes it younger.
    secret = f"{secrets.token_urlsafe(32)}.{int(time.time()) if proven_at is None else proven_at}"
    with tenant_scope(tenant):
        HandoffToken.objects.create(user_id=user_id, digest=digest(secret), expires_at=timezone.now() + LIFETIME)
    return secret


def redeem_token(secret: str) -> tuple[User, int] | None:
    """The user whom the token signs in, once, and when they proved who they are; None when it is unknown, used, late or
    of another tenant.
    """
    live = HandoffToken.objects.filter(digest=digest(secret), used_at=None, expires_at__gt=timezone.now())
    if live.update(used_at=timezone.now()) != 1:
        return None
    user = HandoffToken.objects.select_related("user").get(digest=digest(secret)).user
    _, dot, at = secret.rpartition(".")
    # One that an older release has given out in this minute says nothing; then it was a sign-up's.
    return user, int(at if dot else time.time())
