"""The members of one workspace: who they are, what role each has, and how one of them goes.

Owns every change of a member's role and the way out. Who may do what to whom is tenants.roles' to say; it is asked here
of the rows as they are once they are locked, for a page that was opened yesterday knows an older role. How somebody
comes in: tenants.users.invitations. Must not touch what a member made: that stays the workspace's.

    ApiError
     ├─ Forbidden            403: the role of who asks does not reach that far
     ├─ NotFound             404: nobody with that number is in this workspace
     └─ LastOwner            409 last_owner
"""

from __future__ import annotations

from http import HTTPStatus

from django.conf import settings
from django.db import transaction
from django.db.models import Max, Q, QuerySet
from django.utils import timezone
from django.utils.module_loading import import_string

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.context import current_tenant
from tenants.http import ApiError, Forbidden, NotFound, TenantRequest
from tenants.roles import Action, Role, may_act_on, rank, roles_to_give
from tenants.users import directory
from tenants.users.addresses import confirm
from tenants.users.browsers import end_sessions
from tenants.users.links import end_links
from tenants.users.models import ApiKey, Identity, Invitation, RecoveryCode, Totp, User


class LastOwner(ApiError):
    """Without an owner nobody could give the workspace one again."""

    status = HTTPStatus.CONFLICT
    code = "last_owner"
    message = "This is the workspace’s only owner. Hand the workspace over to another member first."


def members() -> list[User]:
    """Who is in: the highest role first. Each has `last_seen_at`, None where no browser of theirs is logged in."""
    found = User.objects.filter(is_active=True).annotate(last_seen_at=Max("sessions__seen_at")).order_by("email")
    return sorted(found, key=lambda member: rank(member.role))


def former_members() -> QuerySet[User]:
    """Who was removed or has left, the last one first."""
    return User.objects.filter(is_active=False).exclude(removed_at=None).order_by("-removed_at", "-pk")


def change_role(request: TenantRequest, pk: int, *, role: str) -> User:
    with transaction.atomic(durable=True):
        actor, member, rows = _locked(request, pk)
        if not may_act_on(actor.role, member.role) or role not in roles_to_give(actor.role):
            raise Forbidden("Your role does not reach far enough to give or take this one. An owner can.")
        _change(request, member, role, rows)
    return member


def give_role(email: str, *, role: str) -> User:
    """By an operator's command, such as for a workspace whose owner cannot be asked any more. Raises NotFound where no
    member has this address, and LastOwner.
    """
    tenant = current_tenant()
    assert tenant is not None  # the command is inside it
    with transaction.atomic(durable=True):
        found = User.objects.with_email(email)
        rows = _lock(*([found.pk] if found else []))
        member = next((user for user in rows if found and user.pk == found.pk), None)
        if member is None:
            raise NotFound
        _change(None, member, role, rows)
        # Whoever was made by createsuperuser is not found there yet.
        directory.note(tenant, member.email)
    return member


def hand_over(request: TenantRequest, pk: int, *, steps_down: bool) -> User:
    """Make another member an owner. Who asks goes on as an owner or, where they step down, as an admin."""
    with transaction.atomic(durable=True):
        actor, member, rows = _locked(request, pk)
        if not actor.may(Action.HAND_OVER):
            raise Forbidden("Only an owner can hand the workspace over.")
        if member.role != Role.OWNER:
            _change(request, member, Role.OWNER, rows)
            record(Event.HANDED_OVER, request=request, target=member.email, steps_down=steps_down)
        if steps_down and member.pk != actor.pk:
            _change(request, actor, Role.ADMIN, rows)
    return member


def remove(request: TenantRequest, pk: int) -> User:
    with transaction.atomic(durable=True):
        actor, member, rows = _locked(request, pk)
        if not may_act_on(actor.role, member.role):
            raise Forbidden("Your role does not allow removing this member. An owner can.")
        _show_out(request, member, rows, Event.REMOVED)
    return member


def leave(request: TenantRequest) -> None:
    with transaction.atomic(durable=True):
        actor, _, rows = _locked(request, request.user.pk)
        _show_out(request, actor, rows, Event.LEFT)


def end_ways_in(user: User) -> None:
    """Everything by which this person gets in, but the password, which is the caller's to replace: at once, at web and
    at the plane, for each request reads the rows. In the caller's transaction.
    """
    ApiKey.objects.filter(user=user, revoked_at=None).update(revoked_at=timezone.now(), sealed_secret="")
    end_sessions(user)
    end_links(user)
    for model in (Identity, Totp, RecoveryCode):
        model.objects.filter(user=user).delete()
    user.second_step_at = None


def in_words(role: str) -> str:
    """As a sentence goes on: "an owner"."""
    return f"{'an' if role[:1] in 'aeiou' else 'a'} {role}"


def _locked(request: TenantRequest, pk: int) -> tuple[User, User, list[User]]:
    """Who asks, the member with that number, and with them all owners."""
    rows = _lock(request.user.pk, pk)
    by_pk = {user.pk: user for user in rows}
    if request.user.pk not in by_pk:
        raise Forbidden("You are no longer a member of this workspace.")
    if pk not in by_pk:
        raise NotFound("This person is not in the workspace any more, so nothing was changed.")
    return by_pk[request.user.pk], by_pk[pk], rows


def _lock(*pks: int) -> list[User]:
    """These members, and with them all owners: as they are now, until the transaction ends.

    Always all owners, and in one order. Otherwise two owners who remove each other at the same moment would each find
    the other still there, and leave a workspace without any; and two changes could wait for each other for ever.
    """
    # NO KEY: a row that refers to a member, such as an answer's that is just being settled, need not wait.
    rows = User.objects.select_for_update(no_key=True)
    return list(rows.filter(Q(pk__in=pks) | Q(role=Role.OWNER), is_active=True).order_by("pk"))


def _change(request: TenantRequest | None, member: User, role: str, rows: list[User]) -> None:
    if member.role == role:
        return
    _leave_an_owner(member, rows)
    before, member.role = member.role, role
    member.save(update_fields=["role"])
    _end_invitations(request, member)
    via = "" if request else "command"
    record(Event.ROLE_CHANGED, request=request, target=member.email, via=via, before=before, after=role)
    if role == Role.OWNER and member.email_confirmed_at is not None:
        # An owner's confirmed address may be worth more than the member's that it was.
        confirm(member, member.email, request)


def _show_out(request: TenantRequest, member: User, rows: list[User], event: Event) -> None:
    _leave_an_owner(member, rows)
    # First, for the trail names who asks, and that may be who goes.
    record(event, request=request, target=member.email, role=member.role)
    end_ways_in(member)
    member.set_password(None)
    member.is_active, member.removed_at = False, timezone.now()
    member.save(update_fields=["password", "is_active", "removed_at", "second_step_at"])
    _end_invitations(request, member)
    directory.forget(request.tenant, member.email)
    for name in settings.ON_MEMBER_GONE:
        import_string(name)(member)


def _leave_an_owner(member: User, rows: list[User]) -> None:
    """Raises LastOwner where this member is the only one, and is about to be none."""
    others = [user for user in rows if user.role == Role.OWNER and user.pk != member.pk]
    if member.role == Role.OWNER and not others:
        raise LastOwner


def _end_invitations(request: TenantRequest | None, member: User) -> None:
    """Those that this member sent and could not send any more: what they may not give, nobody gets from them."""
    still = roles_to_give(member.role, Action.INVITE) if member.is_active else ()
    sent = Invitation.objects.filter(invited_by=member, accepted_at=None, revoked_at=None)
    for invitation in sent.exclude(role__in=still).order_by("email"):
        invitation.revoked_at = timezone.now()
        invitation.save(update_fields=["revoked_at"])
        via, because = "" if request else "command", f"{member.email} may not"
        record(Event.INVITATION_REVOKED, request=request, target=invitation.email, via=via, because=because)
