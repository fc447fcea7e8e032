"""The runtime plane's operations, by method and path. Describes; `runtime.app` decides."""

from __future__ import annotations

from billing.authority import wire
from billing.authority.openapi.probes import PROBES
from billing.authority.openapi.shown import ENDED, REASONS
from billing.authority.openapi.words import (
    CURSOR,
    INSTANT,
    SINCE,
    UNTIL,
    Opens,
    Operation,
    Parameter,
    choice,
    limit,
    paged,
    ref,
    text,
)
from billing.authority.scopes import LEVELS

_BAD = ("INVALID_REQUEST",)
_BAD_OR_UNIT = ("INVALID_REQUEST", "UNIT_MISMATCH")
_FOREIGN = ("FORBIDDEN",)
_NONE = ("NOT_FOUND",)
_ENDED = ("IDEMPOTENCY_MISMATCH", "RESERVATION_FINALIZED")
_LATE = ("RESERVATION_EXPIRED",)
_HELD = {400: _BAD_OR_UNIT, 403: _FOREIGN, 404: _NONE}
_ONE = {400: _BAD, 403: _FOREIGN, 404: _NONE, 410: _LATE}

_levels = tuple(text(level, f"Only what has this {level}.") for level in LEVELS)
_windows = tuple(
    Parameter(f"{what}_{side}", INSTANT, f"Only what {does} {when} this instant.")
    for what, does in (("expires", "expires"), ("finalized", "ended"))
    for side, when in (("from", "not before"), ("to", "not after"))
)
_reservations = (
    *_levels, choice("status", ("ACTIVE", *ENDED), "Only those of this status."),
    text("idempotency_key", "Only the one made under this key."), SINCE, UNTIL, *_windows,
    text("include", "A list with commas: metadata, committed_metadata are shown with it only."),
    *paged("reservation_id", "tenant", "scope_path", "status", "reserved", "created_at_ms", "expires_at_ms",
           largest=200),
)  # fmt: skip
_balances = (
    *_levels, choice("include_children", ("true", "false"), "Without effect: scopes below are always there."),
    limit(200), CURSOR,
)  # fmt: skip

PATH = {"reservation_id": {"type": "string", "minLength": 1, "maxLength": 128}}

OPERATIONS: dict[str, Operation] = {
    "POST /v1/decide": Operation(
        "Would this estimate be held now? Holds nothing.", Opens.TENANT, {200: ref("Decision")},
        {400: _BAD_OR_UNIT, 403: _FOREIGN, 409: ("IDEMPOTENCY_MISMATCH",)}, body=wire.Decide,
    ),
    "POST /v1/reservations": Operation(
        "Hold an estimate on every budgeted scope of the subject.", Opens.TENANT, {200: ref("Reserved")},
        {**_HELD, 409: (*REASONS, "IDEMPOTENCY_MISMATCH")}, body=wire.Reserve,
    ),
    "GET /v1/reservations": Operation(
        "A page of one tenant's reservations. With the admin key, tenant is required.", Opens.EITHER,
        {200: ref("Reservations")}, {400: _BAD, 403: _FOREIGN}, _reservations,
    ),
    "GET /v1/reservations/{reservation_id}": Operation(
        "One reservation, unless it expired.", Opens.EITHER, {200: ref("Reservation")}, _ONE,
    ),
    "POST /v1/reservations/{reservation_id}/commit": Operation(
        "Turn a hold into spend, once.", Opens.TENANT, {200: ref("Committed")},
        {**_ONE, 400: _BAD_OR_UNIT, 409: (*_ENDED, "BUDGET_EXCEEDED", "OVERDRAFT_LIMIT_EXCEEDED")}, body=wire.Commit,
    ),
    "POST /v1/reservations/{reservation_id}/release": Operation(
        "Give a hold back, once.", Opens.EITHER, {200: ref("Released")}, {**_ONE, 409: (*_ENDED, "TENANT_CLOSED")},
        body=wire.Release,
    ),
    "POST /v1/reservations/{reservation_id}/extend": Operation(
        "Move a hold's expiry, counted from the old one.", Opens.TENANT, {200: ref("Extended")},
        {**_ONE, 409: (*_ENDED, "MAX_EXTENSIONS_EXCEEDED")}, body=wire.Extend,
    ),
    "POST /v1/events": Operation(
        "Book spend that had no hold.", Opens.TENANT, {201: ref("Applied")},
        {
            **_HELD,
            409: ("BUDGET_EXCEEDED", "BUDGET_FROZEN", "BUDGET_CLOSED", "OVERDRAFT_LIMIT_EXCEEDED",
                  "IDEMPOTENCY_MISMATCH"),
        },
        body=wire.Event,
    ),
    "GET /v1/balances": Operation(
        "The tenant's ledgers below a subject; at least one level must be given.", Opens.TENANT,
        {200: ref("Balances")}, {400: _BAD, 403: _FOREIGN}, _balances,
    ),
    **PROBES,
}  # fmt: skip
