"""Requests under an Idempotency-Key, for plain functions: each is bought once, and answered again.

    asked = request_of(request.asker, "haiku", key, {"topic": topic})
    with once(asked) as found:
        if isinstance(found, Told):
            return JsonResponse(found.answer, status=found.status)
        return JsonResponse(write_haiku(topic, claim=found))  # `guarded` and `reserve` take a claim

Inside the guarded function, before it is settled, `claim.tell = lambda settled: Told(200, {…})` says what a repeat is
answered, in JSON; without it a repeat learns only what was charged.

Owns `once`, and what makes two bodies the same. How it is decided: billing.engine.repeats. Must not know what is
bought.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

from billing.engine.loop import here, refuse_in_transaction, run
from billing.engine.repeats import Claim, Request, Told, claim_or_told
from tenants.resolve import Asker

__all__ = ["Claim", "Request", "Told", "once", "request_of"]

# Each that waits holds a thread of its worker, and is not told when its reader leaves. So many of one workspace, by
# however many keys: with a few keys it would take every thread from the others.
WAIT_SECONDS = 30.0
MOST_WAITING = 4


def request_of(asker: Asker, route: str, key: str, body: dict[str, Any]) -> Request:
    """The request that the key names: a member's, by whichever of their keys or sessions.

    `route` is the name of what is asked for, of at most 40 letters; the same key on another route is another request.
    Raises Invalid, a 400, for a key that is none.
    """
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
    return Request(asker.tenant.schema_name, asker.user_id, route, key, fingerprint)


@contextmanager
def once(request: Request) -> Iterator[Claim | Told]:
    """The claim to make the request's one call, given back where the block ends before it; or what was answered.

    Make the call inside: a reservation that is handed on under a claim is refused when it is dispatched later.
    Raises IdempotencyConflict, IdempotencyLost, RateLimited, StillUnderWay or Unavailable.
    """
    refuse_in_transaction()
    # Whoever waits for another's answer must not keep a connection meanwhile.
    connection.close()
    found = run(_found(request))
    try:
        yield found
    finally:
        # Also of a block that ended well and bought nothing: its repeats would wait for an answer that never comes.
        if isinstance(found, Claim) and not found.is_dispatched:
            run(_given_back(found))


async def _found(request: Request) -> Claim | Told:
    return await claim_or_told(here(), request, seconds=WAIT_SECONDS, most_of_workspace=MOST_WAITING)


async def _given_back(claimed: Claim) -> None:
    claimed.give_back()
