"""The sign-in hand-off: the bare host cannot set the tenant host's cookie, so it hands over a token.

60 seconds, used once (compare-and-set on its hash in the tenant's schema), bound to tenant and user. It travels in a
form, never in an address.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from django.utils import timezone

from tenants.context import tenant_scope
from tenants.models import Tenant
from tenants.users.keys import digest
from tenants.users.models import HandoffToken, User

LIFETIME = timedelta(seconds=60)


def issue_token(tenant: Tenant, *, user_id: int) -> str:
    secret = secrets.token_urlsafe(32)
    with tenant_scope(tenant):
        HandoffToken.objects.create(user_id=user_id, digest=digest(secret), expires_at=timezone.now() + LIFETIME)
    return secret


def redeem_token(secret: str) -> User | None:
    """The user whom the token signs in, once; None when it is unknown, used, late or of another tenant."""
    live = HandoffToken.objects.filter(digest=digest(secret), used_at=None, expires_at__gt=timezone.now())
    if live.update(used_at=timezone.now()) != 1:
        return None
    return HandoffToken.objects.select_related("user").get(digest=digest(secret)).user
