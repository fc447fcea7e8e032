"""The subject of a call: who is charged for it, level by level, and the scopes that this makes. Pure.

The same subject for decide, reserve and the pages, and for each message of a conversation: a ledger at the authority is
checked only where a call's scopes name it. Must not know which ledgers there are.

    tenant      the account's id at the authority
    workspace   the seat: user-<id>, or system for work that no member asked for; always there
    app         the feature: chat, summarize, a builder's own
    workflow    the conversation, only where it has a limit of its own
    agent       key-<id>, where a program calls; below the seat, so that a key never escapes its member's limits
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

LEVELS = ("tenant", "workspace", "app", "workflow", "agent", "toolset")
# A job's or a command's seat. It has a name, for a call without a seat would escape every limit below the tenant.
SYSTEM = "system"
# The features that are here in every installation: a limit of a key is for each of them that its scopes allow.
FEATURES = ("chat", "summarize", "api")

# The authority accepts more in a subject, but gives no ledger to a scope with an id beyond these.
_ID = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?"
_A_VALUE = re.compile(_ID)
_MET_BY_CALLS = re.compile(
    rf"tenant:{_ID}(/workspace:(user-[0-9]+|{SYSTEM})(/app:{_ID}(/workflow:{_ID})?(/agent:key-[0-9]+)?)?)?"
)


class NoCallMeets(ValueError):
    """A ledger at a scope that no call of ours names. It would look like a limit and limit nothing."""

    def __init__(self, scope: str) -> None:
        super().__init__(
            f"No call can meet a ledger at {scope}. Below tenant:<id> write workspace:user-<id>, then app:<feature>, "
            "then workflow:<id> or agent:key-<id> or both: every call names its seat and its feature."
        )


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as a call's subject has it. `id`: in whose name it spends, the first of a chain of rotated keys.

    `limited_apps`: the features for which it has a limit. None: it has none, and any call is its member's alone.
    """

    id: int
    limited_apps: Collection[str] | None = None
    # The models that it may call, of those that its workspace may; and how much it may ask for. None: no limit.
    models: Collection[str] | None = None
    rates: Mapping[str, int] | None = None

    def has_ledger_for(self, app: str) -> bool:
        return self.limited_apps is None or app.lower() in self.limited_apps


def seat_of(user_id: int | None) -> str:
    return SYSTEM if user_id is None else f"user-{user_id}"


def subject_for(
    *,
    tenant: str,
    user_id: int | None,
    app: str,
    workflow: str | None = None,
    key_id: int | None = None,
    dimensions: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The protocol's subject, without the levels that are not there. Raises ValueError for a name it cannot carry."""
    for name, row in (("user_id", user_id), ("key_id", key_id)):
        if row is not None and (type(row) is not int or not 0 <= row < 2**63):
            raise ValueError(f"{name} {row!r}: write the number of its row, or None.")
    levels = {
        "tenant": tenant,
        "workspace": seat_of(user_id),
        "app": app,
        "workflow": workflow,
        "agent": None if key_id is None else f"key-{key_id}",
    }
    optional = {"workflow", "agent"}
    subject: dict[str, Any] = {
        level: value for level, value in levels.items() if value is not None or level not in optional
    }
    for level, value in subject.items():
        if not isinstance(value, str) or not _A_VALUE.fullmatch(value):
            raise ValueError(f"{level} {value!r}: write 1 to 128 of A-Z a-z 0-9 _ . - with no sign at either end.")
    if not dimensions:
        return subject
    if not isinstance(dimensions, dict) or len(dimensions) > 16 or not all(map(_is_dimension, dimensions.items())):
        raise ValueError(
            f"dimensions {dimensions!r}: write at most 16, each a name and a printable text of at most 256 letters."
        )
    return {**subject, "dimensions": dimensions}


def house_subject_for(*, tenant: str, user_id: int | None, key_id: int | None, **levels: Any) -> dict[str, Any]:
    """The same where the house pays: its own seat. A workspace's members and keys have none there."""
    for name, row in (("user_id", user_id), ("key_id", key_id)):
        if row is not None:
            raise ValueError(f"{name} {row!r}: the house has no members and no keys. Leave it out, or use dimensions.")
    return subject_for(tenant=tenant, user_id=None, **levels)


def _is_dimension(pair: tuple[object, object]) -> bool:
    return all(isinstance(text, str) and len(text) <= 256 and text.isprintable() for text in pair)


def scopes_of(subject: Mapping[str, Any]) -> list[str]:
    """The paths at which the authority looks for ledgers, root first: tenant:x, tenant:x/workspace:user-1, …"""
    scopes: list[str] = []
    for level in LEVELS:
        if value := subject.get(level):
            segment = f"{level}:{value.lower()}"
            scopes.append(f"{scopes[-1]}/{segment}" if scopes else segment)
    return scopes


def can_be_met(scope: str) -> bool:
    """Whether any call of ours names this scope. One that leaves out the seat, or the feature, is never looked at."""
    return _MET_BY_CALLS.fullmatch(scope) is not None


def name_of(scope: str | None) -> str:
    """What a sentence for the person who asked calls the budget at this scope."""
    level, _, value = (scope or "").rpartition("/")[2].partition(":")
    if level == "workspace":
        return "your budget in this workspace" if value != SYSTEM else "the budget for this workspace's own work"
    if level == "app":
        return f"the budget for {value}" if f"workspace:{SYSTEM}/" in str(scope) else f"your budget for {value}"
    if level == "workflow":
        return "this conversation's budget" if value.startswith("conversation-") else f"the budget for {value}"
    return "this API key's budget" if level == "agent" else "this workspace's budget"


_SEAT_OR_KEY = re.compile(r"tenant:[^/]+/workspace:user-[0-9]+(/app:[^/]+/agent:key-[0-9]+)?")
MEMBERS_WHO_RAISE = ("owner", "admin")


def raised_by(scope: str | None) -> list[str] | None:
    """Who can raise the limit at this scope: a workspace's own people those of seats and keys, and whoever runs the
    site all others. None where the scope is not known.
    """
    if scope is None:
        return None
    return list(MEMBERS_WHO_RAISE) if _SEAT_OR_KEY.fullmatch(scope) else ["operator"]
