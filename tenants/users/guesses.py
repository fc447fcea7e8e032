"""How often a password may be guessed.

Owns the figures of log-in's limits, in which order they are asked, and what is logged of a try. Must not see a
password, and knows an account by what was typed alone: one that does not exist is counted, made to wait and logged
like any other, so that no answer tells which exist.

A try is counted before its password is hashed and given back once it was right; otherwise forty at once would all be
hashed before the first is known to be wrong.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from django.http import HttpRequest

from tenants.http import RateLimited
from tenants.limits import Rate, Tries, address_of, give_back, is_known, key_of, masked, remember, reset, take
from tenants.spelling import normal_email
from tenants.users.hashers import WAIT_SECONDS, HashingBusy, refuse_if_full

logger = logging.getLogger(__name__)

WORDS = "Too many tries to log in."
# Who guesses one account's password from one address: eighteen in the first hour, then four an hour.
PAIR = Tries("log-in", free=5, first=1.0, factor=2.0, longest=900.0, forget_after=3600.0, words=WORDS)
# From whatever addresses: sixty an hour. Never a lock, for then any stranger could keep the owner out; the owner does
# share these, and an address's, with strangers, but not at an address where the account was logged in to before.
ACCOUNT = Rate("log-in-account", burst=50, every=60.0, words=WORDS)
# One address, whatever it guesses: a house of people behind one address mistypes less, and what is right is given back.
ADDRESS = Rate("log-in-address", burst=100, every=10.0, words=WORDS)

KNOWN = "log-in-known"
KNOWN_SECONDS = 30 * 24 * 3600.0

# One try of each address is under way in a process, and so many wait for theirs. No limit above slows who has a right
# password, such as a stranger's to a workspace of their own: one address filled all places at the thread that hashes.
WAITING = 4
_waiting = threading.BoundedSemaphore(WAITING)
_under_way: set[str] = set()
_changed = threading.Condition()


@dataclass(frozen=True)
class Guess:
    """One try to log in: within `place`, `begin`, then one of `was_right`, `was_wrong`, `was_not_made`."""

    workspace: str
    email: str
    address: str

    @classmethod
    def of(cls, request: HttpRequest, email: str) -> Guess:
        tenant = getattr(request, "tenant", None)
        return cls(tenant.slug if tenant else "", normal_email(email), address_of(request))

    @contextmanager
    def place(self) -> Iterator[None]:
        """Its address's. Raises HashingBusy where that is not free in time."""
        if not _take_place(self.address):
            self._log("not tried")
            raise HashingBusy
        try:
            yield
        finally:
            with _changed:
                _under_way.discard(self.address)
                _changed.notify_all()

    def begin(self) -> None:
        """Count it at each limit, or at none where one of them is reached. Raises RateLimited.

        Where it would not be looked at it is refused before it costs a statement.
        """
        try:
            refuse_if_full()
        except HashingBusy:
            self._log("not tried")
            raise
        counted: list[Rate | Tries] = []
        for limit in self._limits:
            try:
                take(limit, *self._who(limit))
            except RateLimited as exc:
                self._give_back(counted)
                self._log("refused", f" limit={limit.name} wait_ms={exc.retry_after_ms}")
                raise
            counted.append(limit)

    def was_right(self) -> None:
        """The pair begins anew; of the others this try alone is given back, or a stranger's would be with it."""
        reset(PAIR, *self._who(PAIR))
        self._give_back([limit for limit in self._limits if limit is not PAIR])
        self.remember()

    def remember(self) -> None:
        """That this account's people are at this address, however they got in."""
        remember(KNOWN, *self._who(PAIR), seconds=KNOWN_SECONDS)

    def is_known_now(self) -> None:
        """Who this account's person is was shown by a mail: earlier wrong guesses must not keep them out."""
        reset(PAIR, *self._who(PAIR))
        self.remember()

    def was_wrong(self) -> None:
        self._log("failed")

    def was_not_made(self) -> None:
        """The password was not looked at."""
        self._give_back(self._limits)
        self._log("not tried")

    @cached_property
    def _limits(self) -> list[Rate | Tries]:
        # The pair last: what a wider limit refuses must not make its wait longer.
        return [PAIR] if is_known(KNOWN, *self._who(PAIR)) else [ADDRESS, ACCOUNT, PAIR]

    def _who(self, limit: Rate | Tries) -> tuple[str, ...]:
        if limit is ADDRESS:
            return (self.address,)
        return (self.workspace, self.email) if limit is ACCOUNT else (self.workspace, self.email, self.address)

    def _give_back(self, limits: list[Rate | Tries]) -> None:
        for limit in limits:
            give_back(limit, *self._who(limit))

    def _log(self, what: str, more: str = "") -> None:
        """Who has the key and an e-mail can tell whose account it is, and nobody from the log alone."""
        account = key_of("log", (self.workspace, self.email)).hex()[:12]
        logger.warning(
            "Log-in %s: workspace=%s account=%s address=%s%s", what, self.workspace, account, masked(self.address), more
        )


def _take_place(address: str) -> bool:
    with _changed:
        if address in _under_way:
            if not _waiting.acquire(blocking=False):
                return False
            try:
                if not _changed.wait_for(lambda: address not in _under_way, WAIT_SECONDS):
                    return False
            finally:
                _waiting.release()
        _under_way.add(address)
        return True
