"""What answers of both planes are made of, and those of the runtime plane, by name. An object has these fields and no
others, but for what is the caller's own."""

from __future__ import annotations

from billing.authority.openapi.words import (
    ANYTHING,
    COUNT,
    FLAG,
    TEXT,
    TRACE,
    UNIT,
    UUID,
    WHOLE,
    Json,
    many,
    nullable,
    one_of,
    only,
    record,
    ref,
    texts,
)
from billing.authority.scopes import LEVELS
from billing.authority.wire import Caps

REASONS = (
    "BUDGET_EXCEEDED", "BUDGET_FROZEN", "BUDGET_CLOSED", "OVERDRAFT_LIMIT_EXCEEDED", "DEBT_OUTSTANDING",
)  # fmt: skip
ENDED = ("COMMITTED", "RELEASED", "EXPIRED")
AMOUNT, SIGNED = ref("HeldAmount"), ref("SignedAmount")

REFUSAL: dict[str, Json] = {
    "Refusal": record(
        {"error": TEXT, "message": TEXT, "request_id": TEXT, "trace_id": TRACE},
        {"details": ANYTHING},
    ),
    "HeldAmount": record({"unit": UNIT, "amount": COUNT}),
    "SignedAmount": record({"unit": UNIT, "amount": WHOLE}),
    "Health": record({"status": one_of("UP", "DOWN")}, {"groups": texts()}),
}

_SCOPED: dict[str, Json] = {"affected_scopes": texts()}
_PLACED: dict[str, Json] = {**_SCOPED, "scope_path": TEXT}
_CAPPED: dict[str, Json] = {"decision": only("ALLOW_WITH_CAPS"), "caps": ref("GivenCaps")}
_DENIED: dict[str, Json] = {"decision": only("DENY"), "reason_code": one_of(*REASONS, "BUDGET_NOT_FOUND")}
_COVERED: dict[str, Json] = {**_PLACED, "reserved": AMOUNT, "balances": many(ref("Balance"))}
_HELD: dict[str, Json] = {**_COVERED, "reservation_id": UUID, "expires_at_ms": COUNT, "remaining_ttl_ms": COUNT}
_ALLOWED: dict[str, Json] = {"decision": only("ALLOW")}
CAPS: dict[str, Json] = {
    **dict.fromkeys(Caps.model_fields, COUNT),
    "tool_allowlist": texts(),
    "tool_denylist": texts(),
}
_PROGRESS: dict[str, Json] = {"balances": many(ref("Balance"))}

RUNTIME: dict[str, Json] = {
    **REFUSAL,
    "GivenCaps": record({}, CAPS),
    "Balance": record(
        {"scope": TEXT, "scope_path": TEXT, "remaining": SIGNED}
        | dict.fromkeys(("reserved", "spent", "allocated"), AMOUNT),
        {"debt": AMOUNT, "overdraft_limit": AMOUNT, "is_over_limit": only(True)},
    ),
    "Decision": {
        "oneOf": [record({**_ALLOWED, **_SCOPED}), record({**_CAPPED, **_SCOPED}), record({**_DENIED, **_SCOPED})]
    },
    # Held, as a dry run would hold it, or denied by a dry run.
    "Reserved": {
        "oneOf": [
            *(record({**allowed, **held}) for allowed in (_ALLOWED, _CAPPED) for held in (_HELD, _COVERED)),
            record({**_DENIED, **_PLACED}),
        ]
    },
    "Committed": record({"status": only("COMMITTED"), "charged": AMOUNT, **_PROGRESS}, {"released": AMOUNT}),
    "Released": record({"status": only("RELEASED"), "released": AMOUNT, **_PROGRESS}),
    "Extended": record({"status": only("ACTIVE"), "expires_at_ms": COUNT, "remaining_ttl_ms": COUNT, **_PROGRESS}),
    "Applied": record({"status": only("APPLIED"), "event_id": UUID, **_PROGRESS}, {"charged": AMOUNT}),
    "Reservation": record(
        {
            "reservation_id": UUID,
            "status": one_of("ACTIVE", *ENDED),
            "idempotency_key": TEXT,
            "subject": record(
                {
                    **dict.fromkeys(LEVELS, nullable(TEXT)),
                    "dimensions": nullable({"type": "object", "additionalProperties": TEXT}),
                }
            ),
            "action": record({"kind": TEXT, "name": TEXT, "tags": nullable(texts())}),
            "reserved": AMOUNT,
            "created_at_ms": COUNT,
            "expires_at_ms": COUNT,
            **_PLACED,
        },
        {"committed": AMOUNT, "finalized_at_ms": COUNT, "metadata": ANYTHING, "committed_metadata": ANYTHING},
    ),
    "Balances": record({**_PROGRESS, "has_more": FLAG, "next_cursor": nullable(TEXT)}),
    "Reservations": record({"reservations": many(ref("Reservation")), "has_more": FLAG, "next_cursor": nullable(TEXT)}),
}
