"""The guard: no model call without a hold, and every hold settled exactly once.

Owns `reserve` → `Reservation`, and `guarded` for plain functions. Must not know which model is called nor how.

The order is what makes a crash safe: Hold row → reserve at the authority → `dispatched_at` → the model → commit →
UsageLine and the Hold's end in one transaction. A row that stays behind says how far its worker came.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import django.db
from django.db import connection, transaction
from django.utils import timezone
from runcycles import Action, Amount, Caps, CyclesMetrics, Subject, Unit, get_cycles_context
from runcycles.context import CyclesContext
from runcycles.exceptions import CyclesProtocolError
from runcycles.streaming import StreamReservation

from billing.client import account_of, default_client, translate, was_not_reserved
from billing.errors import NoTenantBound
from billing.models import Account, Hold
from billing.plans import PLANS, Plan
from billing.usage.models import UsageLine
from tenants.context import current_tenant, tenant_scope
from tenants.http import Unavailable
from tenants.models import Tenant

logger = logging.getLogger(__name__)

get_context = get_cycles_context
Metrics = CyclesMetrics
Outcome = UsageLine.Outcome

P = ParamSpec("P")
R = TypeVar("R")

# Long enough for a slow answer between two heartbeats, short enough that a dead worker's hold frees itself.
TTL_MS = 120_000

_current: ContextVar[Reservation | None] = ContextVar("current_reservation", default=None)


def plan_max_tokens(tenant: Tenant) -> int:
    """The most tokens that the tenant's plan lets one call ask for. Raises OnHold or NotProvisioned."""
    return PLANS[account_of(tenant).plan].max_tokens


class NothingUsed(Exception):
    """Tells the client to release: nothing was bought under this hold."""


def current_reservation() -> Reservation | None:
    """The reservation that pays for the guarded function running now."""
    return _current.get()


def reserve(
    tenant: Tenant | None = None,
    *,
    app: str,
    action_kind: str,
    action_name: str,
    estimate: int,
    user_id: int | None = None,
    workflow: str | None = None,
    dimensions: dict[str, str] | None = None,
    action_tags: list[str] | None = None,
    ttl_ms: int = TTL_MS,
    grace_period_ms: int | None = None,
) -> Reservation:
    """Hold `estimate` microcents of the tenant's budget (default: the current tenant's), or raise a BudgetError.

    `estimate` is the most the call can be billed. Use the result with `with`, or hand it on and call `settle()`.
    Raises BudgetDenied, OnHold, AuthorityUnavailable …; the model must then not be called. Not inside a transaction:
    its rollback would take the hold and the line of a call that was paid.
    """
    tenant = tenant or current_tenant()
    if tenant is None:
        raise NoTenantBound
    account = account_of(tenant)
    plan = PLANS[account.plan]
    subject = Subject(
        tenant=account.subject_tenant,
        workspace=f"user-{user_id}" if user_id is not None else None,
        app=app,
        workflow=workflow,
        dimensions=dimensions,
    )
    action = Action(kind=action_kind, name=action_name, tags=action_tags)
    with transaction.atomic(durable=True):
        hold = Hold.objects.create(
            account=account,
            subject=subject.model_dump(exclude_none=True),
            action_kind=action_kind,
            action_name=action_name,
            estimate=estimate,
        )
    try:
        paid = default_client().stream_reservation(
            subject=subject,
            action=action,
            estimate=Amount(unit=Unit.USD_MICROCENTS, amount=estimate),
            ttl_ms=ttl_ms,
            grace_period_ms=grace_period_ms,
            # The only policy under which a commit of what was truly used cannot be refused and dropped.
            overage_policy="ALLOW_IF_AVAILABLE",
            # From the hold, so that whoever finishes this call later repeats the same keys and changes nothing twice.
            idempotency_key=str(hold.pk),
        )
        paid.__enter__()
    except CyclesProtocolError as exc:
        if was_not_reserved(exc):
            _forget(hold)
        raise translate(exc, subject_tenant=account.subject_tenant, needed=estimate) from exc
    except ValueError:
        # What the client refuses to send, such as a ttl out of range: nothing was held.
        _forget(hold)
        raise
    reservation = Reservation(tenant, account, hold, paid, user_id=user_id, plan=plan)
    try:
        Hold.objects.filter(pk=hold.pk).update(reservation_id=paid.reservation_id)
    except django.db.Error as exc:
        reservation.settle()
        raise Unavailable from exc
    return reservation


def _forget(hold: Hold) -> None:
    """The authority holds nothing for it. Failing here must not hide why."""
    try:
        Hold.objects.filter(pk=hold.pk).delete()
    except django.db.Error:
        logger.exception("A refused hold stays in the table: hold=%s", hold.pk)


class Reservation:
    """An open hold on one account's budget, settled exactly once.

    Charged work is committed, whatever ended it; untouched work is released. As a context manager it settles at the
    end of the block, by what was recorded and not by how the block ended.
    """

    def __init__(
        self,
        tenant: Tenant,
        account: Account,
        hold: Hold,
        paid: StreamReservation,
        *,
        user_id: int | None,
        plan: Plan,
    ) -> None:
        self.tenant = tenant
        self.account = account
        self._hold = hold
        self._paid = paid
        self._user_id = user_id
        self._lock = threading.Lock()
        self._settled = False
        self._dispatched = False
        self._void = False
        self._cost: int | None = None
        self._model = ""
        self._tokens: tuple[int | None, int | None] = (None, None)
        self._outcome: str = Outcome.ESTIMATED
        self.caps = _merged(paid.caps, plan.max_tokens)
        self._lease = _Lease(paid, get_cycles_context())
        if (context := get_cycles_context()) is not None:
            context.caps = self.caps

    @property
    def estimate(self) -> int:
        return self._hold.estimate

    @property
    def cost(self) -> int:
        """What the call cost so far: recorded, else the whole estimate once the model was called."""
        if not self._dispatched or self._void:
            return 0
        return self.estimate if self._cost is None else self._cost

    @property
    def outcome(self) -> str:
        return self._outcome

    def lease_left(self) -> float:
        """Seconds for which the authority still holds the money. Past it another call may be given the same."""
        return self._lease.left()

    def cap(self, max_tokens: int) -> int:
        """`max_tokens`, lowered to what the caps allow. A cap of 0 is a cap."""
        return max_tokens if self.caps.max_tokens is None else min(max_tokens, self.caps.max_tokens)

    def dispatch(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Write down that the model is about to be called, give the connection back, and call it.

        The provider may bill from here on, whatever comes back, so a hold that cannot say so pays for nothing.
        """
        try:
            mine = Hold.objects.filter(pk=self._hold.pk, dispatched_at=None).update(dispatched_at=timezone.now())
        except django.db.Error as exc:
            raise Unavailable from exc
        if mine != 1:
            # Swept, or dispatched before: whatever pays for this call, it is not this hold.
            raise Unavailable
        self._dispatched = True
        # Held through a model's answer, connections run out at the eleventh stream of a pool of ten.
        if not connection.in_atomic_block:
            connection.close()
        return call(*args, **kwargs)

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
        if min(cost, tokens_input or 0, tokens_output or 0) < 0:
            raise ValueError("A cost or a count is never negative.")
        self._cost, self._outcome = cost, outcome
        self._model, self._tokens = model, (tokens_input, tokens_output)

    def void(self) -> None:
        """The model was not reached, or refused before working: nothing was bought after all."""
        self._void = True

    def settle(self) -> None:
        """Commit what was used, or release. Once; a second call does nothing."""
        with self._lock:
            if self._settled:
                return
            self._settled = True
        landed = False
        try:
            landed = self._settle_at_the_authority()
        except Exception:  # whatever it was, what was used is written down here
            logger.exception("Settling failed on the way: hold=%s", self._hold.pk)
        finally:
            self._write_down(landed)

    @property
    def _charged(self) -> bool:
        return self._dispatched and not self._void

    def _settle_at_the_authority(self) -> bool:
        """Whether the authority knows the outcome now."""
        if not self._charged:
            self._paid.__exit__(NothingUsed, NothingUsed(), None)
            # A release that was lost costs nothing but the lease's time.
            return True
        # Unset, the client would commit the full estimate and call it measured.
        self._paid.usage.actual_cost = self.cost
        self._paid.usage.tokens_input = self._tokens[0] or 0
        self._paid.usage.tokens_output = self._tokens[1] or 0
        self._paid.usage.model_version = self._model[:128] or None
        self._paid.__exit__(None, None, None)
        return self._paid.settlement_error is None

    def _write_down(self, landed: bool) -> None:
        """The line, and the hold's end: but a commit that has not landed keeps its hold, or nobody would repeat it.

        The client repeats it for over an hour, and from its journal at the next start; past that only the row knows.
        """
        try:
            with tenant_scope(self.tenant), transaction.atomic():
                if self._charged:
                    UsageLine.objects.create(**self._line())
                if landed:
                    Hold.objects.filter(pk=self._hold.pk).delete()
        except django.db.Error:
            # The authority has the truth and the row stays for the sweep; the customer keeps the answer.
            logger.exception("A settled call could not be written down: hold=%s", self._hold.pk)
        logger.log(
            logging.INFO if landed else logging.ERROR,
            "%s tenant=%s reservation=%s action=%s/%s estimate=%d actual=%d outcome=%s",
            "settled" if landed else "not settled at the authority yet",
            self.tenant.slug,
            self._paid.reservation_id,
            self._hold.action_kind,
            self._hold.action_name,
            self.estimate,
            self.cost,
            self._outcome if self._charged else "released",
        )

    def _line(self) -> dict[str, Any]:
        return {
            "hold": self._hold.pk,
            "reservation_id": self._paid.reservation_id,
            "user_id": self._user_id,
            "app": self._hold.subject.get("app", ""),
            "action": self._hold.action_name,
            "model": self._model,
            "tokens_input": self._tokens[0],
            "tokens_output": self._tokens[1],
            "estimate": self.estimate,
            "cost": self.cost,
            "outcome": self._outcome,
            "created_at": self._hold.created_at,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.settle()


class _Lease:
    """How long the authority holds the money, on this machine's clock: only differences of the server's are used."""

    def __init__(self, paid: StreamReservation, context: CyclesContext | None) -> None:
        self._context = context
        self._first = (context.expires_at_ms if context else None) or 0
        granted = paid._initial_remaining
        self._until = time.monotonic() + (TTL_MS if granted is None else granted) / 1_000

    def left(self) -> float:
        # The client's heartbeat writes each extension into the context.
        extended = (self._context.expires_at_ms or self._first) - self._first if self._context else 0
        return self._until + extended / 1_000 - time.monotonic()


def _merged(caps: Caps | None, max_tokens: int) -> Caps:
    """The authority's caps and the plan's: the lower of both, for an authority cannot be told a plan's."""
    theirs = caps.max_tokens if caps else None
    lower = max_tokens if theirs is None else min(theirs, max_tokens)
    return (caps or Caps()).model_copy(update={"max_tokens": lower})


def guarded(
    estimate: int | Callable[..., int],
    *,
    actual: int | Callable[[Any], int] | None = None,
    action_kind: str | Callable[..., str] = "unknown",
    action_name: str | Callable[..., str] = "unknown",
    action_tags: list[str] | None = None,
    app: str | Callable[..., str] = "app",
    workflow: str | Callable[..., str | None] | None = None,
    dimensions: dict[str, str] | Callable[..., dict[str, str] | None] | None = None,
    user_id: int | Callable[..., int | None] | None = None,
    ttl_ms: int = TTL_MS,
    grace_period_ms: int | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Pay for each call of a plain function from the current tenant's budget. Options are `runcycles.cycles`'s.

    `estimate`, and each option that takes a callable, is given the function's arguments; `actual` its result. Inside,
    `get_context()` has the caps and takes `metrics`, and `current_reservation()` takes `record()` and `void()`.

    A function that raises may have called its model, so its estimate is kept in full, unless it recorded what it
    used or declared the call void first. A generator or `async def` is refused when it is decorated: the first would
    be paid for before its first value, the second would run on another thread's tenant.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _refuse_unguardable(function)

        @functools.wraps(function)
        def paid_for(*args: P.args, **kwargs: P.kwargs) -> R:
            def given(value: Any) -> Any:
                return value(*args, **kwargs) if callable(value) else value

            reservation = reserve(
                app=given(app),
                action_kind=given(action_kind),
                action_name=given(action_name),
                action_tags=action_tags,
                estimate=given(estimate),
                workflow=given(workflow),
                user_id=given(user_id),
                dimensions=given(dimensions),
                ttl_ms=ttl_ms,
                grace_period_ms=grace_period_ms,
            )
            token = _current.set(reservation)
            try:
                with reservation:
                    result = reservation.dispatch(function, *args, **kwargs)
                    if inspect.isawaitable(result) or inspect.isgenerator(result):
                        raise TypeError(f"{function.__qualname__} returned work for later, unpaid. Use reserve().")
                    _record_result(reservation, actual, result)
                    return result
            finally:
                _current.reset(token)

        return paid_for

    return decorate


def _refuse_unguardable(function: Callable[..., Any]) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is async def: guarded takes plain functions. Make it a def; see README, Why sync.")
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{name} is a generator: guarded would settle it before its first value. Use reserve().")


def _record_result(reservation: Reservation, actual: int | Callable[[Any], int] | None, result: Any) -> None:
    """Keeps what the function recorded itself; else `actual` of the result; else the estimate stands, as assumed."""
    if reservation._cost is not None or actual is None:
        return
    metrics = (context.metrics if (context := get_cycles_context()) else None) or Metrics()
    reservation.record(
        cost=actual(result) if callable(actual) else actual,
        model=metrics.model_version or "",
        tokens_input=metrics.tokens_input,
        tokens_output=metrics.tokens_output,
    )
