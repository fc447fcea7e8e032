"""Rows that are asked for with every request, kept in each process until the database says that they have changed.

Owns `fetched` and `afetched`, which read a Query's first row; what is kept, for how long; what was `made` of kept rows
and holds while they do; and the thread that listens, on whose connection others hear of what is theirs (`hear`). Must
not know what a row means: who asks says how its row may be kept, and judges a kept row as one just read.

A kept row counts only while the listener has just been shown that it hears everything: each trigger tells of its change
(tenants.migrations.0006_told_of_changes) in the transaction that makes it, and Postgres hands a session what was
committed before its statement together with that statement's answer. Where that is in doubt, because the connection is
lost, slow, or led through a pooler that drops what it is told, each row is read as if nothing were kept.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from django.conf import settings
from psycopg.sql import SQL, Identifier

from tenants.connections import listening_params

logger = logging.getLogger(__name__)

Row = Sequence[Any]
Params = tuple[str | int, ...]
Fetch = Callable[[str, Params], Awaitable[list[Any]]]

CHANNEL = "tenants_changed"
# How the listener's session is called, before its process's number: for an operator who looks at the sessions.
NAME = "tenants.kept"
# Rows of a process, about 2 KB each. The one that was kept first goes first.
MOST = 4_096
# Of what is made of them, with a tenant and a member each.
MOST_MADE = 1_024
# A kept row counts for so long after the listener was shown to hear, which it asks for so often.
PROVEN_SECONDS = 0.5
ASK_SECONDS = 0.25
# Nobody has asked for a row for so long: the listener stops asking, too.
IDLE_SECONDS = 10.0
# Then what others hear on it is still to be heard: a connection that is silently dead is found by asking it something.
ASK_IDLE_SECONDS = 30.0
CONNECT_AGAIN_SECONDS = 1.0
# A pooler that drops notifications will go on to do so.
TRY_POOLER_AGAIN_SECONDS = 60.0
PROOF_SECONDS = 3.0

# Whether this still is the session that listens. A pooler may answer with another.
_HEARS = f"SELECT pg_backend_pid() WHERE '{CHANNEL}' IN (SELECT pg_listening_channels())"


class Query(NamedTuple):
    """A statement whose first row is wanted. Its text and parameters are what a kept row is found by, so that one
    schema's row never answers for another's.
    """

    sql: str
    params: Params
    keep: Keep | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """How a row may be kept: whose changes end it, as triggers name them, and for how many seconds it is true without
    one (none: it is not kept).

    `only_with`: the query without whose row, kept as well, this one is not used. Where a stranger may name a tenant,
    an answer that comes sooner for one that is known would tell them so.
    """

    tags: Callable[[Row], tuple[str, ...]]
    seconds: Callable[[Row], float]
    only_with: Callable[[Row], Query] | None = None


Told = Callable[[str], None]
# Who else hears on the listener's connection, by channel.
_others: dict[str, list[Told]] = {}


def hear(channel: str, told: Told) -> Callable[[], None]:
    """Have `told` called with what is notified on this channel, until what is given back is called: on the listener's
    thread, so that it must neither take long nor raise. What is told while there is no connection is not heard.
    """
    _others[channel] = [*_others.get(channel, ()), told]
    _rows.be_heard()

    def stop() -> None:
        _others[channel] = [other for other in _others.get(channel, ()) if other is not told]

    return stop


def _are_there_others() -> bool:
    return any(list(_others.values()))  # at one go: another thread may add to it


# What triggers call what has changed.
_TENANT, _SCHEMA = "tenant:", "schema:"


def of_tenant(tenant_id: int) -> str:
    return f"{_TENANT}{tenant_id}"


def of_schema(schema: str) -> str:
    return f"{_SCHEMA}{schema}"


def fetched(query: Query, fetch: Callable[[str, Params], Row | None]) -> Row | None:
    """The query's first row, or None: a kept one, or what `fetch` reads. Not to be changed by whoever gets it."""
    rows = _rows
    if query.keep is not None and (kept := rows.get(query)) is not None:
        return kept
    before = rows.mark() if query.keep is not None else None
    row = fetch(query.sql, query.params)
    rows.keep(query, row, before)
    return row


async def afetched(query: Query, fetch: Fetch, used: Used | None = None) -> Row | None:
    """The same on a loop, where `fetch` reads all rows. What is kept of it is noted in `used`."""
    rows = _rows
    found = rows.found(query) if query.keep is not None else None
    if found is not None:
        row: Row | None = found.copied()
    else:
        before = rows.mark() if query.keep is not None else None
        read = await fetch(query.sql, query.params)
        row = read[0] if read else None
        found = rows.keep(query, row, before)
    if used is not None:
        used.append(found)
    return row


def made(name: Hashable) -> Any | None:
    """What was given to `keep_made` under this name, while every row of which it was made counts still."""
    return _rows.made(name)


def keep_made(name: Hashable, what: Any, used: Used) -> None:
    """Keep what was made of what the name says and of these rows alone. It is given to everybody who asks for it, and
    must be changed by nobody. Not kept where one of its rows is not, or where it has none.
    """
    _rows.keep_made(name, what, used)


# How many changes had been told, and when that was.
Mark = tuple[int, float]


@dataclass(frozen=True, slots=True)
class _Kept:
    row: Row
    tags: tuple[str, ...]
    until: float
    # The number of changes that had been told when it was asked for: one that is told later may not be in it.
    changes: int

    def copied(self) -> Row:
        """Lists are the columns' own: of one that is changed, nobody else may know."""
        return tuple(value.copy() if type(value) in (list, dict) else value for value in self.row)


# The kept rows that something was made of, as they were read; None for what is not kept.
Used = list["_Kept | None"]


class Rows:
    """What a process keeps. Each method is called by any thread: each does one thing to one dict, or is the
    listener's alone.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, Params], _Kept] = {}
        self._made: dict[Hashable, tuple[Any, list[_Kept]]] = {}
        self._changes = self._all_changed = 0
        self._changed: dict[str, int] = {}
        self._heard_at = self.asked_at = float("-inf")
        self._listener: threading.Thread | None = None
        self._starting = threading.Lock()

    def get(self, query: Query) -> Row | None:
        found = self.found(query)
        return None if found is None else found.copied()

    def found(self, query: Query) -> _Kept | None:
        if not settings.LOOKUPS_KEPT_SECONDS or not self._hears():
            return None
        found = self._counting(query)
        if found is None:
            return None
        assert query.keep is not None  # it was kept by the same query
        if query.keep.only_with is not None and self._counting(query.keep.only_with(found.row)) is None:
            return None
        return found

    def mark(self) -> Mark | None:
        """Before a row is read: what `keep` needs; None where it could not be told of a change to it."""
        if not settings.LOOKUPS_KEPT_SECONDS or not self._hears():
            return None
        return self._changes, time.monotonic()

    def keep(self, query: Query, row: Row | None, mark: Mark | None) -> _Kept | None:
        """Never that there is no row: nothing tells of one that is new."""
        if mark is None or row is None or query.keep is None:
            return None
        seconds = min(query.keep.seconds(row), settings.LOOKUPS_KEPT_SECONDS)
        if seconds <= 0:
            return None
        changes, asked_at = mark
        _make_room(self._kept, MOST)
        kept = self._kept[query[:2]] = _Kept(row, query.keep.tags(row), asked_at + seconds, changes)
        return kept

    def made(self, name: Hashable) -> Any | None:
        if not settings.LOOKUPS_KEPT_SECONDS or not self._hears():
            return None
        found = self._made.get(name)
        if found is None:
            return None
        what, rows = found
        if all(map(self._counts, rows)):
            return what
        self._made.pop(name, None)
        return None

    def keep_made(self, name: Hashable, what: Any, used: Used) -> None:
        rows = [row for row in used if row is not None]
        if rows and len(rows) == len(used):
            _make_room(self._made, MOST_MADE)
            self._made[name] = what, rows

    def _counting(self, query: Query) -> _Kept | None:
        found = self._kept.get(query[:2])
        if found is None:
            return None
        if self._counts(found):
            return found
        self._kept.pop(query[:2], None)
        return None

    def _counts(self, kept: _Kept) -> bool:
        changed = self._changed
        for tag in kept.tags:
            if changed.get(tag, 0) > kept.changes:
                return False
        # Last, for `forget` sets it before it empties the other.
        return kept.until > time.monotonic() and kept.changes >= self._all_changed

    def _hears(self) -> bool:
        self.asked_at = now = time.monotonic()
        self.be_heard()
        return now - self._heard_at < PROVEN_SECONDS

    # --- by the listener ---

    def be_heard(self) -> None:
        """There is a listener."""
        if self._listener is not None:
            return
        with self._starting:
            if self._listener is None:
                self._listener = threading.Thread(target=_Listener(self).run, name=NAME, daemon=True)
                self._listener.start()

    def note_change(self, tag: str) -> None:
        """Numbered first and then noted: a row that is asked for between the two has the change in it."""
        self._changes += 1
        # A word that this code does not know is of another release, and may mean anything.
        if not tag.startswith((_TENANT, _SCHEMA)) or len(self._changed) > MOST:
            self.forget()
        else:
            self._changed[tag] = self._changes

    def forget(self) -> None:
        """Everything that is kept, and that is being read."""
        self._changes += 1
        self._all_changed = self._changes
        self._kept, self._changed, self._made = {}, {}, {}

    def note_hearing(self, since: float) -> None:
        """All that was committed before `since` has been noted."""
        self._heard_at = since


def _make_room(kept: dict[Any, Any], most: int) -> None:
    """For one more: what was kept first goes first."""
    if len(kept) >= most:
        with suppress(RuntimeError, StopIteration):  # another thread was at it
            kept.pop(next(iter(kept)), None)


class _Deaf(Exception):
    """The session is not, or no longer, told of what is committed."""


class _Listener:
    """The thread with a connection of its own. It dies with its process, and is not there in a fork."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._is_said = False
        self._channels: set[str] = set()
        self._asked_at = float("-inf")

    def run(self) -> None:
        while True:
            pause = CONNECT_AGAIN_SECONDS
            try:
                if time.monotonic() - self._rows.asked_at < IDLE_SECONDS or _are_there_others():
                    self._listen()
            except _Deaf as deaf:
                pause = TRY_POOLER_AGAIN_SECONDS
                self._say(str(deaf))
            except (psycopg.Error, OSError) as exc:
                self._say(type(exc).__name__)
            except Exception:  # the thread's edge: it must go on
                logger.exception("The listener failed")
            time.sleep(pause)

    def _say(self, why: str) -> None:
        """Once, and not with every try."""
        if not self._is_said:
            logger.warning(
                "Hosts, keys and accounts are read with each request, and no other process is heard: %s", why
            )
        self._is_said = True

    def _listen(self) -> None:
        # Where the other end is gone without a word, its rows count no more long before the connection is given up.
        params = listening_params(f"{NAME} {os.getpid()}")
        try:
            with psycopg.connect(**params) as own:
                own.execute(f"LISTEN {CHANNEL}")
                self._channels = {CHANNEL}
                _prove(own, params)
                session = own.execute(_HEARS).fetchone()
                self._is_said = False
                while True:
                    self._listen_to_others(own)
                    self._ask(own, session)
                    for told in own.notifies(timeout=ASK_SECONDS):
                        self._note(told)
        finally:
            self._rows.note_hearing(float("-inf"))
            self._rows.forget()

    def _listen_to_others(self, own: psycopg.Connection[Any]) -> None:
        for channel in [channel for channel in list(_others) if channel not in self._channels]:
            own.execute(SQL("LISTEN {}").format(Identifier(channel)))
            self._channels.add(channel)

    def _ask(self, own: psycopg.Connection[Any], session: Row | None) -> None:
        now = time.monotonic()
        is_idle = now - self._rows.asked_at > IDLE_SECONDS
        if is_idle and not (_are_there_others() and now - self._asked_at > ASK_IDLE_SECONDS):
            return
        self._asked_at = now
        if session is None or own.execute(_HEARS).fetchone() != session:
            raise _Deaf("a pooler has put another session in the listener's place")
        for told in own.notifies(timeout=0):
            self._note(told)
        self._rows.note_hearing(now)

    def _note(self, told: psycopg.Notify) -> None:
        if told.channel != CHANNEL:
            for other in _others.get(told.channel, ()):
                other(told.payload)
        elif not told.payload.startswith(_PROOF):
            self._rows.note_change(told.payload)


_PROOF = "proof:"


def _prove(own: psycopg.Connection[Any], params: dict[str, Any]) -> None:
    """That the session is told while it asks for nothing. By another session: in a transaction of its own even a pooler
    that drops what comes between transactions would pass it on.
    """
    proof = f"{_PROOF}{secrets.token_hex(8)}"
    with psycopg.connect(**params) as other:
        other.execute("SELECT pg_notify(%s, %s)", [CHANNEL, proof])
    for told in own.notifies(timeout=PROOF_SECONDS):
        if told.payload == proof:
            return
    raise _Deaf("the database does not tell of changes here, as behind a pooler in transaction mode")


_rows = Rows()


def _forget_in_fork() -> None:
    """No thread is in a fork, and its parent's connection must not be used there."""
    global _rows
    _rows = Rows()
    _others.clear()


os.register_at_fork(after_in_child=_forget_in_fork)
