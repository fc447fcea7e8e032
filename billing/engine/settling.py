"""Settling one call: what it used becomes a commit at the authority and a line in the tenant's schema, once.

Owns the steps, for the process that made the call and for the sweep that finishes a dead one's. A body comes from the
hold's row alone, so a repeat sends the same bytes. Must not decide what was used.
"""

from __future__ import annotations

import functools
import json
import logging
import operator
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from runcycles.response import CyclesResponse

from billing.engine.authority import (
    Authority,
    Landed,
    Payer,
    amount,
    amount_of,
    budget_of,
    code_of,
    landed,
    pause_after,
)
from billing.engine.rules import shares
from billing.engine.statements import in_schema, settle_statement
from billing.engine.store import Store
from billing.outcomes import Outcome
from billing.prices import Usage
from billing.subjects import scopes_of

logger = logging.getLogger(__name__)

# Twice: with the tenant's own rows, and the money alone where those cannot be written.
_OWN_ROWS_REFUSED = (psycopg.IntegrityError, psycopg.DataError, psycopg.ProgrammingError)


@dataclass(slots=True)
class Slice:
    """One amount held. The first has the hold's own name, the others `<hold>:<n>`."""

    n: int
    amount: int
    reservation_id: str | None = None

    def key(self, hold: UUID) -> str:
        return str(hold) if self.n == 1 else f"{hold}:{self.n}"


@dataclass(frozen=True, slots=True)
class Final:
    """What a call used, once that is decided. `cost` is what the customer pays, `overrun` what the operator loses."""

    cost: int
    outcome: Outcome
    usage: Usage | None = None
    model: str = ""
    overrun: int = 0

    def within(self, held: int) -> Final:
        """Never more than what was held for it: a report above the hold is not believed against the customer."""
        if self.cost <= held:
            return self
        return replace(self, cost=held, overrun=self.overrun + self.cost - held, outcome=Outcome.OVERRUN)


@dataclass(slots=True)
class Open:
    """A hold that is to be settled, as its row has it."""

    id: UUID
    payer: Payer
    subject: dict[str, Any]
    action_kind: str
    action_name: str
    slices: list[Slice]
    created_at: datetime | None = None

    @property
    def held(self) -> int:
        return sum(part.amount for part in self.slices)

    @property
    def scope(self) -> str:
        return f"tenant:{self.payer.subject_tenant}".lower()


@dataclass(slots=True)
class Settled:
    """How far settling has come. `final` is what stands at the authority, which may be another's word."""

    final: Final
    is_landed: bool
    is_written: bool = False
    pause: float = 0.0  # seconds at least before it is asked for again
    budget: dict[str, Any] | None = None


@dataclass(slots=True)
class _Part:
    """What became of one slice."""

    is_landed: bool
    pause: float = 0.0
    charged: int = 0
    lost: int = 0
    balances: list[Any] = field(default_factory=list)
    believed: dict[str, Any] | None = None  # what a commit of somebody else's says of itself
    is_released: bool = False


# --- at the authority -----------------------------------------------------------------------------------------------


# Of a living process: writes into the hold's row what an event is about to say. Whether the row is there; None where it
# cannot be written now.
SayFirst = Callable[[Final], Awaitable[bool | None]]


async def settle_at_the_authority(
    authority: Authority, hold: Open, final: Final, *, say_first: SayFirst | None = None
) -> Settled:
    """Commit each slice up to its amount, release the rest. Not landed: repeat it with the same arguments.

    A process may have died between two of its commits. Then the first is believed, and the rest goes by its word too.
    """
    asked, parts = final, []
    for at, part in enumerate(hold.slices):
        share = shares(final.cost, [part.amount for part in hold.slices])[at]
        parts.append(done := await _settle_slice(authority, hold, part, share, final, say_first))
        if done.believed is not None:
            final = _believed(final, done.believed)
    if not all(part.is_landed for part in parts):
        return Settled(asked, is_landed=False, pause=max(part.pause for part in parts))
    return Settled(_as_it_stands(final, parts), is_landed=True, budget=_newest_budget(parts, hold.scope))


def _as_it_stands(final: Final, parts: list[_Part]) -> Final:
    charged, lost = sum(part.charged for part in parts), sum(part.lost for part in parts)
    if charged == 0 and final.cost > 0 and any(part.is_released for part in parts):
        return Final(0, Outcome.NONE, model=final.model)
    if charged == final.cost and not lost:
        return final
    return replace(final, cost=charged, overrun=final.overrun + lost)


def _believed(final: Final, metadata: dict[str, Any]) -> Final:
    """What the commit that won says the whole call used: figures and class travel in its metadata."""
    tokens = {name: value for name in _TOKENS if type(value := metadata.get(name)) is int and value >= 0}
    usage = final.usage
    if "tokens_input" in tokens and "tokens_output" in tokens:
        usage = Usage(
            tokens["tokens_input"],
            tokens["tokens_output"],
            cached=tokens.get("tokens_cached", 0),
            reasoning=tokens.get("tokens_reasoning", 0),
        )
    outcome = metadata.get("outcome")
    money = {name: value for name in ("cost", "overrun") if type(value := metadata.get(name)) is int and value >= 0}
    return replace(
        final,
        **money,
        usage=usage,
        outcome=Outcome(outcome) if outcome in Outcome.values else final.outcome,
        model=str(metadata.get("model") or final.model)[:200],
    )


_TOKENS = ("tokens_input", "tokens_output", "tokens_cached", "tokens_reasoning")


def _newest_budget(parts: list[_Part], scope: str) -> dict[str, Any] | None:
    for part in reversed(parts):
        if (budget := budget_of(part.balances, scope)) is not None:
            return budget
    return None


async def _settle_slice(
    authority: Authority, hold: Open, part: Slice, share: int, final: Final, say_first: SayFirst | None
) -> _Part:
    if part.reservation_id is None:
        # Its grant was never written down. Where it was refused, nothing is held under its name.
        response = await authority.reserve(hold.payer, reserve_body(hold, part))
        found = (response.body or {}).get("reservation_id")
        if not response.is_success or not isinstance(found, str):
            refused = 400 <= response.status < 500
            if refused or share == 0:
                return _Part(is_landed=True, lost=share if refused else 0)
            return _not_yet(response)
        part.reservation_id = found
    key = part.key(hold.id)
    is_commit = share > 0 or (part.n == 1 and final.outcome != Outcome.NONE)
    if is_commit:
        body = {"idempotency_key": key, "actual": amount(share), **_told(final)}
        response = await authority.commit(hold.payer, part.reservation_id, body)
    else:
        response = await authority.release(
            hold.payer, part.reservation_id, {"idempotency_key": key, "reason": "unused"}
        )
    meaning = landed(response)
    if meaning == Landed.YES:
        return _booked(response.body or {}, share)
    if meaning == Landed.ENDED:
        return await _what_stands(authority, hold, part, share)
    if meaning == Landed.LATE:
        return await _late(authority, hold, part, share, final, say_first) if share > 0 else _Part(is_landed=True)
    if meaning == Landed.GONE or await _tenant_is_closed(authority, hold, response.status):
        logger.error(
            "A call of a closed account cannot be booked: hold=%s microcents=%d",
            hold.id,
            share,
            extra=hold.payer.in_logs,
        )
        return _Part(is_landed=True, lost=share)
    logger.warning(
        "Not settled yet: hold=%s status=%s code=%s",
        hold.id,
        response.status,
        code_of(response),
        extra=hold.payer.in_logs,
    )
    # A release, too: until it lands, what nobody uses is refused to everybody.
    return _not_yet(response)


def _not_yet(response: CyclesResponse) -> _Part:
    return _Part(is_landed=False, pause=pause_after(response, 0.0))


def _told(final: Final) -> dict[str, Any]:
    """What travels with a commit, so that a line can be made again from it."""
    metadata: dict[str, Any] = {"outcome": str(final.outcome), "cost": final.cost, "overrun": final.overrun}
    metrics: dict[str, Any] = {}
    if final.model:
        metadata["model"] = final.model
        metrics["model_version"] = final.model[:128]
    if (usage := final.usage) is not None:
        metrics |= {"tokens_input": usage.tokens_input, "tokens_output": usage.tokens_output}
        metadata |= {
            "tokens_input": usage.tokens_input,
            "tokens_output": usage.tokens_output,
            "tokens_cached": usage.cached,
            "tokens_reasoning": usage.reasoning,
        }
    return {"metrics": metrics, "metadata": metadata} if metrics else {"metadata": metadata}


def _booked(body: dict[str, Any], share: int) -> _Part:
    charged = amount_of(body.get("charged"))
    charged = share if charged is None else charged
    balances = body.get("balances")
    return _Part(
        is_landed=True,
        charged=charged,
        lost=max(0, share - charged),
        balances=balances if isinstance(balances, list) else [],
    )


async def _what_stands(authority: Authority, hold: Open, part: Slice, share: int) -> _Part:
    """Settled already: by an answer of ours that was lost, or by another process. What stands there is believed."""
    assert part.reservation_id is not None
    response = await authority.get(hold.payer, part.reservation_id)
    body = response.body or {}
    if response.is_success and body.get("status") == "COMMITTED":
        told = body.get("committed_metadata")
        return _Part(
            is_landed=True,
            charged=amount_of(body.get("committed")) or 0,
            believed=told if isinstance(told, dict) else {},
        )
    if response.is_success and body.get("status") == "RELEASED":
        return _Part(is_landed=True, is_released=True)
    if response.status == 410 and share == 0:
        return _Part(is_landed=True)
    return _not_yet(response)


async def _late(
    authority: Authority, hold: Open, part: Slice, share: int, final: Final, say_first: SayFirst | None
) -> _Part:
    """The hold is gone, the work was done: an event books it, once, under the slice's own key.

    What an event has booked cannot be asked for, as a commit can. So the row says it first: a sweep that finds its
    process dead sends the same bytes. Where a sweep has been there already, its row is gone.
    """
    is_there = await say_first(final) if say_first is not None else True
    if not is_there:
        return _Part(is_landed=is_there is False, charged=share)
    body = {
        "idempotency_key": part.key(hold.id),
        "subject": hold.subject,
        "action": {"kind": hold.action_kind, "name": hold.action_name},
        "actual": amount(share),
        "overage_policy": "ALLOW_IF_AVAILABLE",
        **_told(final),
    }
    response = await authority.event(hold.payer, body)
    if landed(response) != Landed.YES:
        gone = landed(response) == Landed.GONE or await _tenant_is_closed(authority, hold, response.status)
        return _Part(is_landed=True, lost=share) if gone else _not_yet(response)
    booked = _booked(response.body or {}, share)
    if booked.lost:
        logger.error(
            "A late call was not covered: hold=%s lost=%d microcents", hold.id, booked.lost, extra=hold.payer.in_logs
        )
        await _clear_over_limit(authority, hold)
    return booked


async def _clear_over_limit(authority: Authority, hold: Open) -> None:
    """The ledgers that could not cover a late event are flagged, and would refuse every call until an operator came.

    A credit of nothing clears the flag. Where it fails, `reconcile` says so.
    """
    for scope in scopes_of(hold.subject):
        response = await authority.admin(
            "POST",
            "/v1/admin/budgets/fund",
            params={"tenant_id": hold.payer.subject_tenant, "scope": scope, "unit": "USD_MICROCENTS"},
            body={
                "operation": "CREDIT",
                "amount": amount(0),
                "reason": "a late call was not covered",
                "idempotency_key": f"clear:{hold.id}:{scope}"[:256],
            },
        )
        if not response.is_success and response.status != 404:
            logger.error(
                "A ledger stays over its limit: scope=%s status=%s", scope, response.status, extra=hold.payer.in_logs
            )


async def _tenant_is_closed(authority: Authority, hold: Open, status: int) -> bool:
    """A closed tenant's key reads as revoked; only the admin plane tells it from a key that we lost."""
    return status == 401 and await authority.tenant_status(hold.payer.subject_tenant) == "CLOSED"


def reserve_body(
    hold: Open, part: Slice, *, ttl_ms: int = 60_000, tags: list[str] | None = None, grace_ms: int | None = None
) -> dict[str, Any]:
    action: dict[str, Any] = {"kind": hold.action_kind, "name": hold.action_name}
    if tags:
        action["tags"] = tags
    body = {
        "idempotency_key": part.key(hold.id),
        "subject": hold.subject,
        "action": action,
        "estimate": amount(part.amount),
        "ttl_ms": ttl_ms,
        # The only policy under which a commit of what was used cannot be refused.
        "overage_policy": "ALLOW_IF_AVAILABLE",
    }
    return body if grace_ms is None else {**body, "grace_period_ms": grace_ms}


# --- in our own books -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Keep:
    """Rows of a tenant's own that are written with the line: further parts of one statement, after `gone`.

    `sql` begins with a comma and names its schema `{schema}`; its parameters are named. `first` is a condition that is
    worked out before the hold is deleted, and always true.
    """

    sql: str
    params: dict[str, Any]
    first: str = ""

    def __add__(self, other: Keep) -> Keep:
        return Keep(self.sql + other.sql, {**self.params, **other.params}, self.first + other.first)


async def write_down(store: Store, hold: Open, settled: Settled, *keeps: Keep | None) -> bool:
    """The line in and the hold out, in one statement. Whether we were the one who did it. May raise store.FAILURES.

    Where rows cannot be kept, those of the later `keeps` are written without the first's; and the money in any case.
    """
    kept = [keep for keep in keeps if keep is not None]
    while kept:
        try:
            return await _write(store, hold, settled, functools.reduce(operator.add, kept))
        except _OWN_ROWS_REFUSED as exc:
            # The conversation was deleted meanwhile, or its words cannot be stored.
            logger.warning(
                "A paid call's own rows could not be kept: hold=%s: %s",
                hold.id,
                type(exc).__name__,
                extra=hold.payer.in_logs,
            )
        del kept[0]
    return await _write(store, hold, settled, None)


async def _write(store: Store, hold: Open, settled: Settled, keep: Keep | None) -> bool:
    statement = settle_statement(keep.sql if keep else "", keep.first if keep else "", is_house=hold.payer.is_house)
    params = {"id": hold.id, "held": hold.held, **line_figures(settled.final), **(keep.params if keep else {})}
    rows = await store.fetch(in_schema(statement, hold.payer.schema), params)
    return bool(rows)


def line_figures(final: Final) -> dict[str, Any]:
    usage = final.usage
    return {
        "cost": final.cost,
        "overrun": final.overrun,
        "outcome": str(final.outcome),
        "model": final.model[:200],
        "tokens_input": usage.tokens_input if usage else None,
        "tokens_output": usage.tokens_output if usage else None,
        "tokens_cached": usage.cached if usage else None,
        "tokens_reasoning": usage.reasoning if usage else None,
    }


def slices_as_json(slices: list[Slice]) -> str:
    """All but the first, which the row has in columns of its own."""
    rows = [{"n": part.n, "amount": part.amount, "reservation_id": part.reservation_id} for part in slices[1:]]
    return json.dumps(rows)


def slices_of(estimate: int, reservation_id: str, rows: list[dict[str, Any]]) -> list[Slice]:
    first = Slice(1, estimate, reservation_id or None)
    return [first, *(Slice(row["n"], row["amount"], row.get("reservation_id")) for row in rows)]
