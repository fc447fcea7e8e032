"""A member's new password: by the one of before, or by a mailed link for who has none or has forgotten it.

Owns what ends with the old password, and which mails go out. A password is hashed before the transaction, for a hash is
a quarter of a second in which a row would be locked. A second step stays: a reset never removes it.
"""

from __future__ import annotations

from django.contrib.auth.hashers import make_password
from django.db import transaction
from django.http import HttpRequest

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.mail import outbox
from tenants.spelling import normal_password
from tenants.users.addresses import confirm
from tenants.users.browsers import end_sessions, keep_session
from tenants.users.guesses import Guess
from tenants.users.links import end_links, ends_at, make_link, url_here, use
from tenants.users.models import Link, User


def ask_to_reset(email: str, *, address: str) -> None:
    """Mail a link to the member with this e-mail, if there is one. In the caller's transaction.

    Runs in a job: the request that asks does the same for everybody, and takes as long.
    """
    user = User.objects.with_email(email)
    if user is None or not user.is_active:
        return
    secret = make_link(user, Link.Purpose.RESET, email=user.email)
    outbox.send(
        user.email,
        "reset",
        subject="Choose a new password",
        until=ends_at(Link.Purpose.RESET),
        url=url_here(f"/password/{secret}/"),
    )
    record(Event.RESET_ASKED, target=user.email, via="job", asked_from=address)


def reset_by_link(secret: str, password: str, request: HttpRequest) -> User | None:
    """The link's member, whose password this is now; None where the link is worth nothing.

    The mail shows that the address is theirs. Every session and every other link ends.
    """
    hashed = make_password(normal_password(password))
    with transaction.atomic(durable=True):
        link = use(secret, Link.Purpose.RESET)
        if link is None:
            return None
        user = link.user
        _set(user, hashed)
        end_sessions(user)
        end_links(user)
        record(Event.PASSWORD_RESET, request=request, actor=user, target=user.email)
        confirm(user, link.email, request)
        _tell(user, "The password of your account was set anew by a link that we mailed to you")
    Guess.of(request, user.email).is_known_now()
    return user


def change_password(user: User, password: str, request: HttpRequest) -> None:
    """Of the request's member, who has shown the one of before. Their other browsers are logged out."""
    hashed = make_password(normal_password(password))
    with transaction.atomic(durable=True):
        _set(user, hashed)
        end_sessions(user, but=request.session.session_key)
        keep_session(request, user)
        end_links(user, Link.Purpose.RESET, Link.Purpose.LOG_IN, Link.Purpose.CHANGE)
        record(Event.PASSWORD_CHANGED, request=request, actor=user, target=user.email)
        _tell(user, "The password of your account was changed")


def _set(user: User, hashed: str) -> None:
    User.objects.filter(pk=user.pk).update(password=hashed)
    user.password = hashed


def _tell(user: User, what: str) -> None:
    """Whoever did not do it themselves learns of it, and where to get the account back."""
    outbox.send(
        user.email,
        "changed",
        subject="Your password was changed",
        what=what,
        help="choose a new password, which logs everybody else out.",
        url=url_here("/password/"),
        label="Choose a new password",
    )
