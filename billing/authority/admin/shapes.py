"""Bodies that only the admin plane takes: policies, webhooks, bulk actions. Read by `wire.read`, as strict as all."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from billing.authority.wire import (
    Amount,
    Caps,
    FreeText,
    Instant,
    Name,
    Natural,
    OveragePolicy,
    Shape,
    Text128,
    Text256,
    Text1024,
    TtlMs,
    Unit,
    not_blank,
)

EventType = Literal[
    "budget.created", "budget.updated", "budget.funded", "budget.debited", "budget.reset", "budget.reset_spent",
    "budget.debt_repaid", "budget.frozen", "budget.unfrozen", "budget.closed", "budget.closed_via_tenant_cascade",
    "budget.threshold_crossed", "budget.exhausted", "budget.over_limit_entered", "budget.over_limit_exited",
    "budget.debt_incurred", "budget.burn_rate_anomaly",
    "reservation.denied", "reservation.denial_rate_spike", "reservation.expired", "reservation.expiry_rate_spike",
    "reservation.commit_overage", "reservation.released_via_tenant_cascade",
    "tenant.created", "tenant.updated", "tenant.suspended", "tenant.reactivated", "tenant.closed",
    "tenant.settings_changed",
    "webhook.created", "webhook.updated", "webhook.paused", "webhook.resumed", "webhook.disabled", "webhook.deleted",
    "webhook.disabled_via_tenant_cascade",
    "api_key.created", "api_key.revoked", "api_key.revoked_via_tenant_cascade", "api_key.expired",
    "api_key.permissions_changed", "api_key.auth_failed", "api_key.auth_failure_rate_spike",
    "policy.created", "policy.updated", "policy.deleted",
    "system.store_connection_lost", "system.store_connection_restored", "system.high_latency",
    "system.webhook_delivery_failed", "system.webhook_test",
]  # fmt: skip
Category = Literal["budget", "reservation", "tenant", "webhook", "api_key", "policy", "system"]
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")


def _sendable(headers: dict[str, str]) -> dict[str, str]:
    """Names and values that cannot break out of their header line."""
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name) or name.lower() in ("host", "content-length", "transfer-encoding", "connection"):
            raise ValueError(f"{name!r} is no header that may be set")
        if not value.isascii() or not value.isprintable() or len(value) > 1024:
            raise ValueError(f"the value of {name!r} must be printable ASCII of at most 1024 characters")
    return headers


Rate = Annotated[float, Field(ge=0, le=1)]
Window = Annotated[int, Field(ge=60, le=86_400)]
EventTypes = Annotated[list[EventType], Field(min_length=1)]
Headers = Annotated[dict[str, str], Field(max_length=32), AfterValidator(_sendable)]
Url = Annotated[FreeText, Field(max_length=2048)]
BulkKey = Annotated[Text128, AfterValidator(not_blank)]


class KeySecret(Shape):
    key_secret: Annotated[str, AfterValidator(not_blank)]


class TtlOverride(Shape):
    default_ttl_ms: TtlMs | None = None
    max_ttl_ms: TtlMs | None = None
    max_extensions: Natural | None = None


class RateLimits(Shape):
    max_reservations_per_minute: Annotated[int, Field(ge=1)] | None = None
    max_commits_per_minute: Annotated[int, Field(ge=1)] | None = None


class PolicySettings(Shape):
    """What a policy says; kept as it is."""

    caps: Caps | None = None
    commit_overage_policy: OveragePolicy | None = None
    reservation_ttl_override: TtlOverride | None = None
    rate_limits: RateLimits | None = None
    effective_from: Instant | None = None
    effective_until: Instant | None = None


class CreatePolicy(PolicySettings):
    tenant_id: FreeText | None = None
    name: Name
    description: Text1024 | None = None
    scope_pattern: Annotated[FreeText, AfterValidator(not_blank)]
    priority: Natural | None = None


class PatchPolicy(PolicySettings):
    name: Text256 | None = None
    description: Text1024 | None = None
    priority: Natural | None = None
    status: Literal["ACTIVE", "DISABLED"] | None = None


class RetryPolicy(Shape):
    max_retries: Annotated[int, Field(ge=0, le=10)] = 5
    initial_delay_ms: Annotated[int, Field(ge=100, le=60_000)] = 1_000
    backoff_multiplier: Annotated[float, Field(ge=1, le=10)] = 2.0
    max_delay_ms: Annotated[int, Field(ge=1_000, le=3_600_000)] = 60_000


class Thresholds(Shape):
    budget_utilization: list[Rate] = [0.8, 0.95, 1.0]
    burn_rate_multiplier: Annotated[float, Field(ge=1.5)] = 3.0
    burn_rate_window_seconds: Window = 300
    denial_rate_threshold: Rate = 0.1
    expiry_rate_threshold: Rate = 0.05
    auth_failure_rate_threshold: Rate = 0.1
    rate_window_seconds: Window = 300


class WebhookSettings(Shape):
    name: Text256 | None = None
    description: Text1024 | None = None
    event_categories: list[Category] | None = None
    scope_filter: Text1024 | None = None
    thresholds: Thresholds | None = None
    signing_secret: Annotated[FreeText, Field(min_length=16, max_length=256)] | None = None
    headers: Headers | None = None
    retry_policy: RetryPolicy | None = None
    disable_after_failures: Natural | None = None
    metadata: dict[str, Any] | None = None


class CreateWebhook(WebhookSettings):
    url: Url
    event_types: EventTypes


class PatchWebhook(WebhookSettings):
    url: Url | None = None
    event_types: EventTypes | None = None
    status: Literal["ACTIVE", "PAUSED"] | None = None


class Replay(Shape):
    max_events: Annotated[int, Field(ge=1, le=1_000)] | None = None
    event_types: list[EventType] | None = None
    # `from` is a word of the language, so it has a name of ours.
    since: Annotated[Instant | None, Field(alias="from")] = None
    to: Instant | None = None


class WebhookSecurity(Shape):
    allow_http: bool | None = None
    blocked_cidr_ranges: list[Text256] | None = None
    allowed_url_patterns: list[Url] | None = None


class Bulk(Shape):
    idempotency_key: BulkKey
    expected_count: Natural | None = None


class Filter(Shape):
    """Which rows a bulk action means. An empty one would mean all, which nobody means."""

    search: Text128 | None = None

    @model_validator(mode="after")
    def says_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"must have at least one of {', '.join(type(self).model_fields)}")
        return self


class TenantFilter(Filter):
    status: Literal["ACTIVE", "SUSPENDED", "CLOSED"] | None = None
    parent_tenant_id: FreeText | None = None


class BulkTenants(Bulk):
    filter: TenantFilter
    action: Literal["SUSPEND", "REACTIVATE", "CLOSE"]


class WebhookFilter(Filter):
    tenant_id: FreeText | None = None
    status: Literal["ACTIVE", "PAUSED", "DISABLED"] | None = None
    event_type: EventType | None = None


class BulkWebhooks(Bulk):
    filter: WebhookFilter
    action: Literal["PAUSE", "RESUME", "DELETE"]


class BudgetFilter(Filter):
    tenant_id: Annotated[FreeText, AfterValidator(not_blank)]
    scope_prefix: FreeText | None = None
    unit: Unit | None = None
    status: Literal["ACTIVE", "FROZEN", "CLOSED"] | None = None
    over_limit: bool | None = None
    has_debt: bool | None = None
    utilization_min: Rate | None = None
    utilization_max: Rate | None = None


class BulkBudgets(Bulk):
    filter: BudgetFilter
    action: Literal["CREDIT", "DEBIT", "RESET", "RESET_SPENT", "REPAY_DEBT"]
    amount: Amount
    spent: Amount | None = None
    reason: Annotated[FreeText, Field(max_length=512)] | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def spent_belongs_to_reset_spent(self) -> Self:
        if self.spent is not None and self.action != "RESET_SPENT":
            raise ValueError("spent goes with RESET_SPENT only")
        if self.spent is not None and self.spent.unit != self.amount.unit:
            raise ValueError("spent and amount must be in one unit")
        return self
