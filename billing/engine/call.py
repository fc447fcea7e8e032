"""One paid call: money held first, the model called under it, settled exactly once by whoever deletes its row.

Owns the order: reserve → the row, already dispatched → the model → commit → the line. Settlement belongs to no request:
it runs as a task of the engine, whatever became of the reader. Must not know what is bought.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
from pydantic_core import to_json

from billing.engine import settling
from billing.engine.authority import Held, Landed, Payer, code_of, held_of, is_lost, landed
from billing.engine.order import Order
from billing.engine.recovery import recover
from billing.engine.settling import Final, Keep, Open, Settled, Slice
from billing.engine.statements import (
    FINAL,
    FORGET_HOLD,
    SLICE,
    TOKENS_CORRECTED,
    dispatch_statement,
    in_schema,
)
from billing.engine.store import FAILURES
from billing.errors import AuthorityUnavailable
from billing.outcomes import Outcome
from billing.plans import plan_of
from billing.rates import Left
from billing.subjects import scopes_of
from tenants.http import TenantNotReady, Unavailable

if TYPE_CHECKING:
    from billing.engine.engine import Engine

logger = logging.getLogger(__name__)

# Of a settlement that nobody could take yet.
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0, 5.0, 15.0)
# Below this a lease may end before its extension arrives: then the call is ended instead.
LEAST_LEASE_SECONDS = 3.0


class Busy(Exception):
    """Another call holds the order's busy key, in this process or in another. Nothing is held or written."""


class NotDispatched(RuntimeError):
    """A model was to be called without a written hold that pays for it: a defect of the calling code."""


class Call:
    """Money held for one call. Made by `open_call`; `dispatch` before the model, `settle` after it, once."""

    def __init__(self, engine: Engine, order: Order, hold: Open, held: Held, *, asked_at: float) -> None:
        self.order = order
        self.hold = hold
        self.caps = held.caps
        self.first_balances = held.balances
        self.is_fitted = False
        self.is_dispatched = False
        self.rates: Left | None = None  # what is left to its key, once it is counted
        self.busy_key = order.busy_key  # with its number, once the row is written
        self.numbers: list[int] | None = None  # as the order's `numbers` say, from then on
        self._may_have_a_row = False
        self.used = order.least
        self.tokens: tuple[int | None, int | None] = (order.tokens_input, None)
        # Called from the engine's timer when the authority stops holding the money: cut whatever is being bought.
        self.on_lapse: Callable[[], None] | None = None
        self._engine = engine
        # Of each slice that was granted: until when, and when it was asked for last.
        self._leases = {1: asked_at + held.ttl_ms / 1_000}
        self._asked = {1: asked_at}
        self._growing: asyncio.Task[bool] | None = None
        self._named = 1  # slices so far, granted or not
        self._settling: asyncio.Task[Settled] | None = None
        self._extensions = 0

    @property
    def id(self) -> UUID:
        return self.hold.id

    @property
    def payer(self) -> Payer:
        return self.order.payer

    @property
    def held(self) -> int:
        """Microcents granted so far."""
        return sum(part.amount for part in self.hold.slices if part.n in self._leases)

    @property
    def max_tokens(self) -> int:
        """The lower of the plan's cap and the authority's. A cap of 0 is a cap."""
        cap = self.caps.get("max_tokens")
        plan = plan_of(self.payer.plan).max_tokens
        return min(plan, cap) if type(cap) is int and cap >= 0 else plan

    @property
    def pays(self) -> bool:
        """Whether a model may be called under it now."""
        return self.is_dispatched and not self.is_settling

    def lease_left(self) -> float:
        """Seconds for which all of its money is still held, on this machine's clock."""
        return min(self._leases.values()) - time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether some of its money is to be asked for again."""
        return any(self._is_due(number) for number in self._leases)

    def _is_due(self, number: int) -> bool:
        until, asked_at = self._leases[number], self._asked[number]
        if until <= asked_at:
            return False  # nothing is held any more
        return asked_at < self._engine.doubted_at or until - time.monotonic() <= self.order.ttl_ms / 2_000

    # --- before and during the call ---

    async def dispatch(self) -> None:
        """Write the row that says that the model is being called.

        Raises Unavailable, Busy, KeyIsFull or TenantNotReady; nothing is held then.
        """
        order = self.order
        if self.is_settling:
            raise Unavailable  # its time was over before the model was called
        params = {
            "id": self.id,
            "account": order.payer.account_id,
            "process": self._engine.process_id,
            "reservation": self.hold.slices[0].reservation_id,
            "subject": to_json(order.subject).decode(),
            "user": order.user_id,
            "kind": order.action_kind,
            "name": order.action_name,
            "model": order.model,
            "estimate": self.hold.slices[0].amount,
            "busy_key": order.busy_key,
            "used": min(order.least, self.held),
            "tokens_input": order.tokens_input,
            "schema": order.payer.schema,
        }
        is_claimed, is_counted = order.claim is not None, order.rates is not None
        statement = dispatch_statement(order.numbered_by, order.numbers, is_claimed=is_claimed, is_counted=is_counted)
        if order.claim is not None:
            statement = in_schema(statement, self.payer.schema)
            params |= order.claim.params
        if order.rates is not None:
            params |= order.rates.params(order.tokens, is_let_in=order.is_let_in)
        try:
            await self._engine.register()
            self._may_have_a_row = True
            rows = await self._engine.store.fetch(statement, params)
        except psycopg.errors.UniqueViolation:
            self._may_have_a_row = False
            self.settle(Final(0, Outcome.NONE))
            raise Busy from None
        except FAILURES as exc:
            self.settle(Final(0, Outcome.NONE))
            raise Unavailable from exc
        if not rows:
            self._may_have_a_row = False
            self.settle(Final(0, Outcome.NONE))
            if order.claim is None:
                raise TenantNotReady
            # Taken for dead, this process lost the claim to another, which makes the call.
            raise Unavailable
        self.busy_key, self.numbers, *counted = rows[0]
        if order.rates is not None:
            self.rates = Left(order.rates, *counted)
            if self.rates.full is not None:
                self._may_have_a_row = False
                self.settle(Final(0, Outcome.NONE))
                raise self._engine.full_keys.full(order, self.rates)
        self.is_dispatched = True
        if order.claim is not None:
            order.claim.dispatched()

    def note(self, used: int, *, tokens_input: int | None, tokens_output: int | None) -> None:
        """What the call used so far, at least. Written with the next slice."""
        self.used, self.tokens = max(self.used, used), (tokens_input, tokens_output)

    async def grow(self, amount: int) -> bool:
        """Hold `amount` more. Whether it was granted; a call whose row is gone has nothing more to ask for.

        Raises Unavailable or AuthorityUnavailable where nobody could be asked.
        """
        if self._growing is None or self._growing.done():
            self._growing = self._engine.spawn(self._grow(amount))
        return await asyncio.shield(self._growing)

    async def _grow(self, amount: int) -> bool:
        # Never a name twice: where an answer was lost, what it held is being given back under its own.
        self._named += 1
        part = Slice(self._named, amount)
        self.hold.slices.append(part)
        params = {
            "id": self.id,
            "slices": settling.slices_as_json(self.hold.slices),
            # With this slice: what a report counts is billed, and whoever settles it asks for the slice by its name.
            "used": min(self.used, self.hold.held),
            "tokens_input": self.tokens[0],
            "tokens_output": self.tokens[1],
        }
        granted = False
        try:
            if await self._engine.store.fetch(SLICE, params):
                asked_at = time.monotonic()
                held = await self._reserve_slice(part)
                if held is not None:
                    part.reservation_id = held.reservation_id
                    self._leases[part.n] = asked_at + held.ttl_ms / 1_000
                    self._asked[part.n] = asked_at
                    granted = True
        except FAILURES as exc:
            logger.warning("A slice could not be written down: hold=%s", self.id, extra=self.payer.in_logs)
            raise Unavailable from exc
        finally:
            if not granted:
                self.hold.slices.remove(part)
        return granted

    async def _reserve_slice(self, part: Slice) -> Held | None:
        response = await self._engine.authority.reserve(self.payer, settling.reserve_body(self.hold, part))
        held = held_of(response)
        if held is None and is_lost(response):
            body = settling.reserve_body(self.hold, part)
            self._engine.spawn(recover(self._engine, self.hold, part, body, response))
        if held is None and not 400 <= response.status < 500:
            raise AuthorityUnavailable
        return held

    async def extend(self) -> None:
        """Keep the money held. One that fails is tried again by the next turn of the timer.

        Opened and dropped, it is not renewed for ever.
        """
        if not self.is_dispatched:
            return
        for part in list(self.hold.slices):
            if part.n not in self._leases or part.reservation_id is None or not self._is_due(part.n):
                continue
            self._extensions += 1
            body = {
                "idempotency_key": f"{part.key(self.id)}:x{self._extensions}",
                "extend_by_ms": self.order.ttl_ms,
            }
            asked_at = time.monotonic()
            response = await self._engine.authority.extend(self.payer, part.reservation_id, body)
            remaining = (response.body or {}).get("remaining_ttl_ms")
            if response.is_success and type(remaining) is int:
                self._leases[part.n], self._asked[part.n] = asked_at + remaining / 1_000, asked_at
            else:
                if landed(response) in (Landed.ENDED, Landed.LATE):
                    # Settled by a sweep that took this process for dead, or expired: nothing is held any more.
                    self._leases[part.n] = self._asked[part.n] = asked_at
                logger.warning(
                    "Not extended: hold=%s status=%s code=%s",
                    self.id,
                    response.status,
                    code_of(response),
                    extra=self.payer.in_logs,
                )

    def watch_lease(self) -> None:
        """End the call while its money is still held, if it may not be for long."""
        if self.is_settling or self.lease_left() >= min(LEAST_LEASE_SECONDS, self.order.ttl_ms / 4_000):
            return
        if not self.is_dispatched:
            self.settle(Final(0, Outcome.NONE))
        elif self.on_lapse is not None:
            self.on_lapse()

    # --- after it ---

    @property
    def is_settling(self) -> bool:
        return self._settling is not None

    def settle(self, final: Final, *, keep: Keep | None = None) -> asyncio.Task[Settled]:
        """Begin to settle, once; a second time gives the first one's task. It goes on whoever stops waiting for it.

        The task ends when the outcome stands at the authority and the line is written, or when neither can be had now
        and the row tells the sweep what to do.
        """
        if self._settling is None:
            self._settling = self._engine.spawn(self._settle(final.within(self.held), keep))
        return self._settling

    def give_way(self, final: Final) -> asyncio.Task[Settled]:
        """Settle a call that came to nothing, and keep its request's claim for the one that is made in its place."""
        if self.order.claim is not None and not self.is_settling:
            self.order.claim.kept_for_another()
        return self.settle(final)

    async def _settle(self, final: Final, keep: Keep | None) -> Settled:
        try:
            if self._growing is not None:
                with suppress(Exception):
                    await self._growing
            return await self._settle_until_landed(final, keep)
        finally:
            self._engine.ended(self)
            # It belongs to an object that knows this call: the two would keep each other in memory, with all that they
            # know, until the garbage collector runs.
            self.on_lapse = None

    async def _settle_until_landed(self, final: Final, keep: Keep | None) -> Settled:
        settled = Settled(final, is_landed=False)
        written_final = attempts = 0
        while True:
            if not settled.is_landed:
                settled = await settling.settle_at_the_authority(
                    self._engine.authority, self.hold, final, say_first=self._say_first
                )
                if not self._engine.lines.are_empty:
                    self._engine.lines.wake(scopes_of(self.hold.subject))
            try:
                if self._may_have_a_row and not self.is_dispatched:
                    # Written while its reader left or its answer was lost: it keeps a conversation busy, and the sweep
                    # would charge for a model that nobody called, whether or not the authority has been told.
                    await self._engine.store.fetch(FORGET_HOLD, [self.id])
                    self._may_have_a_row = False
                if settled.is_landed:
                    if self.is_dispatched:
                        settled.is_written = await settling.write_down(
                            self._engine.store, self.hold, settled, keep, self._answer(settled), self._counted(settled)
                        )
                    self._log(settled)
                    return settled
                if self.is_dispatched and not written_final:
                    await self._write_final(settled)
                    written_final = 1
            except (*FAILURES, psycopg.Error) as exc:
                # Away, or a schema that is being moved: whatever it is, nobody else settles a living process's call.
                logger.warning(
                    "A settled call cannot be written down yet: hold=%s: %s",
                    self.id,
                    type(exc).__name__,
                    extra=self.payer.in_logs,
                )
            await self._engine.pause(max(settled.pause, PAUSES[min(attempts, len(PAUSES) - 1)]))
            attempts += 1
            if self._engine.is_closing:
                # The row has it all: the sweep goes on from there.
                self._log(settled)
                return settled

    def _answer(self, settled: Settled) -> Keep | None:
        """What becomes of the request's Idempotency-Key."""
        return self.order.claim.keep(settled) if self.order.claim is not None else None

    def _counted(self, settled: Settled) -> Keep | None:
        """Brings the tokens that were counted for it to those that it used."""
        rates, final = self.order.rates, settled.final
        if rates is None or rates.tokens is None:
            return None
        if final.usage is None and final.outcome != Outcome.NONE:
            return None  # what it used is not known: what was counted stands
        used = 0 if final.usage is None else final.usage.tokens_input + final.usage.tokens_output
        params = {"most_tokens": rates.tokens, "tokens_more": used - self.order.tokens}
        return Keep("", params, first=TOKENS_CORRECTED) if params["tokens_more"] else None

    async def _say_first(self, final: Final) -> bool | None:
        """What the row says from now on, before an event says it. None where it cannot be written now."""
        try:
            return await self._write_final(Settled(final, is_landed=False))
        except psycopg.Error:
            return None

    async def _write_final(self, settled: Settled) -> bool:
        """Whether there is a row to write it into: a sweep may have settled the call."""
        figures = settling.line_figures(settled.final)
        figures["used"] = figures.pop("cost")
        params = {"id": self.id, "slices": settling.slices_as_json(self.hold.slices), **figures}
        # In one statement: a repeat must neither wait for the authority, nor see an answer without what it costs.
        answer = self._answer(settled) or Keep("", {})
        statement = in_schema(FINAL.replace("{keep}", answer.sql), self.payer.schema)
        return bool(await self._engine.store.fetch(statement, {**params, **answer.params}))

    def _log(self, settled: Settled) -> None:
        final, whose = settled.final, self.payer.in_logs
        if final.overrun:
            logger.error(
                "Reported above the hold, the operator's loss: hold=%s microcents=%d",
                self.id,
                final.overrun,
                extra=whose,
            )
        logger.log(
            logging.INFO if settled.is_landed else logging.ERROR,
            "%s tenant=%s reservation=%s action=%s/%s estimate=%d actual=%d outcome=%s",
            "settled" if settled.is_landed else "not settled yet",
            self.payer.slug,
            self.hold.slices[0].reservation_id,
            self.order.action_kind,
            self.order.action_name,
            self.hold.held,
            final.cost,
            str(final.outcome) if self.is_dispatched else "released",
            extra=whose,
        )
