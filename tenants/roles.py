"""What each role may see and do: one table. Pure, and the only place that knows.

Owns the roles, the actions, which role may what, and who may act on whom. Views and operations name the action they
are (`tenants.users.access.needs`); templates ask by `may`. A key's scopes are actions too, so a key may do what its
scopes and its owner's role both allow. Must not read a request, a row or a setting.

To change what a role may do, change MAY; to add something that is to be allowed or not, add an Action and its place in
MAY, and in SCOPES where keys are to be made for it. To add a role, add it to Role, to MAY and, where it stands among
the others, to RANK. No migration is needed: rows keep a role's value as text.
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class Action(StrEnum):
    """What is allowed or not. The value is what a key's scopes, the audit trail and a refusal call it."""

    ACCOUNT = "account"  # one's own e-mail, password, second step, sessions; and leaving
    READ_BUDGET = "budget:read"
    READ_CHATS = "chat:read"  # one's own conversations
    OWN_KEYS = "keys:own"  # make, rotate and revoke keys of one's own
    READ_MEMBERS = "members:read"
    CHAT = "chat"
    SUMMARIZE = "summarize"
    ALL_KEYS = "keys:all"  # see and revoke everybody's
    INVITE = "members:invite"
    CHANGE_MEMBERS = "members:change"  # roles, and removing; `may_act_on` says whose
    SET_LIMITS = "limits:set"  # of seats and keys
    READ_FORMER = "chat:read_former"  # conversations of people who were removed or have left
    READ_TRAIL = "audit:read"
    EDIT_WORKSPACE = "workspace:edit"
    SECURE_WORKSPACE = "workspace:secure"  # require a second step of everybody
    HAND_OVER = "workspace:hand_over"
    DELETE_WORKSPACE = "workspace:delete"


_VIEWER = frozenset(
    {Action.ACCOUNT, Action.READ_BUDGET, Action.READ_CHATS, Action.OWN_KEYS, Action.READ_MEMBERS},
)
_MEMBER = _VIEWER | {Action.CHAT, Action.SUMMARIZE}
_ADMIN = _MEMBER | {
    Action.ALL_KEYS,
    Action.INVITE,
    Action.CHANGE_MEMBERS,
    Action.SET_LIMITS,
    Action.READ_FORMER,
    Action.READ_TRAIL,
    Action.EDIT_WORKSPACE,
}
_OWNER = _ADMIN | {Action.SECURE_WORKSPACE, Action.HAND_OVER, Action.DELETE_WORKSPACE}

MAY: dict[Role, frozenset[Action]] = {
    Role.OWNER: _OWNER,
    Role.ADMIN: _ADMIN,
    Role.MEMBER: _MEMBER,
    Role.VIEWER: _VIEWER,
}

# The highest first.
RANK = (Role.OWNER, Role.ADMIN, Role.MEMBER, Role.VIEWER)

# What a key can be made for: the actions that the API has operations for.
SCOPES = (Action.CHAT, Action.SUMMARIZE, Action.READ_BUDGET)


def may(role: str, action: Action) -> bool:
    """A role that the table does not know, of an older or a newer release, may nothing."""
    return role in MAY and action in MAY[Role(role)]


def may_with_key(role: str, scopes: list[str] | None, action: Action) -> bool:
    """What a key may: its scopes' actions that its owner's role has. None, a key of before scopes: all SCOPES."""
    granted = SCOPES if scopes is None else scopes
    return action in SCOPES and action in granted and may(role, action)


def rank(role: str) -> int:
    """Where a role stands; one that this release does not know comes last."""
    return RANK.index(Role(role)) if role in RANK else len(RANK)


def may_act_on(role: str, other: str, action: Action = Action.CHANGE_MEMBERS) -> bool:
    """Whether who has `role` may do this to somebody with the role `other`: to nobody who stands above them."""
    return may(role, action) and rank(other) >= rank(role)


def roles_to_give(role: str, action: Action = Action.CHANGE_MEMBERS) -> tuple[Role, ...]:
    """The roles that who has `role` may give, by a change or by Action.INVITE: none above their own."""
    return RANK[rank(role) :] if may(role, action) else ()


def role_choices() -> list[tuple[str, str]]:
    """For the columns and forms that hold a role. A function, so that another role is no migration of these columns."""
    return [(role.value, role.value.capitalize()) for role in RANK]
