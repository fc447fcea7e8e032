"""The page of members: who is in, with which role, who is invited, who is gone. On a tenant's host.

What it shows to whom follows from tenants.roles; what each button does is tenants.users.people's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.http import HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.utils.module_loading import import_string
from django.views.decorators.http import require_POST, require_safe

from tenants.http import ApiError, Invalid, NotFound, TenantRequest
from tenants.roles import Action, Role, may_act_on, roles_to_give
from tenants.users import drafts, invitations, people
from tenants.users.access import needs
from tenants.users.forms.members import HandOverForm, InviteForm, RoleForm
from tenants.users.models import Invitation, User
from tenants.users.pages.answers import answer


@dataclass(frozen=True)
class Row:
    """A member, and what who looks may see of them and do to them. `beside`: HTML of a room further up."""

    member: User
    is_self: bool
    may_be_changed: bool
    is_last_owner: bool
    beside: str


@dataclass(frozen=True)
class Invited:
    invitation: Invitation
    is_expired: bool
    may_be_sent: bool
    may_be_revoked: bool


@require_safe
@needs(Action.READ_MEMBERS)
def members(request: TenantRequest) -> HttpResponse:
    return members_page(request)


def members_page(
    request: TenantRequest,
    *,
    invite_form: InviteForm | None = None,
    hand_over_form: HandOverForm | None = None,
    refusal: ApiError | None = None,
) -> HttpResponse:
    """The page as who asks may see it; with a form that is to be mended, or a refusal, under that one's status."""
    user = request.user
    wrong = next((form for form in (invite_form, hand_over_form) if form and form.errors), None)
    context: dict[str, Any] = {
        "rows": _rows(request),
        "roles": roles_to_give(user.role),
        "shows_more": user.may(Action.CHANGE_MEMBERS),
        # What concerns a form is said beside its field.
        "refusal": None if wrong else refusal,
        "has_errors": wrong is not None,
    }
    if user.may(Action.INVITE):
        context["invited"] = [_invited(user, each) for each in invitations.open_ones()]
        context["invite_form"] = invite_form or InviteForm(
            roles=roles_to_give(user.role, Action.INVITE),
            initial={"role": Role.MEMBER.value, **drafts.take(request)},
        )
    if user.may(Action.HAND_OVER):
        context["hand_over_form"] = hand_over_form or HandOverForm()
    if user.may(Action.READ_FORMER):
        context["former"] = people.former_members()
    return answer(request, "users/members.html", context, wrong, refusal)


@require_POST
@needs(Action.CHANGE_MEMBERS)
def change_role(request: TenantRequest, pk: int) -> HttpResponse:
    form = RoleForm(request.POST, roles=roles_to_give(request.user.role))
    if not form.is_valid():
        return members_page(request, refusal=_unreadable(form))

    def act() -> str:
        member = people.change_role(request, pk, role=form.cleaned_data["role"])
        return f"{member.email} is {people.in_words(member.role)} now."

    return _answer(request, act)


@require_POST
@needs(Action.CHANGE_MEMBERS)
def remove(request: TenantRequest, pk: int) -> HttpResponse:
    if pk == request.user.pk:
        return leave(request)
    return _answer(request, lambda: f"{people.remove(request, pk).email} was removed.")


@require_POST
@needs(Action.ACCOUNT)
def leave(request: TenantRequest) -> HttpResponse:
    try:
        people.leave(request)
    except people.LastOwner as exc:
        return members_page(request, refusal=exc)
    logout(request)
    messages.success(request, f"You have left {request.tenant.name}.")
    return redirect("login")


@require_POST
@needs(Action.HAND_OVER)
def hand_over(request: TenantRequest) -> HttpResponse:
    form = HandOverForm(request.POST)
    if not form.is_valid():
        return members_page(request, hand_over_form=form)
    member, steps_down = form.cleaned_data["member"], form.cleaned_data["steps_down"]

    def act() -> str:
        people.hand_over(request, member.pk, steps_down=steps_down)
        return f"{member.email} is an owner now{', and you are an admin' if steps_down else ''}."

    return _answer(request, act)


def _answer(request: TenantRequest, act: Callable[[], str]) -> HttpResponse:
    """The page of members: with what was done, or with why it was not, in the place where the button was."""
    try:
        said = act()
    except (people.LastOwner, NotFound) as exc:
        return members_page(request, refusal=exc)
    messages.success(request, said)
    return redirect("members")


def _rows(request: TenantRequest) -> list[Row]:
    user = request.user
    found = people.members()
    beside = import_string(settings.MEMBERS_BESIDE)(request, found)
    owners = sum(member.role == Role.OWNER for member in found)
    return [
        Row(
            member,
            is_self=member.pk == user.pk,
            may_be_changed=may_act_on(user.role, member.role),
            is_last_owner=member.role == Role.OWNER and owners == 1,
            beside=beside.get(member.pk, ""),
        )
        for member in found
    ]


def _invited(user: User, invitation: Invitation) -> Invited:
    return Invited(
        invitation,
        is_expired=invitation.expires_at <= timezone.now(),
        may_be_sent=invitation.role in roles_to_give(user.role, Action.INVITE),
        may_be_revoked=may_act_on(user.role, invitation.role, Action.INVITE),
    )


def _unreadable(form: RoleForm) -> ApiError:
    return Invalid({"body": [str(text) for texts in form.errors.values() for text in texts]})
