"""Requests under an Idempotency-Key, for plain functions: each is bought once, and answered again.

    with once(request) as found:
        if isinstance(found, Told):
            return found.answer
        return buy(…, claim=found)  # `guarded` and `reserve` take a claim

Inside, before it is settled, `found.tell = lambda settled: Told(200, {…})` says what a repeat is answered; without it a
repeat learns only what was charged.

Owns `once`. How it is decided: billing.engine.repeats. Must not know what is bought.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

from billing.engine.loop import here, refuse_in_transaction, run
from billing.engine.repeats import Claim, Request, Told, claim_or_told

__all__ = ["Claim", "Request", "Told", "once"]

# Each that waits holds a thread of its worker, and is not told when its reader leaves. So many of one workspace, by
# however many keys: with a few keys it would take every thread from the others.
WAIT_SECONDS = 30.0
MOST_WAITING = 4


@contextmanager
def once(request: Request) -> Iterator[Claim | Told]:
    """The claim to make the request's one call, given back where the block fails before it; or what was answered.

    Raises IdempotencyConflict, IdempotencyLost, RateLimited, StillUnderWay or Unavailable.
    """
    refuse_in_transaction()
    # Whoever waits for another's answer must not keep a connection meanwhile.
    connection.close()
    found = run(_found(request))
    try:
        yield found
    except BaseException:
        if isinstance(found, Claim):
            run(_given_back(found))
        raise


async def _found(request: Request) -> Claim | Told:
    return await claim_or_told(here(), request, seconds=WAIT_SECONDS, most_of_workspace=MOST_WAITING)


async def _given_back(claimed: Claim) -> None:
    claimed.give_back()
