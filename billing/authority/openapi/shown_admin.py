"""What answers of the admin plane are made of, by name. An object has these fields and no others, but for what is the
caller's own."""

from __future__ import annotations

from typing import get_args

from billing.authority.admin.shapes import Category, EventType, RetryPolicy, Thresholds
from billing.authority.keys import PERMISSIONS
from billing.authority.openapi.shown import AMOUNT, CAPS, REFUSAL, SIGNED
from billing.authority.openapi.words import (
    ANYTHING,
    COUNT,
    FLAG,
    INSTANT,
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
    page,
    record,
    ref,
    texts,
)
from billing.authority.wire import OveragePolicy

POLICIES = get_args(OveragePolicy)
_FUNDED = ("allocated", "debt", "spent")
_BULK_KEPT = record({"id": TEXT})
_TENANT = ("default_reservation_ttl_ms", "max_reservation_ttl_ms", "max_reservation_extensions")
_METADATA: Json = {"type": "object", "additionalProperties": TEXT}
_INTEGER: Json = {"type": "integer", "minimum": 1}
_NUMBER: Json = {"type": "number", "minimum": 0}
_HEADERS: Json = {"type": "object", "additionalProperties": TEXT}
_KEY: dict[str, Json] = {
    "key_id": TEXT,
    "tenant_id": TEXT,
    "key_prefix": TEXT,
    "permissions": many(one_of(*sorted(PERMISSIONS))),
    "created_at": INSTANT,
    "expires_at": INSTANT,
}

MONEY: dict[str, Json] = {
    "Tenant": record(
        {
            "tenant_id": TEXT,
            "name": TEXT,
            "status": one_of("ACTIVE", "SUSPENDED", "CLOSED"),
            "default_commit_overage_policy": one_of(*POLICIES),
            **dict.fromkeys(_TENANT, COUNT),
            "created_at": INSTANT,
        },
        {
            "parent_tenant_id": TEXT,
            "metadata": _METADATA,
            "reservation_expiry_policy": one_of("AUTO_RELEASE", "MANUAL_CLEANUP", "GRACE_ONLY"),
            **dict.fromkeys(("updated_at", "suspended_at", "closed_at"), INSTANT),
        },
    ),
    "Key": record(
        {**_KEY, "status": one_of("ACTIVE", "REVOKED", "EXPIRED"), "name": TEXT},
        {
            "description": TEXT,
            "scope_filter": texts(),
            "metadata": ANYTHING,
            "revoked_reason": TEXT,
            "revoked_at": INSTANT,
        },
    ),
    "MadeKey": record({**_KEY, "key_secret": TEXT}),
    "Ledger": record(
        {
            "ledger_id": UUID,
            "tenant_id": TEXT,
            "scope": TEXT,
            "unit": UNIT,
            "status": one_of("ACTIVE", "FROZEN", "CLOSED"),
            **dict.fromkeys(("allocated", "reserved", "spent", "debt", "overdraft_limit"), AMOUNT),
            "remaining": SIGNED,
            "is_over_limit": FLAG,
            "created_at": INSTANT,
        },
        {
            "commit_overage_policy": one_of(*POLICIES),
            "rollover_policy": one_of("NONE", "CARRY_FORWARD", "CAP_AT_ALLOCATED"),
            **dict.fromkeys(("period_start", "period_end", "updated_at"), INSTANT),
        },
    ),
    "Funded": record(
        {
            "operation": one_of("CREDIT", "DEBIT", "RESET", "RESET_SPENT", "REPAY_DEBT"),
            **{f"{state}_{name}": AMOUNT for state in ("previous", "new") for name in _FUNDED},
            "previous_remaining": SIGNED,
            "new_remaining": SIGNED,
            "timestamp": INSTANT,
        }
    ),
    "LedgerBalances": record({"balances": many(ref("Ledger")), "has_more": FLAG, "next_cursor": nullable(TEXT)}),
    "GivenCaps": record({}, CAPS),
    "ScopeCaps": record({"scope": TEXT, "unit": UNIT, "caps": ref("GivenCaps")}),
    "Policy": record(
        {
            "policy_id": TEXT,
            "name": TEXT,
            "scope_pattern": TEXT,
            "priority": COUNT,
            "status": one_of("ACTIVE", "DISABLED"),
            "created_at": INSTANT,
        },
        {
            "description": TEXT,
            "updated_at": INSTANT,
            "caps": ref("GivenCaps"),
            "commit_overage_policy": one_of(*POLICIES),
            "reservation_ttl_override": record(
                {}, dict.fromkeys(("default_ttl_ms", "max_ttl_ms", "max_extensions"), COUNT)
            ),
            "rate_limits": record(
                {}, dict.fromkeys(("max_reservations_per_minute", "max_commits_per_minute"), _INTEGER)
            ),
            "effective_from": INSTANT,
            "effective_until": INSTANT,
        },
    ),
    "Bulk": record(
        {
            "action": TEXT,
            "total_matched": COUNT,
            "succeeded": many(_BULK_KEPT),
            "failed": many(record({"id": TEXT, "error_code": TEXT, "message": TEXT})),
            "skipped": many(record({"id": TEXT, "reason": only("ALREADY_IN_TARGET_STATE")})),
            "idempotency_key": TEXT,
        }
    ),
    "Validity": {
        "oneOf": [
            record({"valid": only(False), "tenant_id": TEXT, "reason": TEXT}),
            record(
                {"valid": only(True), **{name: _KEY[name] for name in ("tenant_id", "key_id", "permissions")}}
                | {"expires_at": INSTANT},
                {"scope_filter": texts()},
            ),
        ]
    },
    "Introspection": record(
        {
            "authenticated": only(True),
            "auth_type": one_of("admin", "tenant"),
            "permissions": texts(),
            "capabilities": {"type": "object", "additionalProperties": FLAG},
        },
        {"tenant_id": TEXT, "scope_filter": texts()},
    ),
    "Tenants": page("tenants", ref("Tenant")),
    "Keys": page("keys", ref("Key")),
    "Ledgers": page("ledgers", ref("Ledger")),
    "Policies": page("policies", ref("Policy")),
}

_SUBSCRIPTION_OPTIONS: dict[str, Json] = {
    "name": TEXT,
    "description": TEXT,
    "event_categories": many(one_of(*get_args(Category))),
    "scope_filter": TEXT,
    "thresholds": record(
        dict.fromkeys(Thresholds.model_fields, _NUMBER) | {"budget_utilization": many(_NUMBER)},
    ),
    "headers": _HEADERS,
    "metadata": ANYTHING,
    **dict.fromkeys(("updated_at", "last_triggered_at", "last_success_at", "last_failure_at"), INSTANT),
}
_TALLY: Json = {"type": "object", "additionalProperties": COUNT}
_STANDING = ("active", "suspended", "closed")

TRAIL: dict[str, Json] = {
    "EmittedEvent": record(
        {
            "event_id": TEXT,
            "event_type": one_of(*get_args(EventType)),
            "category": one_of(*get_args(Category)),
            "timestamp": INSTANT,
            "tenant_id": TEXT,
            "actor": record({"type": TEXT}, {"key_id": TEXT, "source_ip": TEXT}),
            "source": one_of("cycles-server", "cycles-admin"),
            "data": ANYTHING,
            "trace_id": TRACE,
        },
        {"scope": TEXT, "correlation_id": TEXT, "request_id": TEXT},
    ),
    "AuditEntry": record(
        {"log_id": TEXT, "timestamp": INSTANT, "tenant_id": TEXT, "operation": TEXT, "status": COUNT},
        {
            **dict.fromkeys(("key_id", "user_agent", "source_ip", "resource_type", "resource_id"), TEXT),
            "request_id": TEXT,
            "trace_id": TRACE,
            "error_code": TEXT,
            "metadata": ANYTHING,
        },
    ),
    "Subscription": record(
        {
            "subscription_id": TEXT,
            "tenant_id": TEXT,
            "url": TEXT,
            "event_types": many(one_of(*get_args(EventType))),
            "status": one_of("ACTIVE", "PAUSED", "DISABLED"),
            "retry_policy": record(dict.fromkeys(RetryPolicy.model_fields, _NUMBER)),
            "disable_after_failures": COUNT,
            "consecutive_failures": COUNT,
            "created_at": INSTANT,
        },
        _SUBSCRIPTION_OPTIONS,
    ),
    "MadeSubscription": record({"subscription": ref("Subscription"), "signing_secret": TEXT}),
    "Delivery": record(
        {
            **dict.fromkeys(("delivery_id", "subscription_id", "event_id"), TEXT),
            "event_type": one_of(*get_args(EventType)),
            "status": one_of("PENDING", "RETRYING", "SUCCESS", "FAILED"),
            "attempted_at": INSTANT,
            "attempts": COUNT,
            "trace_id": TRACE,
            "trace_flags": {"type": "string", "pattern": "^[0-9a-f]{2}$"},
            "traceparent_inbound_valid": FLAG,
        },
        {"response_status": COUNT, "response_time_ms": COUNT, "error_message": TEXT, "completed_at": INSTANT},
    ),
    "Tried": record(
        {"success": FLAG, "response_time_ms": COUNT, "event_id": TEXT},
        {"response_status": COUNT, "error_message": TEXT},
    ),
    "Replayed": record({"replay_id": TEXT, "events_queued": COUNT, "estimated_completion_seconds": COUNT}),
    "WebhookRules": record({"blocked_cidr_ranges": texts(), "allow_http": FLAG}, {"allowed_url_patterns": texts()}),
    "Overview": record(
        {
            "as_of": INSTANT,
            "event_window_seconds": COUNT,
            "tenant_counts": record({"total": COUNT, **dict.fromkeys(_STANDING, COUNT)}),
            "budget_counts": record(
                dict.fromkeys(("total", "over_limit", "with_debt", "active", "frozen", "closed"), COUNT)
                | {"by_unit": _TALLY}
            ),
            "over_limit_scopes": many(
                record({"scope": TEXT, "unit": UNIT, "allocated": COUNT, "remaining": WHOLE, "debt": COUNT})
            ),
            "debt_scopes": many(record({"scope": TEXT, "unit": UNIT, "debt": COUNT, "overdraft_limit": COUNT})),
            "webhook_counts": record(dict.fromkeys(("total", "active", "disabled", "with_failures"), COUNT)),
            "failing_webhooks": many(
                record(
                    {"subscription_id": TEXT, "url": TEXT, "consecutive_failures": COUNT},
                    {"last_failure_at": INSTANT},
                )
            ),
            "event_counts": record({"total_recent": COUNT, "by_category": _TALLY}),
            "recent_denials": many(ref("EmittedEvent")),
            "recent_expiries": many(ref("EmittedEvent")),
            "recent_denials_by_reason": _TALLY,
        }
    ),
    "Events": page("events", ref("EmittedEvent")),
    "AuditLog": page("logs", ref("AuditEntry")),
    "Subscriptions": page("subscriptions", ref("Subscription")),
    "Deliveries": page("deliveries", ref("Delivery")),
}
ADMIN: dict[str, Json] = {**REFUSAL, **MONEY, **TRAIL}
