"""Getting in by a mail: to all of one's workspaces from the bare host, or to one from its own.

Owns the limits, the jobs' sealed arguments and the mails. A request only counts and enqueues, whoever is named, so that
neither its answer nor its time tells who is a member anywhere; who is, the job finds out, and the mail alone says it.

An address that is in no workspace gets a mail that says so, once a day at most: somebody who has forgotten which of
their addresses they used would wait for ever otherwise. All such mails together have a limit too, for a stranger
chooses whom they go to.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.http import HttpRequest
from django.utils.http import urlencode

from tenants.context import tenant_scope
from tenants.hosts import host_for, site_url, url_for
from tenants.http import RateLimited
from tenants.limits import Rate, address_of, give_back, take
from tenants.mail.outbox import send
from tenants.models import Tenant
from tenants.schema_versions import begin_catching_up, is_current
from tenants.sealing import seal_facts, unseal_facts
from tenants.users.directory import workspaces_of
from tenants.users.links import ends_at, make_link
from tenants.users.models import Link, User

WORDS = "Too many mails were asked for."
# At the door: forms of one address, and of all together.
ADDRESS = Rate("mail-in-address", burst=10, every=60.0, words=WORDS)
SITE = Rate("mail-in-site", burst=300, every=1.0, words=WORDS)
# In the job, where no answer shows it: mails to one address, from the bare host and from each workspace.
TO_ONE = Rate("mail-in-to-one", burst=3, every=1_200.0)
NOBODY = Rate("mail-in-nobody", burst=1, every=24 * 3_600.0)
NOBODY_SITE = Rate("mail-in-nobody-site", burst=30, every=60.0)

# In one mail, by name. Who is in more logs in to one of these, or knows the address.
WORKSPACES = 20
LOOKED_AT = 200
TARGET_LENGTH = 500


@dataclass(frozen=True)
class Found:
    """A workspace in the mail, and where its button leads."""

    name: str
    host: str
    url: str


def ask_for_workspaces(request: HttpRequest, email: str) -> None:
    """A mail to that address that lists its workspaces. Raises RateLimited."""
    from tenants.users import tasks  # the queue is not there yet when apps are loaded

    _count(request)
    tasks.mail_workspaces.defer(sealed=_sealed(email))


def ask_for_link(request: HttpRequest, email: str, *, target: str) -> None:
    """A mail with a link into the request's workspace, if a member has that address. Raises RateLimited."""
    from tenants.users import tasks

    _count(request)
    tasks.mail_log_in_link.defer(sealed=_sealed(email, target if len(target) <= TARGET_LENGTH else ""))


def mail_workspaces(sealed: str) -> None:
    """The job's part of the first, on the public schema."""
    email, _ = _unsealed(sealed)
    places = _places(email)
    # Before a link is made: each ends the one before, which may lie in a mail that is being read.
    if places and _may_send(TO_ONE, "", email):
        found = [found for tenant in places if (found := _way_in(tenant, email))]
        until = ends_at(Link.Purpose.LOG_IN)
        send(email, "workspaces", subject="Log in to your workspaces", until=until, found=found, find_url=_find())
    # The day's one mail is not spent where the site's limit would keep it back.
    elif not places and _may_send(NOBODY_SITE) and _may_send(NOBODY, email):
        send(email, "no_workspace", subject="No workspace has this address", email=email, find_url=_find())


def mail_log_in_link(tenant: Tenant, sealed: str) -> None:
    """The job's part of the second, inside the tenant."""
    email, target = _unsealed(sealed)
    member = _member(email)
    if member is None or not _may_send(TO_ONE, tenant.slug, email):
        return
    url = _url(tenant, make_link(member, Link.Purpose.LOG_IN, email=member.email))
    if target:
        url += f"?{urlencode({'next': target})}"
    until = ends_at(Link.Purpose.LOG_IN)
    send(member.email, "log_in_link", subject=f"Log in to {tenant.name}", until=until, url=url, email=member.email)


def _count(request: HttpRequest) -> None:
    take(ADDRESS, address_of(request))
    try:
        take(SITE)
    except RateLimited:
        give_back(ADDRESS, address_of(request))
        raise


def _may_send(limit: Rate, *who: str) -> bool:
    try:
        take(limit, *who)
    except RateLimited:
        return False
    return True


def _places(email: str) -> list[Tenant]:
    """Where somebody has that address, and first where they have confirmed it: whoever signs up twenty workspaces with
    another's address would keep that one's own out of the mail.

    The directory says where to look, each workspace's own rows whether it is so.
    """
    found = []
    for tenant in workspaces_of(email).annotate(is_current=is_current())[:LOOKED_AT]:
        if not tenant.is_current:
            begin_catching_up(tenant.pk)
            found.append((True, tenant))
            continue
        with tenant_scope(tenant):
            member = _member(email)
        if member is not None:
            found.append((member.email_confirmed_at is not None, tenant))
    return [tenant for _, tenant in sorted(found, key=lambda place: not place[0])][:WORKSPACES]


def _way_in(tenant: Tenant, email: str) -> Found | None:
    """None where they have just gone."""
    host = host_for(tenant.slug)
    if not tenant.is_current:
        # Links cannot be made there in this minute. Its log-in page waits as little as a link would.
        return Found(tenant.name, host, url_for(tenant.slug, "/login/"))
    with tenant_scope(tenant):
        member = _member(email)
        if member is None:
            return None
        return Found(tenant.name, host, _url(tenant, make_link(member, Link.Purpose.LOG_IN, email=member.email)))


def _member(email: str) -> User | None:
    member = User.objects.with_email(email)
    return member if member is not None and member.is_active else None


def _url(tenant: Tenant, secret: str) -> str:
    return url_for(tenant.slug, f"/login/link/{secret}/")


def _find() -> str:
    return site_url("/find/")


def _sealed(email: str, target: str = "") -> str:
    return seal_facts(email, target)


def _unsealed(sealed: str) -> tuple[str, str]:
    email, target = unseal_facts(sealed)
    return email, target
