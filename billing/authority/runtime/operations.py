"""The money operations over HTTP: read the body, call the SQL function, pass its answer on. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping

from billing.authority import wire
from billing.authority.errors import invalid
from billing.authority.keys import digest_of, prefix_of
from billing.authority.runtime.http import Answer, Call
from billing.authority.runtime.pool import Caller
from billing.authority.scopes import LEVELS, scopes_of


def credentials(call: Call) -> dict[str, object]:
    return {"prefix": prefix_of(call.secret), "digest": digest_of(call.secret)}


async def decide(caller: Caller, call: Call) -> Answer:
    body = wire.read(wire.Decide, call.body)
    return await _answer(
        caller,
        "decide",
        {
            **_asked(call, body),
            **_target(body.subject),
            "unit": body.estimate.unit,
            "amount": body.estimate.amount,
            "subject": wire.dumped(body.subject),
            "action": wire.dumped(body.action),
            "context": call.context,
        },
    )


async def reserve(caller: Caller, call: Call) -> Answer:
    body = wire.read(wire.Reserve, call.body)
    body.grace_period_ms = 5_000 if body.grace_period_ms is None else body.grace_period_ms
    body.dry_run = bool(body.dry_run)
    return await _answer(
        caller,
        "reserve",
        {
            **_asked(call, body),
            **_target(body.subject),
            "unit": body.estimate.unit,
            "amount": body.estimate.amount,
            "ttl_ms": body.ttl_ms,
            "grace_ms": body.grace_period_ms,
            "policy": body.overage_policy,
            "dry_run": body.dry_run,
            "subject": wire.dumped(body.subject),
            "action": wire.dumped(body.action),
            "metadata": wire.dumped(body.metadata),
            "context": call.context,
        },
    )


async def commit(caller: Caller, call: Call, reservation: str) -> Answer:
    body = wire.read(wire.Commit, call.body)
    return await _answer(
        caller,
        "commit_reservation",
        {
            **_asked(call, body),
            "reservation": known_id(reservation),
            "unit": body.actual.unit,
            "actual": body.actual.amount,
            "metrics": wire.dumped(body.metrics),
            "metadata": wire.dumped(body.metadata),
            "context": call.context,
        },
    )


async def release(caller: Caller, call: Call, reservation: str, *, operator: bool = False) -> Answer:
    body = wire.read(wire.Release, call.body)
    return await _answer(
        caller,
        "release_reservation",
        {
            **_asked(call, body),
            "operator": operator,
            "reservation": known_id(reservation),
            "reason": body.reason,
            "context": call.context,
        },
    )


async def extend(caller: Caller, call: Call, reservation: str) -> Answer:
    body = wire.read(wire.Extend, call.body)
    return await _answer(
        caller,
        "extend_reservation",
        {**_asked(call, body), "reservation": known_id(reservation), "extend_by_ms": body.extend_by_ms},
    )


async def event(caller: Caller, call: Call) -> Answer:
    body = wire.read(wire.Event, call.body)
    return await _answer(
        caller,
        "book_event",
        {
            **_asked(call, body),
            **_target(body.subject),
            "unit": body.actual.unit,
            "actual": body.actual.amount,
            "policy": body.overage_policy,
            "details": wire.dumped(body),
            "context": call.context,
        },
    )


async def authenticate(caller: Caller, call: Call) -> str:
    """The tenant of the call's key, or a 401."""
    _, tenant, _ = await caller.call("authenticate", credentials(call))
    assert tenant is not None
    return tenant


def known_id(reservation: str) -> str | None:
    """An id of another form is none of ours: the function answers 404 to null."""
    if len(reservation) > 128:
        raise invalid("The reservation id in the path is longer than 128 characters.")
    return reservation if wire.UUID.fullmatch(reservation) else None


async def _answer(caller: Caller, operation: str, parameters: Mapping[str, object]) -> Answer:
    status, tenant, body = await caller.call(operation, parameters)
    return Answer(status, body, tenant)


def _asked(call: Call, body: wire.Keyed) -> dict[str, object]:
    """Whose call it is, and by what a repeat of it is known."""
    wire.check_header_key(call.headers.get("x-idempotency-key"), body.idempotency_key)
    return {**credentials(call), "key": body.idempotency_key, "request": wire.digest(body)}


def _target(subject: wire.Subject) -> dict[str, object]:
    scopes = scopes_of({level: getattr(subject, level) for level in LEVELS})
    return {"subject_tenant": subject.tenant, "scopes": scopes}
