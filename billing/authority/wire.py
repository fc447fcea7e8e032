"""Shapes of what comes in: each request body as a strict model, read in one place.

Strict means: no unknown field at any depth, no number for a text, no text for a number. A refused body says which
field, what its limit is, and so what to send instead. Answers are built by the SQL functions, not here.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import to_json

from billing.authority.errors import invalid
from billing.authority.scopes import LEVELS

MAX_BODY = 1_048_576
MAX_DEPTH = 200  # what is kept is written and read again by code that calls itself for each level
MAX_VALUES = 20_000  # of more, each is an object or a fault to tell: a mebibyte of them took the loop 0.2 s
INT64 = 2**63 - 1
DAY_MS = 86_400_000
UNITS = ("USD_MICROCENTS", "TOKENS", "CREDITS", "RISK_POINTS")

Unit = Literal["USD_MICROCENTS", "TOKENS", "CREDITS", "RISK_POINTS"]
OveragePolicy = Literal["REJECT", "ALLOW_IF_AVAILABLE", "ALLOW_WITH_OVERDRAFT"]
Natural = Annotated[int, Field(ge=0, le=INT64)]


def _storable(value: str) -> str:
    """Postgres' text cannot keep U+0000, and half a surrogate pair has no UTF-8."""
    try:
        is_storable = b"\x00" not in value.encode()
    except UnicodeEncodeError:
        is_storable = False
    if not is_storable:
        raise ValueError("must not contain U+0000 or half a surrogate pair")
    return value


def not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _instant(value: object) -> object:
    """A text with date, time and zone becomes an instant; strict mode alone takes no text, lax mode takes too much."""
    if isinstance(value, str):
        return parse_instant(value)
    return value


def parse_instant(value: str) -> datetime:
    """In UTC: an instant that only its own zone can write would be stored and then break every list it is in."""
    try:
        moment = datetime.fromisoformat(value)
        moment.astimezone(UTC)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or moment.tzinfo is None or "T" not in value:
        raise ValueError("must be an instant such as 2026-01-31T00:00:00Z")
    return moment


Text64 = Annotated[str, Field(max_length=64), AfterValidator(_storable)]
Text128 = Annotated[str, Field(max_length=128), AfterValidator(_storable)]
Text256 = Annotated[str, Field(max_length=256), AfterValidator(_storable)]
Text512 = Annotated[str, Field(max_length=512), AfterValidator(_storable)]
Text1024 = Annotated[str, Field(max_length=1024), AfterValidator(_storable)]
FreeText = Annotated[str, AfterValidator(_storable)]
Key = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_storable), AfterValidator(not_blank)]
Name = Annotated[Text256, AfterValidator(not_blank)]
SubjectId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
TenantId = Annotated[str, Field(pattern=r"^[a-z0-9-]{3,64}$")]
Instant = Annotated[datetime, BeforeValidator(_instant)]
TtlMs = Annotated[int, Field(ge=1_000, le=DAY_MS)]


class Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Amount(Shape):
    unit: Unit
    amount: Natural


class Subject(Shape):
    tenant: SubjectId | None = None
    workspace: SubjectId | None = None
    app: SubjectId | None = None
    workflow: SubjectId | None = None
    agent: SubjectId | None = None
    toolset: SubjectId | None = None
    dimensions: Annotated[dict[str, Text256], Field(max_length=16)] | None = None

    @model_validator(mode="after")
    def names_someone(self) -> Self:
        if not any(getattr(self, level) for level in LEVELS):
            raise ValueError(f"must name at least one of {', '.join(LEVELS)}")
        return self


class Action(Shape):
    kind: Annotated[Text64, AfterValidator(not_blank)]
    name: Name
    tags: Annotated[list[Text64], Field(max_length=10)] | None = None


class Metrics(Shape):
    tokens_input: Natural | None = None
    tokens_output: Natural | None = None
    latency_ms: Natural | None = None
    model_version: Text128 | None = None
    custom: dict[str, Any] | None = None


class Keyed(Shape):
    idempotency_key: Key


class Decide(Keyed):
    subject: Subject
    action: Action
    estimate: Amount
    metadata: dict[str, Any] | None = None


class Reserve(Decide):
    ttl_ms: TtlMs | None = None
    grace_period_ms: Annotated[int, Field(ge=0, le=60_000)] | None = 5_000
    overage_policy: OveragePolicy | None = None
    dry_run: bool | None = False


class Commit(Keyed):
    actual: Amount
    metrics: Metrics | None = None
    metadata: dict[str, Any] | None = None


class Release(Keyed):
    reason: Text256 | None = None


class Extend(Keyed):
    extend_by_ms: Annotated[int, Field(ge=1, le=DAY_MS)]
    metadata: dict[str, Any] | None = None


class Event(Keyed):
    subject: Subject
    action: Action
    actual: Amount
    overage_policy: OveragePolicy | None = None
    metrics: Metrics | None = None
    client_time_ms: Natural | None = None
    metadata: dict[str, Any] | None = None


class TenantSettings(Shape):
    default_commit_overage_policy: OveragePolicy | None = None
    default_reservation_ttl_ms: TtlMs | None = None
    max_reservation_ttl_ms: TtlMs | None = None
    max_reservation_extensions: Natural | None = None


class CreateTenant(TenantSettings):
    tenant_id: TenantId
    name: Name
    parent_tenant_id: FreeText | None = None
    metadata: Annotated[dict[str, FreeText], Field(max_length=32)] | None = None
    reservation_expiry_policy: Literal["AUTO_RELEASE", "MANUAL_CLEANUP", "GRACE_ONLY"] | None = None


class PatchTenant(TenantSettings):
    name: FreeText | None = None
    status: Literal["ACTIVE", "SUSPENDED", "CLOSED"] | None = None
    metadata: dict[str, FreeText] | None = None


class CreateKey(Shape):
    tenant_id: Annotated[FreeText, AfterValidator(not_blank)]
    name: Name
    description: Text1024 | None = None
    permissions: list[str] | None = None
    scope_filter: list[FreeText] | None = None
    expires_at: Instant | None = None
    metadata: dict[str, Any] | None = None


class PatchKey(Shape):
    name: Text256 | None = None
    description: Text1024 | None = None
    permissions: list[str] | None = None
    scope_filter: list[FreeText] | None = None
    metadata: dict[str, Any] | None = None


class CreateBudget(Shape):
    tenant_id: Annotated[FreeText, AfterValidator(not_blank)] | None = None
    scope: Annotated[FreeText, AfterValidator(not_blank)]
    unit: Unit
    allocated: Amount
    overdraft_limit: Amount | None = None
    commit_overage_policy: OveragePolicy | None = None
    rollover_policy: Literal["NONE", "CARRY_FORWARD", "CAP_AT_ALLOCATED"] | None = None
    period_start: Instant | None = None
    period_end: Instant | None = None
    metadata: dict[str, Any] | None = None


class PatchBudget(Shape):
    overdraft_limit: Amount | None = None
    commit_overage_policy: OveragePolicy | None = None
    metadata: dict[str, Any] | None = None


class Fund(Shape):
    operation: Literal["CREDIT", "DEBIT", "RESET", "RESET_SPENT", "REPAY_DEBT"]
    amount: Amount
    spent: Amount | None = None
    reason: Text512 | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_storable)] | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def spent_belongs_to_reset_spent(self) -> Self:
        if self.spent is not None and self.operation != "RESET_SPENT":
            raise ValueError("spent goes with RESET_SPENT only")
        return self


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Freeze(Shape):
    # A remark for people: a number in it (a ticket's, say) is taken as it is written.
    reason: Annotated[Text512, BeforeValidator(_as_text)] | None = None
    metadata: dict[str, Any] | None = None


class Caps(Shape):
    max_tokens: Natural | None = None
    max_steps_remaining: Natural | None = None
    tool_allowlist: list[Text256] | None = None
    tool_denylist: list[Text256] | None = None
    cooldown_ms: Natural | None = None


ShapeT = TypeVar("ShapeT", bound=Shape)


def read(shape: type[ShapeT], raw: bytes) -> ShapeT:
    """Parse a body into its shape, or refuse with a sentence that names the field and its limit."""
    if len(raw) > MAX_BODY:
        raise invalid(f"The body is longer than {MAX_BODY} bytes.")
    if _has_too_many_values(raw):
        raise invalid(f"The body has more than {MAX_VALUES} values.")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        raise invalid("The body is no JSON text in UTF-8. Send one JSON object.") from None
    if not isinstance(value, dict):
        raise invalid("The body must be one JSON object.")
    # Few brackets cannot be nested deeply: most bodies are not looked through.
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise invalid(f"The body is nested deeper than {MAX_DEPTH} levels.")
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise invalid(_explain(error)) from None


_in_one_order = json.JSONEncoder(sort_keys=True).encode


def digest(shape: Shape, *more: str) -> bytes:
    """What makes two requests the same: every value, not their order, spelling or explicit defaults."""
    fields = shape.model_dump(mode="json", exclude_none=True)
    # Written by the standard library for good: what is kept of requests that were answered is compared with it.
    return hashlib.sha256(_in_one_order([fields, *more]).encode()).digest()


def dumped(value: BaseModel | dict[str, Any] | None) -> str | None:
    """As JSON text for a text column. ASCII only, so that U+0000 stays an escape."""
    if value is None:
        return None
    try:
        if isinstance(value, BaseModel):
            return value.model_dump_json(exclude_none=True, ensure_ascii=True)
        return to_json(value, ensure_ascii=True).decode()
    except ValueError:
        # Half a surrogate pair, which has no UTF-8, or more levels than it goes down. JSON has words for both.
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json", exclude_none=True)
        return json.dumps(value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    """1e400 would become infinity, which is kept, shown, and no JSON."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large")
    return value


def _has_too_many_values(raw: bytes) -> bool:
    """Counted before it is parsed: each value but the first in its container comes after a comma."""
    if _values(raw) <= MAX_VALUES:
        return False
    # Or a long text has commas in it. Without the escapes, every other part between quotes is outside of a text.
    plain = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    return _values(b"".join(plain.split(b'"')[::2])) > MAX_VALUES


def _values(raw: bytes) -> int:
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def _is_deeper(value: Any, levels: int) -> bool:
    """One level at a time, for a check that calls itself would break on what it looks for."""
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(layer)


def _explain(error: ValidationError) -> str:
    faults = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False)[:5]:
        place = ".".join(str(part) for part in fault["loc"]) or "the body"
        words = "is unknown; leave it out" if fault["type"] == "extra_forbidden" else fault["msg"]
        faults.append(f"{place}: {words.removeprefix('Value error, ')}")
    return "Validation failed: " + "; ".join(faults)


UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def check_header_key(header: str | None, key: str) -> None:
    """The body's key counts; a header that says otherwise is a caller's mistake."""
    if header is not None and header != key:
        raise invalid("X-Idempotency-Key differs from idempotency_key in the body. Send the same, or no header.")


def parse_limit(text: str | None, *, default: int, largest: int) -> int:
    if text is None or not text.strip():
        return default
    if not re.fullmatch(r"-?\d{1,9}", text) or not 1 <= int(text) <= largest:
        raise invalid(f"limit is {text!r}: write a whole number from 1 to {largest}.")
    return int(text)
