"""A member's e-mail address: asking whether it is theirs, knowing that it is, and moving to another one.

Owns `User.email_confirmed_at` and every change of `User.email`. Must not know what a confirmed address is worth:
whoever cares is told by settings.ON_EMAIL_CONFIRMED, in the same transaction.
"""

from __future__ import annotations

from django.conf import settings
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.module_loading import import_string

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.context import current_tenant
from tenants.mail import outbox
from tenants.users import directory
from tenants.users.links import end_links, ends_at, make_link, url_here, use
from tenants.users.models import Link, User


def confirm(user: User, email: str, request: HttpRequest | None = None) -> bool:
    """`user` has shown that `email` is theirs, by a link, an invitation or a provider. In the caller's transaction.

    Every way in that proves an address calls this. False where it is not, or no longer, the member's address. Said
    again it changes nothing, and whoever is told hears it again: what they do for it may have been impossible before.
    """
    found = User.objects.filter(pk=user.pk, email=email)
    if found.filter(email_confirmed_at=None).update(email_confirmed_at=timezone.now()) == 1:
        record(Event.EMAIL_CONFIRMED, request=request, actor=user, target=email)
    elif not found.exists():
        return False
    import_string(settings.ON_EMAIL_CONFIRMED)(user)
    return True


def ask_to_confirm(user: User) -> None:
    """Mail a link by which the member confirms their address. In the caller's transaction."""
    secret = make_link(user, Link.Purpose.CONFIRM, email=user.email)
    outbox.send(
        user.email,
        "confirm",
        subject="Confirm your e-mail address",
        until=ends_at(Link.Purpose.CONFIRM),
        url=url_here(f"/confirm/{secret}/"),
    )


def confirm_by_link(secret: str, request: HttpRequest) -> User | None:
    """Whose address the link has confirmed just now; None where it confirms nothing."""
    with transaction.atomic(durable=True):
        link = use(secret, Link.Purpose.CONFIRM)
        return link.user if link and confirm(link.user, link.email, request) else None


def ask_to_change(user: User, email: str) -> None:
    """Mail a link to the new address, and word of it to the old one. In the caller's transaction.

    Runs in a job, so that no answer, nor its time, tells whether the new address is a member's already.
    """
    holder = User.objects.with_email(email)
    if holder is None:
        secret = make_link(user, Link.Purpose.CHANGE, email=email)
        outbox.send(
            email,
            "change",
            subject="Confirm your new e-mail address",
            until=ends_at(Link.Purpose.CHANGE),
            url=url_here(f"/email/{secret}/"),
        )
    else:
        outbox.send(holder.email, "taken", subject="Your e-mail address was asked for", url=url_here("/login/"))
    outbox.send(user.email, "change_asked", subject="A new e-mail address was asked for", url=url_here("/password/"))


def change_by_link(secret: str, request: HttpRequest) -> User | None:
    """The member who has the link's address from now on; None where it is worth nothing, or another has it by now."""
    try:
        with transaction.atomic(durable=True):
            link = use(secret, Link.Purpose.CHANGE)
            if link is None or User.objects.with_email(link.email) is not None:
                return None
            _move(link.user, link.email, request)
            return link.user
    except IntegrityError:  # taken in this very moment
        return None


def _move(user: User, email: str, request: HttpRequest) -> None:
    tenant, before = current_tenant(), user.email
    assert tenant is not None  # pages of a tenant's host alone come here
    User.objects.filter(pk=user.pk).update(email=email, email_confirmed_at=None)
    user.email = email
    directory.forget(tenant, before)
    directory.note(tenant, email)
    # Those that wait were sent to the address of before.
    end_links(user)
    record(Event.EMAIL_CHANGED, request=request, actor=user, target=email, before=before)
    confirm(user, email, request)
    outbox.send(
        before,
        "changed",
        subject="Your e-mail address was changed",
        what="The e-mail address of your account was changed to another one",
        help="ask an owner or an admin of the workspace to remove the account.",
        url=url_here("/"),
        label="Open the workspace",
    )
