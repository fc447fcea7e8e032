"""Our errors as OpenAI's clients read them: the shape, the status, and whether to send the request again. Pure.

Owns the table from our codes to theirs. Must not tell anything that the error itself does not, and never lets a
client repeat by itself what may have been charged: the stock client repeats 409, 429 and 5xx unless a header forbids.

    400 404 405 413 415 422  invalid_request_error, `param` is the field
    401                      authentication_error, invalid_api_key
    402                      insufficient_budget, budget_exhausted, with `budget`: not sent again
    403                      permission_error
    409                      conflict_error: not sent again
    429                      insufficient_budget, budget_held: the money is held by others, sent again;
                             rate_limit_error, rate_limit_exceeded: sent again where that helps soon
    502 503                  server_error: sent again where surely nothing was charged
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from billing.errors import BudgetDenied, HouseError
from billing.money import usd
from chat.errors import ModelDeclined, ModelFailed, ModelMisconfigured, ModelNotPriced
from tenants.http import ApiError, Invalid, NotFound, RateLimited, TenantConflict, Unauthenticated

# The stock client waits this long at most where it is told to, and then asks: of a longer wait people must know.
LONGEST_WAIT_MS = 60_000
# What may pass by itself. No model was called, unless it is a ModelFailed.
_PASSING = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

_TYPES = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.PAYMENT_REQUIRED: "insufficient_budget",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.CONFLICT: "conflict_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
_NO_KEY = "Send a valid API key of this workspace as Authorization: Bearer <key>."
_NO_ADDRESS = "There is nothing at this address. Set the client's base URL to this site's, with /v1 at its end."
_AMOUNTS = ("allocated", "spent", "reserved", "remaining", "needed")
# What a limit is called, by the last part of the scope that it stands at.
_LIMITS = {
    "tenant": "workspace_budget",
    "workspace": "seat_limit",
    "app": "feature_limit",
    "workflow": "conversation_limit",
    "agent": "key_limit",
}


def refusal(exc: ApiError) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body."""
    if isinstance(exc, BudgetDenied) and not isinstance(exc, HouseError):
        return _denied(exc)
    said = exc.body()
    error = {
        "message": _sentence(exc, said["message"]),
        "type": _type(exc.status),
        "param": _param(exc),
        "code": _code(exc, said["error"]),
        **{name: value for name, value in said.items() if name not in _OURS},
    }
    return exc.status, _headers(exc), {"error": error}


def error_chunk(exc: ApiError) -> bytes:
    """The same for a stream that has begun: the stock client raises it."""
    return b"data: " + json.dumps(refusal(exc)[2], separators=(",", ":")).encode() + b"\n\n"


# Of our own shape, what has a place of its own in theirs.
_OURS = ("error", "message", "param")


def _type(status: int) -> str:
    named = _TYPES.get(HTTPStatus(status))
    return named or ("invalid_request_error" if status < 500 else "server_error")


def _code(exc: ApiError, ours: str) -> str:
    if isinstance(exc, Unauthenticated):
        return "invalid_api_key"
    return "rate_limit_exceeded" if isinstance(exc, RateLimited) else ours


def _param(exc: ApiError) -> str | None:
    if isinstance(exc, Invalid):
        # The whole of a body is no parameter.
        return next((name for name in exc.extra["fields"] if name != "body"), None)
    if isinstance(exc, TenantConflict):
        return "X-Tenant-ID"
    # An error that names a model is about the one that was asked for.
    return "model" if isinstance(exc, ModelNotPriced) or "model" in exc.extra else exc.extra.get("param")


def _sentence(exc: ApiError, message: str) -> str:
    """A client shows this line and often nothing else, so it names the fields itself."""
    if isinstance(exc, Invalid):
        told = [
            text if name == "body" else f"{name}: {text}"
            for name, texts in exc.extra["fields"].items()
            for text in texts
        ]
        return " ".join(told) or message
    if isinstance(exc, Unauthenticated):
        return _NO_KEY
    # A NotFound with words of its own knows better what is missing.
    return _NO_ADDRESS if isinstance(exc, NotFound) and message == NotFound.message else message


# --- money ----------------------------------------------------------------------------------------------------------


def _denied(exc: BudgetDenied) -> tuple[int, dict[str, str], dict[str, Any]]:
    """402 where only people can help, 429 where the money comes free by itself: the stock client sends a 402 once."""
    is_held = exc.reason == "held_by_others"
    status = HTTPStatus.TOO_MANY_REQUESTS if is_held else HTTPStatus.PAYMENT_REQUIRED
    more = {name: value for name, value in exc.extra.items() if name not in ("budget", "reason", *_WAYS_OUT)}
    error = {
        "message": _with_figures(exc),
        "type": "insufficient_budget",
        "param": "max_tokens" if exc.reason == "does_not_fit" and exc.budget.get("affordable_max_tokens") else None,
        "code": "budget_held" if is_held else "budget_exhausted",
        **more,
        "budget": _budget(exc),
    }
    return status, _headers(exc, is_free=is_held), {"error": error}


# What chat.v1.ways_out adds to the error, for the figures.
_WAYS_OUT = ("resets_at", "fits_with", "top_up_url")


def _budget(exc: BudgetDenied) -> dict[str, Any]:
    """The figures of the scope that refuses. Amounts are decimal dollars; null is unknown."""
    known, scope = exc.budget, exc.budget.get("scope")
    amounts = {name: known.get(name) for name in _AMOUNTS}
    return {
        "scope": scope,
        "limit_source": None if scope is None else _LIMITS.get(scope.rpartition("/")[2].partition(":")[0]),
        "reason": exc.reason,
        **{name: None if amount is None else usd(amount) for name, amount in amounts.items()},
        "unit": "USD",
        "affordable_max_tokens": known.get("affordable_max_tokens"),
        "resets_at": exc.extra.get("resets_at"),
        "retry_after_ms": exc.retry_after_ms,
        "fits_with": exc.extra.get("fits_with", []),
        "top_up_url": exc.extra.get("top_up_url"),
    }


def _with_figures(exc: BudgetDenied) -> str:
    remaining, needed = exc.budget.get("remaining"), exc.budget.get("needed")
    if remaining is None or needed is None:
        return exc.message
    return f"{exc.message} ${usd(max(0, remaining))} is left, and this request could cost up to ${usd(needed)}."


# --- whether to send it again ---------------------------------------------------------------------------------------


def _headers(exc: ApiError, *, is_free: bool | None = None) -> dict[str, str]:
    again = _is_free_to_repeat(exc) if is_free is None else is_free
    headers = {**exc.headers, "x-should-retry": "true" if again else "false"}
    if exc.retry_after_ms is not None and (again or exc.status in _PASSING):
        headers["retry-after"] = str(-(-exc.retry_after_ms // 1000))
    if exc.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return headers


def _is_free_to_repeat(exc: ApiError) -> bool:
    """Whether nothing was charged for it, and the same request may be taken soon."""
    if isinstance(exc, ModelFailed):
        is_free = not exc.reached and not isinstance(exc, (ModelDeclined, ModelMisconfigured))
    else:
        # Of these, what says no time does not pass by itself.
        is_free = exc.status in _PASSING and exc.retry_after_ms is not None
    return is_free and (exc.retry_after_ms or 0) <= LONGEST_WAIT_MS
