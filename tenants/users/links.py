"""Links that a mail carries to one person: made, looked at, used once.

A link is worth something on its own tenant's host alone: its digest is looked for in that schema. To follow one is to
look; what it is for happens by the form on the page that it leads to, for mail programs follow links, too.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from django.db.models import QuerySet
from django.utils import timezone

from tenants.context import current_tenant
from tenants.hosts import url_for
from tenants.users.keys import digest
from tenants.users.models import Link, User

LIFETIMES = {
    Link.Purpose.RESET: timedelta(hours=1),
    Link.Purpose.CONFIRM: timedelta(days=7),
    Link.Purpose.CHANGE: timedelta(hours=24),
    Link.Purpose.LOG_IN: timedelta(minutes=15),
}
# A link's row after its end.
KEPT = timedelta(days=30)


def make_link(user: User, purpose: Link.Purpose, *, email: str) -> str:
    """The secret of a new link for that member; the ones before of the same purpose end."""
    secret = secrets.token_urlsafe(32)
    end_links(user, purpose)
    Link.objects.create(
        user=user,
        purpose=purpose,
        email=email,
        digest=digest(secret),
        expires_at=ends_at(purpose),
    )
    return secret


def ends_at(purpose: Link.Purpose) -> datetime:
    """When a link that is made now ends; its mail is not sent after that."""
    return timezone.now() + LIFETIMES[purpose]


def url_here(path: str) -> str:
    """An absolute address on the bound tenant's host, for a mail."""
    tenant = current_tenant()
    assert tenant is not None  # links lead to a workspace's own host
    return url_for(tenant.slug, path)


def look_at(secret: str, purpose: Link.Purpose) -> Link | None:
    """The link while it is good: not used, not expired, of a member who is still in."""
    return _live(secret, purpose).select_related("user").first()


def use(secret: str, purpose: Link.Purpose) -> Link | None:
    """The same, for one caller: of two at once, and ever after, the others get None. In the transaction of its use."""
    link = look_at(secret, purpose)
    # By the link's own columns alone: with its member's beside them Django asks in a subquery, which Postgres does not
    # ask again of the row that the other of two has changed meanwhile. Both then got in.
    good = Link.objects.filter(pk=link.pk if link else 0, used_at=None, expires_at__gt=timezone.now())
    return link if good.update(used_at=timezone.now()) == 1 else None


def end_links(user: User, *purposes: Link.Purpose) -> None:
    """Those of these purposes, or all of them, are worth nothing from now on."""
    live = Link.objects.filter(user=user, used_at=None, expires_at__gt=timezone.now())
    (live.filter(purpose__in=purposes) if purposes else live).update(expires_at=timezone.now())


def forget_old() -> None:
    """Delete those that have been worth nothing for long: each that somebody asks for is a row."""
    Link.objects.filter(expires_at__lt=timezone.now() - KEPT).delete()


def _live(secret: str, purpose: Link.Purpose) -> QuerySet[Link]:
    return Link.objects.filter(
        digest=digest(secret), purpose=purpose, used_at=None, expires_at__gt=timezone.now(), user__is_active=True
    )
