"""A reservation: money held for the work of a plain function, settled exactly once by what was recorded.

Owns `reserve` → `Reservation`. Asks the engine on its process's loop thread and waits for it. Must not know which model
is called nor how.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar
from uuid import UUID

from django.conf import settings
from django.db import connection
from runcycles import Caps, CyclesMetrics

from billing.client import WhoPays, who_pays
from billing.engine.authority import Payer
from billing.engine.call import Busy, Call, NotDispatched
from billing.engine.current import current
from billing.engine.loop import here, loop_thread, refuse_in_transaction, run
from billing.engine.opening import open_call
from billing.engine.order import MOST_TTL_MS, TTL_MS, Order, refuse_unless_whole
from billing.engine.payers import house_payer, paid_subject, payer_and_key
from billing.engine.repeats import Claim
from billing.engine.settling import Final, Settled
from billing.errors import BudgetError, of_the_house
from billing.outcomes import Outcome
from billing.prices import Usage
from billing.rates import rates_of
from billing.subjects import Key, house_subject_for
from tenants.http import Unavailable
from tenants.models import Tenant

logger = logging.getLogger(__name__)

Metrics = CyclesMetrics

P = ParamSpec("P")
R = TypeVar("R")

LEAST_TTL_MS = 1_000
# A settlement goes on in the background; a request does not wait for an authority that is away.
SETTLE_SECONDS = 2.0


@dataclass(slots=True)
class Context:
    """What a guarded function is told, and what it may tell: the shape of the client's own context."""

    reservation_id: str
    estimate: int
    caps: Caps
    metrics: CyclesMetrics | None = None


def current_reservation() -> Reservation | None:
    """The reservation that pays for the guarded function running now."""
    return current.get()


def get_context() -> Context | None:
    """The context of the guarded function running now: `caps` to read, `metrics` to set."""
    reservation = current.get()
    return reservation.context if reservation is not None else None


def reserve(
    tenant: Tenant | WhoPays | None = None,
    *,
    app: str,
    action_kind: str,
    action_name: str,
    estimate: int,
    least: int | None = None,
    user_id: int | None = None,
    workflow: str | None = None,
    key_id: int | None = None,
    dimensions: dict[str, str] | None = None,
    action_tags: list[str] | None = None,
    claim: Claim | None = None,
    ttl_ms: int = TTL_MS,
    grace_period_ms: int | None = None,
) -> Reservation:
    """Hold `estimate` microcents of the tenant's budget (default: the current tenant's), or raise a BudgetError.
    With `house_subject_tenant` as the tenant it is the house's budget, whoever is bound.

    `estimate` is the most the call can be billed, `least` what is charged when this process dies with the call under
    way (default: the estimate). Use the result with `with`, or hand it on and call `settle()`; one that is dropped is
    settled by what it says of itself. Raises BudgetDenied, OnHold, AuthorityUnavailable …; the model must then not be
    called. Not inside a transaction: its rollback could not take a paid call back.
    """
    paying = who_pays(tenant)
    refuse_in_transaction()
    refuse_unless_whole("estimate", estimate)
    if type(ttl_ms) is not int or not LEAST_TTL_MS <= ttl_ms <= MOST_TTL_MS:
        raise ValueError(f"ttl_ms {ttl_ms!r}: a hold lasts from a second to a day.")
    opening = _open(
        paying,
        user_id=user_id,
        subject={"app": app, "workflow": workflow, "key_id": key_id, "dimensions": dimensions},
        order={
            "action_kind": action_kind,
            "action_name": action_name,
            "amount": estimate,
            "least": estimate if least is None else least,
            "tags": action_tags,
            "claim": claim,
            "ttl_ms": ttl_ms,
            "grace_ms": grace_period_ms,
        },
    )
    try:
        call, key = run(opening)
        return Reservation(paying, call, key=key)
    except BudgetError as exc:
        if paying is not None:
            raise
        # Not `from exc`: a page that shows a chain of errors would show the figures again.
        raise of_the_house(exc) from None


async def _open(
    tenant: Tenant | None, *, user_id: int | None, subject: dict[str, Any], order: dict[str, Any]
) -> tuple[Call, Key | None]:
    engine, key = here(), None
    if tenant is None:
        payer = await house_payer(engine)
        named = house_subject_for(tenant=payer.subject_tenant, user_id=user_id, **subject)
    else:
        payer, key = await payer_and_key(
            engine, tenant_id=tenant.pk, slug=tenant.slug, schema=tenant.schema_name, key_id=subject.pop("key_id")
        )
        named = paid_subject(payer, user_id=user_id, key=key, **subject)
    rates = rates_of(key, settings.KEY_RATES)
    return await open_call(engine, Order(payer=payer, subject=named, user_id=user_id, rates=rates, **order)), key


class Reservation:
    """An open hold on one account's budget, or with no `tenant` on the house's, settled exactly once.

    Charged work is committed, whatever ended it; untouched work is released. As a context manager it settles at the
    end of the block, by what was recorded and not by how the block ended.
    """

    def __init__(self, tenant: Tenant | None, call: Call, *, key: Key | None = None) -> None:
        self.tenant = tenant
        # The one that asks: what it may buy is asked again by whatever is bought under this hold.
        self.key = key
        self.caps = Caps.model_validate({**_known_caps(call.caps), "max_tokens": call.max_tokens})
        self.context = Context(call.hold.slices[0].reservation_id or "", call.held, self.caps)
        self._call = call
        self._use = _Use(call)
        self._pid = os.getpid()
        # Dropped without a word, it is settled by what it said so far: the timer would hold its money for ever.
        self._finalizer = weakref.finalize(self, _settle_soon, call, self._use, self._pid)

    @property
    def estimate(self) -> int:
        return self._call.held

    @property
    def cost(self) -> int:
        """What the call cost so far: recorded, else the whole estimate once the model was called."""
        return self._use.final().cost if self._call.is_dispatched else 0

    @property
    def outcome(self) -> str:
        return self._use.final().outcome

    @property
    def id(self) -> UUID:
        return self._call.id

    @property
    def payer(self) -> Payer:
        return self._call.payer

    @property
    def on_lapse(self) -> Callable[[], None] | None:
        """Called when the authority stops holding the money under the work: cut it. Answers are cut by themselves."""
        return self._use.on_lapse

    @on_lapse.setter
    def on_lapse(self, cut: Callable[[], None] | None) -> None:
        self._use.on_lapse = cut
        self._call.on_lapse = self._use.lapse

    @property
    def pays(self) -> bool:
        """Whether a model may be called under it now."""
        return self._call.pays and self._is_ours

    @property
    def _is_ours(self) -> bool:
        """A forked child has a copy, and the parent's connections: settling there, it would answer for the parent."""
        return self._pid == os.getpid()

    def lease_left(self) -> float:
        """Seconds for which the authority still holds the money. Past it another call may be given the same."""
        return self._call.lease_left()

    def cap(self, max_tokens: int) -> int:
        """`max_tokens`, lowered to what the caps allow. A cap of 0 is a cap."""
        return min(max_tokens, self._call.max_tokens)

    def left(self) -> int:
        """Microcents of the hold that nothing has been recorded for, nor promised to an answer under way."""
        return max(0, self._call.held - (self._use.cost or 0) - sum(self._use.parts.values()))

    def begin(self, part: Part, share: int) -> None:
        """An answer is bought under this hold, for at most `share`. On the engine's loop."""
        self._use.parts[part] = share
        # Not a method of ours: the engine would hold on to a reservation that everybody else has dropped.
        self._call.on_lapse = self._use.lapse

    def dispatch(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Write down that the model is about to be called, give the connection back, and call it. Once.

        The provider may bill from here on, whatever comes back, so a hold that cannot say so pays for nothing.
        """
        if self._call.is_dispatched:
            raise _unavailable("This reservation has made its one call: reserve for each.")
        if not self._is_ours:
            raise NotDispatched("This reservation was made before a fork, and is the parent's: reserve here.")
        if self._call.is_settling:
            raise _unavailable(
                "This reservation is settled, by settle() or because its time was over before the call: reserve right "
                "before it, or for longer (ttl_ms)."
            )
        try:
            run(self._call.dispatch())
        except Busy:
            raise Unavailable from None
        # Held through a model's answer, connections run out at the eleventh call of a pool of ten.
        if not connection.in_atomic_block:
            connection.close()
        token = current.set(self)
        try:
            return call(*args, **kwargs)
        finally:
            current.reset(token)

    def record(
        self,
        *,
        cost: int,
        outcome: str = Outcome.EXACT,
        model: str = "",
        tokens_input: int | None = None,
        tokens_output: int | None = None,
    ) -> None:
        """What was used so far, in microcents; the last word before settling counts."""
        # Said here, to the code that is wrong: settling, nobody is left to be told, and the money would stay held.
        for name, value in (("cost", cost), ("tokens_input", tokens_input or 0), ("tokens_output", tokens_output or 0)):
            refuse_unless_whole(name, value)
        if cost and outcome == Outcome.NONE:
            raise ValueError("The outcome none is for what costs nothing: leave it out, or record a cost of 0.")
        usage = None
        if tokens_input is not None or tokens_output is not None:
            usage = Usage(tokens_input or 0, tokens_output or 0)
        self._use.set(cost, Outcome(outcome), usage, _as_stored(model))

    def add(self, *, cost: int, outcome: Outcome, usage: Usage, model: str = "", part: Part | None = None) -> None:
        """What one more answer under this hold used; `part` is then over."""
        self._use.add(cost, outcome, usage, model)
        if part is not None:
            self._use.parts.pop(part, None)

    def end_parts(self) -> bool:
        """Cut the answers that are still under way, and add what they used. Whether anybody still meant to read one."""
        return bool(self._use.parts) and self._is_ours and run(self._end_parts())

    async def _end_parts(self) -> bool:
        parts = list(self._use.parts)
        read = [part.stop() for part in parts]
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await asyncio.gather(*(part.added() for part in parts))
        return any(read)

    def void(self) -> None:
        """The model was not reached, or refused before working: nothing was bought after all."""
        self._use.set(0, Outcome.NONE, None, "")

    def settle(self) -> None:
        """Commit what was used, or release. Once; a second call does nothing."""
        if self._finalizer.detach() is not None and self._is_ours:
            self.end_parts()
            run(_settle(self._call, self._use.final(), SETTLE_SECONDS))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.settle()


class Part(Protocol):
    """An answer under way that a reservation pays for."""

    def lapse(self) -> None:
        """The money under it is no longer held: cut it."""

    def stop(self) -> bool:
        """Cut it. Whether it was under way for somebody who had not left it."""

    async def added(self) -> None:
        """Until what it used has been added."""


class _Use:
    """What a reservation's call used so far. Apart from the reservation, for it outlives one that is dropped."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.cost: int | None = None
        self._outcome = Outcome.ESTIMATED
        self._usage: Usage | None = None
        self._model = ""
        self.parts: dict[Part, int] = {}  # answers under way that it pays for, each with its share of the hold
        self.on_lapse: Callable[[], None] | None = None

    def lapse(self) -> None:
        if self.on_lapse is not None:
            self.on_lapse()
        for part in list(self.parts):
            part.lapse()

    def set(self, cost: int, outcome: Outcome, usage: Usage | None, model: str) -> None:
        self.cost, self._outcome, self._usage = cost, outcome, usage
        self._model = model or self._model

    def add(self, cost: int, outcome: Outcome, usage: Usage, model: str) -> None:
        if self.cost is None:
            self.set(cost, outcome, usage, model)
            return
        before = self._usage or Usage(0, 0)
        total = Usage(
            before.tokens_input + usage.tokens_input,
            before.tokens_output + usage.tokens_output,
            cached=before.cached + usage.cached,
            reasoning=before.reasoning + usage.reasoning,
        )
        self.set(self.cost + cost, _of_both(self._outcome, outcome), total, model)

    def final(self) -> Final:
        if not self._call.is_dispatched:
            return Final(0, Outcome.NONE)
        cost = self._call.held if self.cost is None else self.cost
        return Final(cost, self._outcome, self._usage, self._model).within(self._call.held)


def _of_both(one: Outcome, other: Outcome) -> Outcome:
    """The class of a sum: what was not charged changes nothing, what was guessed makes the sum a guess."""
    if one == other or other == Outcome.NONE:
        return one
    return other if one == Outcome.NONE else Outcome.ESTIMATED


def _unavailable(why: str) -> Unavailable:
    """For whoever asked it is an outage; `why` is for the builder who reads the stack."""
    refused = Unavailable()
    refused.add_note(why)
    return refused


async def _settle(call: Call, final: Final, seconds: float) -> Settled | None:
    settling = call.settle(final)
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(settling)
    except TimeoutError:
        return None


def _settle_soon(call: Call, use: _Use, pid: int) -> None:
    """From the collector, which may run on any thread, the loop's own too: it must not wait."""
    if pid != os.getpid():
        return
    thread = loop_thread()
    if not call.is_settling and not thread.loop.is_closed():
        logger.warning("A reservation was dropped without being settled: hold=%s", call.id)
        thread.loop.call_soon_threadsafe(lambda: call.settle(use.final()))


def _as_stored(model: object) -> str:
    """A model's name as Postgres takes it: a provider writes it, and a line must not be lost for it."""
    return str(model or "").replace("\x00", "").encode("utf-8", "replace").decode()


def _known_caps(caps: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in caps.items() if name in Caps.model_fields}
