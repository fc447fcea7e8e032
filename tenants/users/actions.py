"""Which action a view of the API is, and whether who asks may do it: decided once, for web and for the plane.

Asks no database. A view says what it is by `tenants.users.access.needs`; one that says nothing is taken to buy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tenants.http import Forbidden
from tenants.roles import SCOPES, Action, may

if TYPE_CHECKING:
    from tenants.resolve import Asker


def action_of(view: Callable[..., Any] | None, method: str | None) -> Action:
    """CHAT where nothing is said, so that an endpoint that was forgotten is not open to a key that may only read."""
    named: Action | None = mark_of(view, method, "needs")
    return named or Action.CHAT


def mark_of(view: Callable[..., Any] | None, method: str | None, name: str) -> Any:
    """What a decorator has written on a view under this name, or on an operation of ninja; None where nothing was.

    Ninja serves all operations of a path by one function, which holds them in its closure.
    """
    if (own := getattr(view, name, None)) is not None:
        return own
    for cell in getattr(view, "__closure__", None) or ():
        for operation in getattr(cell.cell_contents, "operations", ()):
            if method in operation.methods:
                return getattr(operation.view_func, name, None)
    return None


def allow(asker: Asker, action: Action) -> None:
    """Raises Forbidden, which says whether the key or the role is what is missing."""
    if asker.may(action):
        return
    if not may(asker.role, action):
        whose = "Your role" if asker.by_session else "The role of this key's owner"
        why = f"{whose} in this workspace ({asker.role}) does not allow this. An owner or an admin can change it."
    elif action in SCOPES:
        why = f"This key was not made for {action.value}. Use a key that has this scope, or make one."
    else:
        why = "No key can do this. Log in on the workspace's own address."
    raise Forbidden(why, needs=action.value)
