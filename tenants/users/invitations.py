"""Invitations: asking people by mail to come in with a role, and letting them in.

Owns Invitation, and the figures of how many may be sent. An invitation is worth something on its own tenant's host
alone: its digest is looked for in that schema. Its link proves the address that it was mailed to, so whoever accepts
has a confirmed one. Who may give a role is asked when it is sent; where they may no longer, tenants.users.people ends
what they sent.

Workspaces are to be had for nothing, and an invitation is a mail from us with a stranger's words in it, to any address.
So what is sent is bounded for the workspace, for the address it is sent to, and for the network that sends it: else who
signs up twenty workspaces sends twenty times as much.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.hosts import url_for
from tenants.http import Forbidden, Invalid, NotFound, RateLimited, TenantRequest
from tenants.limits import Rate, address_of, give_back, take
from tenants.mail import outbox
from tenants.roles import Action, may_act_on, roles_to_give
from tenants.spelling import email_forms, normal_password
from tenants.users import directory
from tenants.users.addresses import confirm
from tenants.users.guesses import Guess
from tenants.users.hashers import refuse_if_full
from tenants.users.keys import digest
from tenants.users.models import Invitation, User
from tenants.users.people import end_ways_in, in_words

LIFETIME = timedelta(days=7)
NO_LONGER_OPEN = "This invitation is no longer open. Those that are open are below."
AT_ONCE = 50

DAY = 24 * 3600.0
# 100 in a workspace's first day, 50 in each after it.
WORKSPACE = Rate("invite-workspace", burst=AT_ONCE, every=DAY / 50, words="This workspace has sent many invitations.")
# The same person, from one workspace: 6 in the first day, 3 in each after it.
PERSON = Rate("invite-person", burst=3, every=DAY / 3, words="This address was invited often.")
# The same person, from all workspaces: 24 and 12. So high that a refusal tells nobody who else invited them, unless
# somebody is pestering them.
ADDRESSEE = Rate("invite-addressee", burst=12, every=DAY / 12, words="This address was invited often.")
# From one network, whatever the workspace: 200 and 100.
SENDER = Rate("invite-sender", burst=100, every=DAY / 100, words="Many invitations were sent from your network.")

# Accepting is one hash for each try: of one invitation, and of one network, which may be a whole office that joins.
TRIES = Rate("accept-invitation", burst=10, every=60.0, words="Too many tries to accept this invitation.")
TRIES_OF_ADDRESS = Rate("accept-address", burst=60, every=10.0, words="Too many tries to accept an invitation.")


def open_ones() -> QuerySet[Invitation]:
    """Those that were neither accepted nor revoked; expired ones too, which can be sent again."""
    return Invitation.objects.filter(accepted_at=None, revoked_at=None).select_related("invited_by").order_by("email")


def problems_of(emails: Sequence[str]) -> dict[str, str]:
    """Why some of these addresses cannot be invited, each in a sentence. The addresses are in their one spelling."""
    forms = {form: email for email in emails for form in email_forms(email)}
    there = User.objects.filter(is_active=True, email__in=forms).values_list("email", flat=True)
    live = open_ones().filter(email__in=emails, expires_at__gt=timezone.now()).values_list("email", flat=True)
    return {email: f"{email} has an open invitation: send that one again, or revoke it first." for email in live} | {
        forms[email]: f"{forms[email]} is a member already." for email in there
    }


def invite(request: TenantRequest, emails: Sequence[str], *, role: str) -> None:
    """Mail each of these addresses an invitation, or none of them. An expired one is renewed.

    Raises Forbidden, RateLimited, or Invalid where an address came in meanwhile.
    """
    _may_send(request.user, role)
    try:
        with _counted(request, emails), transaction.atomic(durable=True):
            inviter = _locked_inviter(request, role)
            before = {each.email: each for each in _locked(open_ones().filter(email__in=emails))}
            if problems := problems_of(emails):
                raise Invalid({"emails": list(problems.values())})
            for email in sorted(emails):
                _send(request, before.get(email) or Invitation(email=email), role=role, inviter=inviter)
                record(Event.INVITED, request=request, target=email, role=role)
    except IntegrityError:
        # Two who invite the same person at the same moment: nothing of the second one's was sent.
        raise Invalid({"emails": ["Somebody has invited one of these just now. Send it again."]}) from None


def resend(request: TenantRequest, pk: int) -> Invitation:
    """Another secret and another week; the link that was mailed before opens nothing. Who asks is the inviter now."""
    email = _open_one(pk).email
    with _counted(request, [email]), transaction.atomic(durable=True):
        invitation = next(iter(_locked(open_ones().filter(pk=pk))), None)
        if invitation is None:
            raise NotFound(NO_LONGER_OPEN)
        if _member_with(email):
            raise Invalid({"body": [f"{email} is a member already. Revoke the invitation."]})
        _send(request, invitation, role=invitation.role, inviter=_locked_inviter(request, invitation.role))
        record(Event.INVITATION_RESENT, request=request, target=email, role=invitation.role)
    return invitation


def revoke(request: TenantRequest, pk: int) -> Invitation:
    """Its link opens nothing from now on."""
    with transaction.atomic(durable=True):
        invitation = _open_one(pk)
        if not may_act_on(request.user.role, invitation.role, Action.INVITE):
            raise Forbidden("Only somebody whose role is as high may revoke this invitation.")
        if open_ones().filter(pk=pk).update(revoked_at=timezone.now()) != 1:
            raise NotFound(NO_LONGER_OPEN)
        record(Event.INVITATION_REVOKED, request=request, target=invitation.email, role=invitation.role)
    return invitation


def look_at(secret: str) -> Invitation | None:
    """The invitation while it is good: open, not expired, and for an address that is not in already."""
    found = _live(secret).select_related("invited_by").first()
    return None if found is None or _member_with(found.email) else found


def accepted_with(secret: str) -> str:
    """The address that came in by this link; "" where nobody did. Whoever clicks twice is not told that it is bad."""
    used = Invitation.objects.filter(digest=digest(secret)).exclude(accepted_at=None)
    return used.values_list("email", flat=True).first() or ""


def accept(request: TenantRequest, invitation: Invitation, *, password: str) -> User | None:
    """The member that whoever has this invitation's secret is now; None where it was accepted or ended meanwhile.

    Raises RateLimited.
    """
    take(TRIES_OF_ADDRESS, address_of(request))
    take(TRIES, request.tenant.pk, invitation.pk)
    hashed = _hashed(request, invitation, password)
    try:
        with transaction.atomic(durable=True):
            # Compare and set, by the digest too: sent again, it is another one.
            if _of_digest(invitation.digest).update(accepted_at=timezone.now()) != 1:
                return None
            user = _let_come(invitation, hashed)
            directory.note(request.tenant, user.email)
            confirm(user, user.email, request)
            inviter = invitation.invited_by.email if invitation.invited_by else ""
            record(Event.JOINED, request=request, actor=user, target=user.email, role=user.role, invited_by=inviter)
    except (_IsIn, IntegrityError):
        return None
    # Else strangers could keep a new member out from the first log-in.
    Guess.of(request, user.email).remember()
    return user


class _IsIn(Exception):
    """Somebody has this address already: a member has moved to it since the invitation was sent."""


def _let_come(invitation: Invitation, hashed: str) -> User:
    """A new member; or a former one, as the same row, so that what they made is theirs again."""
    user = _former_with(invitation.email) or User()
    if user.pk:
        # Once more: what was made in the very moment in which they went must not open a door now.
        end_ways_in(user)
    now = timezone.now()
    user.email, user.password, user.role = invitation.email, hashed, invitation.role
    user.is_active, user.removed_at = True, None
    user.date_joined = user.email_confirmed_at = now
    user.save()
    return user


def _former_with(email: str) -> User | None:
    found = User.objects.with_email(email)
    # Locked, and as it is now: of two invitations by two spellings the second must see what the first has done.
    user = User.objects.select_for_update(no_key=True).get(pk=found.pk) if found else None
    if user and user.is_active:
        raise _IsIn
    return user


def _member_with(email: str) -> bool:
    user = User.objects.with_email(email)
    return user is not None and user.is_active


def _hashed(request: TenantRequest, invitation: Invitation, password: str) -> str:
    """In its turn: from one address one password is hashed at a time, as at log-in."""
    with Guess.of(request, invitation.email).place():
        refuse_if_full()
        return make_password(normal_password(password))


def _live(secret: str) -> QuerySet[Invitation]:
    return _of_digest(digest(secret))


def _of_digest(known: str) -> QuerySet[Invitation]:
    return Invitation.objects.filter(digest=known, accepted_at=None, revoked_at=None, expires_at__gt=timezone.now())


def _locked(found: QuerySet[Invitation]) -> QuerySet[Invitation]:
    """In the order of their addresses, as tenants.users.people takes them too."""
    return found.select_for_update(of=("self",))


def _open_one(pk: int) -> Invitation:
    invitation = open_ones().filter(pk=pk).first()
    if invitation is None:
        raise NotFound(NO_LONGER_OPEN)
    return invitation


def _may_send(user: User, role: str) -> None:
    if role not in roles_to_give(user.role, Action.INVITE):
        raise Forbidden("Your role does not allow inviting somebody with this one.")
    # A stranger's workspace sends mails once its owner has shown an address of theirs to be real.
    if settings.SIGNUP_CONFIRM_EMAIL and user.email_confirmed_at is None:
        raise Forbidden("Confirm your own e-mail address before you invite others: your account’s page has the way.")


def _locked_inviter(request: TenantRequest, role: str) -> User:
    """Who asks, as they are now and until the transaction ends: whoever takes their role away meanwhile waits, and then
    ends this invitation too.
    """
    inviter = User.objects.select_for_update(no_key=True).filter(pk=request.user.pk, is_active=True).first()
    if inviter is None:
        raise Forbidden("You are no longer a member of this workspace.")
    _may_send(inviter, role)
    return inviter


def _send(request: TenantRequest, invitation: Invitation, *, role: str, inviter: User) -> None:
    secret = secrets.token_urlsafe(32)
    now = timezone.now()
    invitation.role, invitation.invited_by, invitation.digest = role, inviter, digest(secret)
    invitation.sent_at, invitation.expires_at = now, now + LIFETIME
    invitation.save()
    tenant = request.tenant
    outbox.send(
        invitation.email,
        "invitation",
        subject=f"{inviter.email} invites you to {tenant.name}",
        until=invitation.expires_at,
        is_counted=False,  # ADDRESSEE counts it, and who asks is told
        inviter=inviter.email,
        role=in_words(role),
        url=url_for(tenant.slug, f"/invitation/{secret}/"),
        days=LIFETIME.days,
    )


@contextmanager
def _counted(request: TenantRequest, emails: Sequence[str]) -> Iterator[None]:
    """Counts what is about to be sent at each limit, or at none where one is reached; and not what then was not sent.

    Around the transaction, for a count that is rolled back would be none. Raises RateLimited.
    """
    taken: list[tuple[Rate, tuple[str | int, ...], int]] = []

    def count(limit: Rate, *who: str | int, cost: int = 1) -> None:
        take(limit, *who, cost=cost)
        taken.append((limit, who, cost))

    try:
        count(SENDER, address_of(request), cost=len(emails))
        count(WORKSPACE, request.tenant.pk, cost=len(emails))
        for email in emails:
            try:
                count(PERSON, request.tenant.pk, email)
                count(ADDRESSEE, email)
            except RateLimited as exc:
                raise RateLimited(f"{email}: {exc.message}", retry_after_ms=exc.retry_after_ms) from None
        yield
    except BaseException:
        for limit, who, cost in taken:
            give_back(limit, *who, cost=cost)
        raise
