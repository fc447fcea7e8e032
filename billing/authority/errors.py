"""Refusals of both planes: one exception, one body, and the sentence of each code.

    Refusal                    a request that is answered with 4xx or 5xx; carries status, code, facts
      malformed(…)             400 INVALID_REQUEST: the body cannot be read
      invalid(…)               400 INVALID_REQUEST: a field is out of its limits

Programs match on `error` and the status; the message is for people, except the reason of a 401, which clients read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INTERNAL = "The authority could not finish this request. Nothing is known to be stored; repeat it with the same key."

SENTENCES = {
    "BUDGET_EXCEEDED": "The budget at {scope} has less left than the amount asked for. Fund it, or ask for less.",
    "BUDGET_FROZEN": "The budget at {scope} is frozen. Unfreeze it first.",
    "BUDGET_CLOSED": "The budget at {scope} is closed for good.",
    "BUDGET_NOT_FOUND": "There is no budget at {scope} in this unit. Create it first.",
    "OVERDRAFT_LIMIT_EXCEEDED": "The budget at {scope} is over its limit. Fund it to take new reservations.",
    "DEBT_OUTSTANDING": "The budget at {scope} owes a debt and has no overdraft. Repay the debt first.",
    "RESERVATION_EXPIRED": "This reservation expired, its hold is given back. Book the spend as an event.",
    "RESERVATION_FINALIZED": "This reservation was already committed or released under another key.",
    "IDEMPOTENCY_MISMATCH": "This idempotency key was used for another request. Use a new key.",
    "MAX_EXTENSIONS_EXCEEDED": "This reservation was extended {limit} times, the most its tenant allows.",
    "TENANT_CLOSED": "This tenant is closed; what it owns can only be read.",
    "TENANT_SUSPENDED": "This tenant is suspended. Reactivate it first.",
    "TENANT_NOT_FOUND": "There is no such tenant. Create it first.",
    "FORBIDDEN": "This belongs to another tenant than the key does.",
    "UNIT_MISMATCH": "The budget at {scope} is kept in another unit. Use one of its units.",
    "NOT_FOUND": "There is nothing of this id.",
    "DUPLICATE_RESOURCE": "This already exists: {scope}.",
    "INTERNAL_ERROR": INTERNAL,
}
# Sentences of one code that depend on what was refused (`what`).
PARTICULAR = {
    ("BUDGET_EXCEEDED", "commit"): "The actual amount is above the estimate and the policy is REJECT. Commit at most "
    "the estimate, or release.",
    ("BUDGET_EXCEEDED", "debit"): "The budget at {scope} has less left than the amount to take away.",
    ("OVERDRAFT_LIMIT_EXCEEDED", "commit"): "The charge would push a budget's debt past its overdraft limit.",
    ("NOT_FOUND", "budget"): "There is no budget for {scope} or any scope above it. Create one first.",
    ("NOT_FOUND", "reservation"): "There is no reservation of this id.",
    ("DUPLICATE_RESOURCE", "budget"): "There is a budget at {scope} in this unit already.",
    ("INVALID_REQUEST", "budget_status"): "The budget at {scope} is in that state already.",
}


class Refusal(Exception):
    """An answer other than success. `facts` fill the sentence; `details` go out with the body."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str = "",
        *,
        facts: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.message = message or sentence(code, facts or {})
        self.details = details
        self.headers = headers or {}
        super().__init__(f"{status} {code}: {self.message}")


def sentence(code: str, facts: Mapping[str, Any]) -> str:
    text = PARTICULAR.get((code, str(facts.get("what")))) or SENTENCES.get(code, code)
    return text.format_map({"scope": "this scope", "limit": "as often as allowed", **facts})


def body_of(refusal: Refusal, request_id: str, trace_id: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "error": refusal.code,
        "message": refusal.message,
        "request_id": request_id,
        "trace_id": trace_id,
    }
    if refusal.details:
        body["details"] = dict(refusal.details)
    return body


def from_database(status: int, facts: Mapping[str, Any]) -> Refusal:
    """A refusal that a SQL function answered. A 401's message is its reason, a word that clients match on."""
    code = str(facts["error"])
    if status == 401:
        return Refusal(401, "UNAUTHORIZED", code)
    if code == "TENANT_SUSPENDED":
        return Refusal(status, "INVALID_REQUEST", sentence(code, facts))
    return Refusal(status, code, facts=facts, details=facts.get("details"))


def invalid(message: str) -> Refusal:
    return Refusal(400, "INVALID_REQUEST", message)


def unauthorized(message: str) -> Refusal:
    return Refusal(401, "UNAUTHORIZED", message)


def internal() -> Refusal:
    return Refusal(500, "INTERNAL_ERROR")
