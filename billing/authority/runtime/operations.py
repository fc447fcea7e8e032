"""The money operations over HTTP: read the body, call the SQL function, pass its answer on. Nothing is decided here."""

from __future__ import annotations

from billing.authority import wire
from billing.authority.errors import invalid
from billing.authority.keys import digest_of, prefix_of
from billing.authority.runtime.http import Answer, Call
from billing.authority.runtime.pool import Caller
from billing.authority.scopes import LEVELS, scopes_of


def credentials(call: Call) -> tuple[str, bytes]:
    return prefix_of(call.secret), digest_of(call.secret)


async def decide(caller: Caller, call: Call) -> Answer:
    body = wire.read(wire.Decide, call.body)
    _check_key(call, body)
    return await _answer(
        caller, "decide", *credentials(call), body.subject.tenant, body.idempotency_key, wire.digest(body),
        _scopes(body.subject), body.estimate.unit, body.estimate.amount,
        wire.dumped(body.subject), wire.dumped(body.action), call.context,
    )  # fmt: skip


async def reserve(caller: Caller, call: Call) -> Answer:
    body = wire.read(wire.Reserve, call.body)
    _check_key(call, body)
    body.grace_period_ms = 5_000 if body.grace_period_ms is None else body.grace_period_ms
    body.dry_run = bool(body.dry_run)
    return await _answer(
        caller, "reserve", *credentials(call), body.subject.tenant, body.idempotency_key, wire.digest(body),
        _scopes(body.subject), body.estimate.unit, body.estimate.amount,
        body.ttl_ms, body.grace_period_ms, body.overage_policy, body.dry_run,
        wire.dumped(body.subject), wire.dumped(body.action), wire.dumped(body.metadata), call.context,
    )  # fmt: skip


async def commit(caller: Caller, call: Call, reservation: str) -> Answer:
    body = wire.read(wire.Commit, call.body)
    _check_key(call, body)
    return await _answer(
        caller, "commit_reservation", *credentials(call), known_id(reservation), body.idempotency_key,
        wire.digest(body), body.actual.unit, body.actual.amount, wire.dumped(body.metrics), wire.dumped(body.metadata),
        call.context,
    )  # fmt: skip


async def release(caller: Caller, call: Call, reservation: str, *, operator: bool = False) -> Answer:
    body = wire.read(wire.Release, call.body)
    _check_key(call, body)
    return await _answer(
        caller, "release_reservation", *credentials(call), operator, known_id(reservation), body.idempotency_key,
        wire.digest(body), body.reason, call.context,
    )  # fmt: skip


async def extend(caller: Caller, call: Call, reservation: str) -> Answer:
    body = wire.read(wire.Extend, call.body)
    _check_key(call, body)
    return await _answer(
        caller, "extend_reservation", *credentials(call), known_id(reservation), body.idempotency_key,
        wire.digest(body), body.extend_by_ms,
    )  # fmt: skip


async def event(caller: Caller, call: Call) -> Answer:
    body = wire.read(wire.Event, call.body)
    _check_key(call, body)
    return await _answer(
        caller, "book_event", *credentials(call), body.subject.tenant, body.idempotency_key, wire.digest(body),
        _scopes(body.subject), body.actual.unit, body.actual.amount, body.overage_policy, wire.dumped(body),
        call.context,
    )  # fmt: skip


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


async def _answer(caller: Caller, operation: str, *parameters: object) -> Answer:
    status, tenant, body = await caller.call(operation, parameters)
    return Answer(status, body, tenant)


def _check_key(call: Call, body: wire.Keyed) -> None:
    wire.check_header_key(call.headers.get("x-idempotency-key"), body.idempotency_key)


def _scopes(subject: wire.Subject) -> list[str]:
    return scopes_of({level: getattr(subject, level) for level in LEVELS})
