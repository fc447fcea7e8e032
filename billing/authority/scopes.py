"""Subjects and scopes, pure: who is charged, from the root down.

A subject names some of six levels. Each level given adds one path below the last: {tenant: acme, app: Chat} gives
`tenant:acme` and `tenant:acme/app:chat`. Paths are lower-case; levels that are not given are left out, never filled in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LEVELS = ("tenant", "workspace", "app", "workflow", "agent", "toolset")
ID = re.compile(r"(?=.{1,128}$)[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")


class ScopeError(ValueError):
    """A scope that cannot be a budget's; the text says why."""


def scopes_of(subject: Mapping[str, str | None]) -> list[str]:
    """All scopes of a subject, root first; the last one is its scope path."""
    scopes: list[str] = []
    for level in LEVELS:
        if value := subject.get(level):
            segment = f"{level}:{value.lower()}"
            scopes.append(f"{scopes[-1]}/{segment}" if scopes else segment)
    return scopes


def parse_scope(text: str, tenant_id: str) -> str:
    """A budget's scope as it is stored. Kinds must be written in lower case and in order; ids are lowered."""
    place = -1
    for segment in text.split("/"):
        kind, colon, value = segment.partition(":")
        if not colon or kind not in LEVELS or not ID.fullmatch(value):
            raise ScopeError(f"scope {text!r}: write kind:id segments such as tenant:{tenant_id}/app:chat")
        if LEVELS.index(kind) <= place:
            raise ScopeError(f"scope {text!r}: the kinds go in the order {', '.join(LEVELS)}, each once")
        place = LEVELS.index(kind)
    scope = text.lower()
    if scope.split("/")[0] != f"tenant:{tenant_id}":
        raise ScopeError(f"scope {text!r} must begin with tenant:{tenant_id}")
    return scope


def parse_pattern(text: str, tenant_id: str) -> str:
    """A policy's pattern: a scope whose last segment, or the id in it, may be `*`. The tenant must be named."""
    head, slash, last = text.rpartition("/")
    kind, _, value = last.partition(":")
    if not slash or (last != "*" and value != "*"):
        return parse_scope(text, tenant_id)
    if last == "*":
        return f"{parse_scope(head, tenant_id)}/*"
    return parse_scope(f"{head}/{kind}:any", tenant_id).rpartition("/")[0] + f"/{kind}:*"


def permits(scope_filter: list[str] | None, scope: str) -> bool:
    """Does a key's filter let it reach this scope? An entry is one segment, or `kind:*`; no entries, no filter."""
    segments = scope.split("/")
    kinds = {f"{segment.partition(':')[0]}:*" for segment in segments}
    return not scope_filter or any(entry in segments or entry in kinds for entry in scope_filter)
