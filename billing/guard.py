"""The guard: the engine for plain functions. No model call without a hold, every hold settled exactly once.

Owns `guarded`, and the names that guarded code uses. Must not know which model is called nor how.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from django.conf import settings
from django.http import StreamingHttpResponse

from billing.client import WhoPays, refuse_unless_payer
from billing.engine.call import NotDispatched
from billing.engine.order import TTL_MS
from billing.engine.repeats import Claim
from billing.errors import BudgetError
from billing.outcomes import Outcome
from billing.prices import Usage
from billing.reservations import (
    Context,
    Metrics,
    Part,
    Reservation,
    current_reservation,
    get_context,
    reserve,
)

__all__ = [
    "Context",
    "Metrics",
    "NotDispatched",
    "Outcome",
    "Part",
    "Reservation",
    "current_reservation",
    "get_context",
    "guarded",
    "reserve",
]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

REFUSED_WITHIN = (
    "A guarded function was refused money within itself, and pays its estimate all the same: it may have called its "
    "model before. Catch that there, and call current_reservation().void(), or record what was used."
)


def guarded(
    estimate: int | Callable[..., int],
    *,
    tenant: WhoPays | None = None,
    actual: int | Callable[[Any], int] | None = None,
    least: int | Callable[..., int] | None = None,
    action_kind: str | Callable[..., str] = "unknown",
    action_name: str | Callable[..., str] = "unknown",
    action_tags: list[str] | None = None,
    app: str | Callable[..., str | None] | None = None,
    workflow: str | Callable[..., str | None] | None = None,
    dimensions: dict[str, str] | Callable[..., dict[str, str] | None] | None = None,
    user_id: int | Callable[..., int | None] | None = None,
    key_id: int | Callable[..., int | None] | None = None,
    claim: Callable[..., Claim | None] | None = None,
    ttl_ms: int = TTL_MS,
    grace_period_ms: int | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Pay for each call of a plain function from the current tenant's budget. Options are `runcycles.cycles`'s, and
    `least`: what is charged when this process dies with the function at work (default: the estimate), and `claim`: of
    billing.repeats, where the request has an Idempotency-Key.

    `tenant` is `current_subject_tenant`, as without it, or `house_subject_tenant`: the house pays, whoever is bound.

    `estimate`, and each option that takes a callable, is given the function's arguments; `actual` its result. Inside,
    `get_context()` has the caps and takes `metrics`, and `current_reservation()` takes `record()` and `void()`.

    A function that raises may have called its model, so its estimate is kept in full, unless it recorded what it
    used, declared the call void, or raised an error that says what was used (`reached`, `usage`). A generator or
    `async def` is refused when it is decorated: the first would be paid for before its first value, the second would
    run on another thread's tenant.
    """

    if tenant is not None:
        refuse_unless_payer(tenant)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _refuse_unguardable(function)

        @functools.wraps(function)
        def paid_for(*args: P.args, **kwargs: P.kwargs) -> R:
            def given(value: Any) -> Any:
                return value(*args, **kwargs) if callable(value) else value

            reservation = reserve(
                tenant,
                app=_feature(given(app)),
                action_kind=given(action_kind),
                action_name=given(action_name),
                action_tags=action_tags,
                estimate=given(estimate),
                least=given(least),
                workflow=given(workflow),
                user_id=given(user_id),
                key_id=given(key_id),
                claim=given(claim),
                dimensions=given(dimensions),
                ttl_ms=ttl_ms,
                grace_period_ms=grace_period_ms,
            )
            with reservation:
                result = _run(reservation, function, *args, **kwargs)
                _record_result(reservation, actual, result)
                return result

        return paid_for

    return decorate


def _feature(app: str | None) -> str:
    return str(settings.DEFAULT_APP) if app is None else app


def _run(reservation: Reservation, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    try:
        result = reservation.dispatch(function, *args, **kwargs)
    except Exception as exc:
        _record_failure(reservation, exc)
        raise
    # An answer that is handed on unread would be settled before its first word.
    if reservation.end_parts() or inspect.isawaitable(result) or _is_unread(result):
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(f"{name} returned work for later, unpaid. Read answers to their end inside, or use stream().")
    return result


def _is_unread(result: Any) -> bool:
    """Whether what it gives is made only when it is asked for: a generator, a provider's stream, a page of either."""
    if isinstance(result, StreamingHttpResponse):
        # What it was given: its streaming_content is a map of Django's, whatever that is made of.
        result = getattr(result, "file_to_stream", None) or result._iterator  # type: ignore[attr-defined]
    # What is there already knows how much it is, and a file has been written.
    is_there = hasattr(result, "__length_hint__") or hasattr(result, "read")
    return isinstance(result, AsyncIterator) or (isinstance(result, Iterator) and not is_there)


def _record_failure(reservation: Reservation, exc: Exception) -> None:
    """What an error says of itself: that the model was not reached, or what its answer had used."""
    if reservation._use.cost is not None:
        return
    if getattr(exc, "reached", None) is False:
        reservation.void()
    elif type(cost := getattr(exc, "cost", None)) is int and cost >= 0:
        usage = getattr(exc, "usage", None)
        reservation.add(cost=cost, outcome=Outcome.ESTIMATED, usage=usage if isinstance(usage, Usage) else Usage(0, 0))
    elif isinstance(exc, BudgetError):
        # "Nothing was spent", it says of its own hold. Whether this function had called a model, nobody can know.
        exc.add_note(REFUSED_WITHIN)
        logger.warning("%s hold=%s estimate=%s", REFUSED_WITHIN, reservation.id, reservation.estimate)


def _refuse_unguardable(function: Any) -> None:
    if not callable(function):
        # `@guarded` without parentheses took the function for its estimate. What that is called with may be a prompt.
        what = type(function).__name__
        raise TypeError(f"A {what} is no function: write the estimate in parentheses, @guarded(estimate=50_000).")
    name = getattr(function, "__qualname__", repr(function))
    if hasattr(function, "_ninja_operation") or hasattr(function, "defer"):
        # An operation's or a job's: kept as it was given, it would be called past this guard, and its model unpaid.
        raise TypeError(f"{name} is an operation or a job already: write @guarded below what made it one.")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{name} is async def: guarded takes plain functions. Buy with chat.calls.acomplete instead.")
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{name} is a generator: guarded would settle it before its first value. Use reserve().")


def _record_result(reservation: Reservation, actual: int | Callable[[Any], int] | None, result: Any) -> None:
    """Keeps what the function recorded itself; else `actual` of the result; else the estimate stands, as estimated."""
    if reservation._use.cost is not None or actual is None:
        return
    metrics = reservation.context.metrics or Metrics()
    reservation.record(
        cost=actual(result) if callable(actual) else actual,
        model=metrics.model_version or "",
        tokens_input=metrics.tokens_input,
        tokens_output=metrics.tokens_output,
    )
