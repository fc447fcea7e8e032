"""Which of the authority's keys are warm, and who goes first where one is not.

Owns the lines before cold keys, for all threads and loops of a process. Sends nothing, and keeps no key: only its hash.

A real authority takes 0.4 s of a core to check a key that was quiet for a minute, for each call anew until one has been
answered. A crowd behind one key, or a few keys that wake together, would work each other into their time-outs. So one
call goes alone before each cold key, few of them at once, and with more patience than a call has otherwise.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from enum import Enum
from itertools import islice
from types import TracebackType
from typing import Self

from django.conf import settings

# The authority forgets after a minute; its clock began before our answer came.
WARM_SECONDS = 55.0
# Of one process, at the authority. More would only share its cores, and each would take longer.
ALONE_AT_ONCE = 4
KEPT = 4_096
# Past its time-outs: an answer that drips has none, and four of them would shut every cold door of the process.
LOST_AFTER_SECONDS = 10.0


class Word(Enum):
    """What a caller is told."""

    ALONE = "alone"  # go first, and be patient: the key is cold
    GO = "go"
    NO = "no"  # whoever went first got no answer, or the line is too long: do not send


def name_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Turn:
    """One caller's turn under a key. Use it with `with`: who leaves before it is over hands it on."""

    __slots__ = ("_doors", "_is_in_line", "lost_at", "name", "word")

    def __init__(self, doors: Doors, name: bytes, told: Future[Word] | None = None) -> None:
        self.name = name
        # Told already, it need not come into a line.
        self._is_in_line = told is None
        self.word: Future[Word] = Future() if told is None else told
        self.lost_at = float("inf")
        self._doors = doors

    def wait(self, seconds: float) -> Word:
        """What a thread is told. On a loop, await `word` instead, shielded: it belongs to the line."""
        try:
            return self.word.result(seconds)
        except TimeoutError:
            return Word.NO

    def over(self, *, answered: bool) -> None:
        """The authority has answered, whatever it said; or it has not."""
        self._doors.over(self, answered=answered)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_in_line:
            self._doors.leave(self)


class Doors:
    """Before each cold key a line, of which the first goes alone; the others hear at once what became of it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Every key is cold, nobody waits. For a forked child, which has the lines, but nobody who stands in them."""
        self._lock = threading.Lock()
        # What everybody under a warm key is told. One for each would cost more than all else that is done for them.
        self._go: Future[Word] = Future()
        self._go.set_result(Word.GO)
        self._warm_until: OrderedDict[bytes, float] = OrderedDict()
        self._lines: dict[bytes, deque[Turn]] = {}
        self._alone: set[Turn] = set()
        self._waiting: deque[Turn] = deque()  # the first of their lines, until they may go

    def all_cold(self) -> None:
        """The authority was not there: one that was started anew has every key to check again."""
        with self._lock:
            self._warm_until.clear()

    def turn(self, name: bytes) -> Turn:
        with self._lock:
            if self._warm_until.get(name, 0.0) > time.monotonic():
                return Turn(self, name, self._go)
            turn = Turn(self, name)
            for lost in [one for one in self._alone if one.lost_at < time.monotonic()]:
                self._over(lost, answered=False)
            line = self._lines.setdefault(name, deque())
            line.append(turn)
            if line[0] is turn:
                self._waiting.append(turn)
                self._let_in()
        return turn

    def over(self, turn: Turn, *, answered: bool) -> None:
        with self._lock:
            self._over(turn, answered=answered)

    def leave(self, turn: Turn) -> None:
        """Gone before its turn was over: cancelled, or tired of waiting. The next in its line takes its place."""
        with self._lock:
            line = self._lines.get(turn.name)
            if line is None or turn not in line:
                return
            heir = line[1] if line[0] is turn and len(line) > 1 else None
            was_waiting = turn in self._waiting
            line.remove(turn)
            if not line:
                del self._lines[turn.name]
            if turn in self._alone:
                self._alone.remove(turn)
                self._waiting.extendleft([heir] if heir else [])
            elif was_waiting and heir:
                self._waiting[self._waiting.index(turn)] = heir
            elif was_waiting:
                self._waiting.remove(turn)
            self._let_in()

    def _over(self, turn: Turn, *, answered: bool) -> None:
        if answered:
            self._warm(turn.name)
        line = self._lines.get(turn.name)
        if line is None or line[0] is not turn:
            return
        del self._lines[turn.name]
        for other in islice(line, 1, None):
            other.word.set_result(Word.GO if answered else Word.NO)
        self._alone.discard(turn)
        self._let_in()

    def _warm(self, name: bytes) -> None:
        self._warm_until[name] = time.monotonic() + WARM_SECONDS
        self._warm_until.move_to_end(name)
        while len(self._warm_until) > KEPT:
            self._warm_until.popitem(last=False)

    def _let_in(self) -> None:
        while self._waiting and len(self._alone) < ALONE_AT_ONCE:
            turn = self._waiting.popleft()
            self._alone.add(turn)
            patience = settings.CYCLES_CONNECT_TIMEOUT + settings.CYCLES_COLD_READ_TIMEOUT
            turn.lost_at = time.monotonic() + patience + LOST_AFTER_SECONDS
            turn.word.set_result(Word.ALONE)


doors = Doors()
os.register_at_fork(after_in_child=doors.reset)
