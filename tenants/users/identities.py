"""Whom a provider's person may be here: finding, linking and unlinking identities.

What is linked is found by provider and subject alone; an e-mail decides once, for a member who has shown that it is
theirs, and never again. Must not speak to a provider: its callers bring a Person that is proven.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db import IntegrityError, transaction
from django.shortcuts import get_object_or_404
from django.utils import timezone

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.hosts import url_for
from tenants.http import TenantRequest
from tenants.mail import outbox
from tenants.users.models import Identity, User
from tenants.users.providers.errors import AttemptOver, IdentityTaken, LastWayIn, UnknownIdentity
from tenants.users.providers.known import Person, Provider, configured, find_provider

ACCOUNT = "/settings/account/"


def member_behind(request: TenantRequest, provider: Provider, person: Person) -> User:
    """The member who logs in by being `person`. Raises UnknownIdentity, the same for whatever reason."""
    return _linked_member(provider, person) or _linked_by_email(request, provider, person)


def link(request: TenantRequest, provider: Provider, person: Person, *, member: int) -> Identity:
    """Let `person` open the account of the member who is logged in. Raises IdentityTaken, or AttemptOver."""
    try:
        with transaction.atomic(durable=True):
            user = User.objects.select_for_update(no_key=True).filter(pk=member).first()
            if user is None or not _may_enter(user):
                raise AttemptOver
            return _link(request, user, provider, person, how="account page")
    except IntegrityError:
        raise _why_taken(provider, person, member) from None


def unlink(request: TenantRequest, pk: int) -> Identity:
    """Of the member who is logged in; any other is 404. Raises LastWayIn."""
    with transaction.atomic(durable=True):
        # So that of two at once the second sees what the first has left.
        user = User.objects.select_for_update(no_key=True).get(pk=request.user.pk)
        identity = get_object_or_404(Identity, pk=pk, user=user)
        name = provider_name(identity.provider)
        others = user.identities.exclude(pk=pk).filter(provider__in=[one.key for one in configured()])
        if not user.has_usable_password() and not others.exists():
            raise LastWayIn(name)
        identity.delete()
        record(Event.IDENTITY_UNLINKED, request=request, actor=user, target=name, email=identity.email)
    return identity


def provider_name(key: str) -> str:
    found = find_provider(key)
    return found.name if found else key


# --- for the pages ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One provider on the Account page. Not offered: the variables name it no more, and it opens nothing."""

    key: str
    name: str
    is_offered: bool
    identity: Identity | None


def rows_of(user: User) -> list[Row]:
    linked = {identity.provider: identity for identity in user.identities.order_by("pk")}
    offered = [Row(one.key, one.name, True, linked.pop(one.key, None)) for one in configured()]
    return [*offered, *(Row(key, key, False, identity) for key, identity in linked.items())]


# --- inside ----------------------------------------------------------------------------------------------------------


def _may_enter(user: User) -> bool:
    return user.is_active and user.removed_at is None


def _linked_member(provider: Provider, person: Person) -> User | None:
    """By the provider's own name for them, exactly. None where nobody is linked to it."""
    found = Identity.objects.select_related("user").filter(provider=provider.key, subject=person.subject).first()
    if found is None:
        return None
    if not _may_enter(found.user):
        raise UnknownIdentity(provider.name)
    Identity.objects.filter(pk=found.pk).update(used_at=timezone.now())
    return found.user


def _linked_by_email(request: TenantRequest, provider: Provider, person: Person) -> User:
    """The member with that address, linked from now on: where both the provider and we have seen that it is theirs."""
    if not person.email_is_verified:
        raise UnknownIdentity(provider.name)
    try:
        with transaction.atomic(durable=True):
            user = User.objects.select_for_update(no_key=True).filter(email=_spelled(person.email)).first()
            if user is None or user.email_confirmed_at is None or not _may_enter(user):
                raise UnknownIdentity(provider.name)
            _link(request, user, provider, person, how="log-in")
            return user
    except IntegrityError:
        # A second tab was quicker; or the member is linked to another person of the same provider.
        if member := _linked_member(provider, person):
            return member
        raise UnknownIdentity(provider.name) from None


def _spelled(email: str) -> str:
    """Exactly, but for A to Z: two spellings that look alike may be two people's at the provider. Python also makes the
    Kelvin sign a k.
    """
    return email.lower() if email.isascii() else email


def _link(request: TenantRequest, user: User, provider: Provider, person: Person, *, how: str) -> Identity:
    identity = Identity.objects.create(
        user=user, provider=provider.key, subject=person.subject, email=person.email, used_at=timezone.now()
    )
    record(Event.IDENTITY_LINKED, request=request, actor=user, target=provider.name, email=person.email, how=how)
    # No new password and no logging out ends this way in, so whoever did not open it themselves must hear of it.
    outbox.send(
        user.email,
        "changed",
        subject=f"An account of {provider.name} was linked",
        what=f"An account of {provider.name} opens yours from now on",
        help="unlink it, choose a new password, and log out everywhere.",
        url=url_for(request.tenant.slug, ACCOUNT),
        label="Open your account",
    )
    return identity


def _why_taken(provider: Provider, person: Person, member: int) -> IdentityTaken:
    theirs = Identity.objects.filter(provider=provider.key, subject=person.subject).first()
    if theirs is None:
        return IdentityTaken(f"Another {provider.name} account is linked to you already. Unlink it first.")
    if theirs.user_id == member:
        return IdentityTaken(f"This {provider.name} account is linked to you already.")
    return IdentityTaken(
        f"This {provider.name} account is linked to another member of this workspace. Log in there with another one, "
        "and try again."
    )
