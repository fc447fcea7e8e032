"""A conversation's messages as a tree, and the one branch of it that a page shows. Pure.

Owns which messages stand on a branch and which others could stand in their place. Must not read or write rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar


class Node(Protocol):
    pk: Any
    parent_id: Any


class Written(Node, Protocol):
    role: Any
    hold: Any


N = TypeVar("N", bound=Node)


def in_line(messages: Iterable[Written]) -> dict[int, int]:
    """The parents of those that were written one behind the other without naming any, by number: by the release before
    there were branches, which serves on beside this one during an upgrade, or by a builder's own code.

    An answer of ours names its question. One that names neither it nor its hold is such a one, and so is its question.
    """
    found: dict[int, int] = {}
    ordered = sorted(messages, key=lambda message: message.pk)
    is_next_found = False
    for before, message in reversed(list(pairwise(ordered))):
        is_answer = message.role == "assistant"
        is_next_found = message.parent_id is None and (message.hold is None if is_answer else is_next_found)
        if is_next_found:
            found[message.pk] = before.pk
    return found


@dataclass(frozen=True, slots=True)
class Shown(Generic[N]):
    """A message on the branch. `place` of `count`: which of those that follow the same message it is, from 1."""

    message: N
    place: int
    count: int
    before_id: int | None
    after_id: int | None


class Tree(Generic[N]):
    """All messages of one conversation. One whose parent is gone counts as a first message."""

    def __init__(self, messages: Iterable[N]) -> None:
        self._by_id = {message.pk: message for message in sorted(messages, key=lambda message: message.pk)}
        self._children: dict[int | None, list[int]] = {}
        for message in self._by_id.values():
            self._children.setdefault(self._parent(message), []).append(message.pk)

    def __contains__(self, pk: int) -> bool:
        return pk in self._by_id

    def get(self, pk: int | None) -> N | None:
        return None if pk is None else self._by_id.get(pk)

    def branch(self, last: int | None) -> list[Shown[N]]:
        """From the first message to `last`; empty for None."""
        found: list[Shown[N]] = []
        met: set[int] = set()  # whatever rows say, nobody walks in a circle
        while last is not None and last not in met and last in self._by_id:
            met.add(last)
            found.append(self.shown(last))
            last = self._parent(self._by_id[last])
        return found[::-1]

    def shown(self, pk: int) -> Shown[N]:
        """A message of the tree with its place, as a branch has it."""
        message = self._by_id[pk]
        siblings = self._children[self._parent(message)]
        at = siblings.index(pk)
        return Shown(
            message,
            place=at + 1,
            count=len(siblings),
            before_id=siblings[at - 1] if at else None,
            after_id=siblings[at + 1] if at + 1 < len(siblings) else None,
        )

    def newest_under(self, pk: int | None) -> int | None:
        """The newest message among `pk` and all that follows it; None is the conversation's beginning."""
        met: set[int] = set() if pk is None else {pk}
        left = [pk]
        while left:
            children = set(self._children.get(left.pop(), [])) - met
            met |= children
            left.extend(children)
        return max(met, default=None)

    def _parent(self, message: N) -> int | None:
        return message.parent_id if message.parent_id in self._by_id else None
