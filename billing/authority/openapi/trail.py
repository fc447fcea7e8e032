"""The admin plane's operations on events, audit rows and webhooks. Describes; the views decide."""

from __future__ import annotations

from typing import get_args

from billing.authority.admin import shapes
from billing.authority.openapi.money import BAD, BULK, KEY_REFUSED
from billing.authority.openapi.probes import PROBES
from billing.authority.openapi.words import (
    SEARCH,
    SINCE,
    UNTIL,
    Opens,
    Operation,
    Parameter,
    choice,
    paged,
    ref,
    text,
)

_GONE = ("WEBHOOK_NOT_FOUND", "NOT_FOUND")
_ONE = {400: BAD, 404: _GONE}
_OWN = {**_ONE, 403: KEY_REFUSED}
_URL = ("INVALID_REQUEST", "WEBHOOK_URL_INVALID")
_CLOSED = {409: ("TENANT_CLOSED",)}
_STATUS = {"type": "integer", "minimum": 100, "maximum": 599}

_told = (
    choice("event_type", get_args(shapes.EventType), "Only events of this type."),
    choice("category", get_args(shapes.Category), "Only events of this category."),
    text("correlation_id", "Only what has one cause."), text("trace_id", "Only what one trace did."),
    text("request_id", "Only what one request did."), text("scope", "Only events of just this scope."), SINCE, UNTIL,
    SEARCH, *paged("timestamp", "event_type", "category", "tenant_id", "scope"),
)  # fmt: skip
_tenant_id = text("tenant_id", "Only those of this tenant.")
_logs = (
    _tenant_id, text("key_id", "Only what this key did."), text("resource_type", "Only what was done to such things."),
    text("resource_id", "Only what was done to this one."), text("trace_id", "Only what one trace did."),
    text("request_id", "Only what one request did."), text("operation", "Only these operations: a list with commas."),
    text("error_code", "Only these codes: a list with commas."),
    text("error_code_exclude", "None of these codes: a list with commas."),
    Parameter("status", _STATUS, "Only this status; goes without the next two."),
    Parameter("status_min", _STATUS, "Only this status and above."),
    Parameter("status_max", _STATUS, "Only this status and below."), SINCE, UNTIL, SEARCH,
    *paged("timestamp", "operation", "status", "tenant_id"),
)  # fmt: skip
_hooks = (
    text("status", "Only those of this status."), text("event_type", "Only those that asked for this type."), SEARCH,
    *paged("url", "tenant_id", "status", "consecutive_failures"),
)  # fmt: skip
_deliveries = (text("status", "Only those of this status."), SINCE, UNTIL, *paged("attempted_at", "status"))
_whose = text("tenant", "Whose webhooks. Required with the admin key, refused with another.")
_owner = text("tenant_id", "Whose it shall be; without it, the operators' own.")


def _on_one(prefix: str, opens: Opens, refusals: dict[int, tuple[str, ...]]) -> dict[str, Operation]:
    """What both an operator and a tenant do to one subscription."""
    path = f"{prefix}/{{subscription_id}}"
    return {
        f"GET {path}": Operation(
            "One subscription, its headers hidden.", opens, {200: ref("Subscription")}, refusals
        ),
        f"PATCH {path}": Operation(
            "Change, pause or resume a subscription.", opens, {200: ref("Subscription")},
            {**refusals, **_CLOSED, 400: _URL}, body=shapes.PatchWebhook,
        ),
        f"DELETE {path}": Operation("Delete a subscription.", opens, {204: None}, {**refusals, **_CLOSED}),
        f"POST {path}/test": Operation(
            "Send a made-up event now, once, and say what came of it.", opens, {200: ref("Tried")}, refusals
        ),
        f"GET {path}/deliveries": Operation(
            "A page of its deliveries.", opens, {200: ref("Deliveries")}, refusals, _deliveries
        ),
    }  # fmt: skip


OPERATIONS: dict[str, Operation] = {
    "GET /v1/admin/events": Operation(
        "A page of what was told.", Opens.ADMIN, {200: ref("Events")}, {400: BAD}, (_tenant_id, *_told)
    ),
    "GET /v1/admin/events/{event_id}": Operation(
        "One event.", Opens.ADMIN, {200: ref("EmittedEvent")}, {400: BAD, 404: ("EVENT_NOT_FOUND", "NOT_FOUND")}
    ),
    "GET /v1/events": Operation(
        "A page of what was told of the tenant.", Opens.TENANT, {200: ref("Events")}, {400: BAD, 403: KEY_REFUSED},
        _told,
    ),
    "GET /v1/admin/audit/logs": Operation(
        "A page of who did what, failed calls too.", Opens.ADMIN, {200: ref("AuditLog")}, {400: BAD}, _logs
    ),
    "GET /v1/admin/overview": Operation("How everything stands.", Opens.ADMIN, {200: ref("Overview")}),
    "GET /v1/admin/config/webhook-security": Operation(
        "Where webhooks may go.", Opens.ADMIN, {200: ref("WebhookRules")}
    ),
    "PUT /v1/admin/config/webhook-security": Operation(
        "Say where webhooks may go; what is left out is as strict as at the start.", Opens.ADMIN,
        {200: ref("WebhookRules")}, {400: BAD}, body=shapes.WebhookSecurity,
    ),
    "GET /v1/admin/webhooks": Operation(
        "A page of subscriptions.", Opens.ADMIN, {200: ref("Subscriptions")}, {400: BAD}, (_tenant_id, *_hooks)
    ),
    "POST /v1/admin/webhooks": Operation(
        "Subscribe to events. The secret is in this answer and nowhere else.", Opens.ADMIN,
        {201: ref("MadeSubscription")}, {400: _URL, **_CLOSED}, (_owner,), body=shapes.CreateWebhook,
    ),
    "POST /v1/admin/webhooks/bulk-action": Operation(
        "Pause, resume or delete many subscriptions, all in one transaction.", Opens.ADMIN, {200: ref("Bulk")}, BULK,
        body=shapes.BulkWebhooks,
    ),
    **_on_one("/v1/admin/webhooks", Opens.ADMIN, _ONE),
    "POST /v1/admin/webhooks/{subscription_id}/replay": Operation(
        "Send past events again.", Opens.ADMIN, {202: ref("Replayed")}, {**_ONE, **_CLOSED}, body=shapes.Replay,
        body_required=False,
    ),
    "GET /v1/webhooks": Operation(
        "A page of the tenant's own subscriptions.", Opens.EITHER, {200: ref("Subscriptions")},
        {400: BAD, 403: KEY_REFUSED}, (_whose, *_hooks),
    ),
    "POST /v1/webhooks": Operation(
        "Subscribe to events of the tenant's own.", Opens.TENANT, {201: ref("MadeSubscription")},
        {400: _URL, 403: KEY_REFUSED, **_CLOSED}, body=shapes.CreateWebhook,
    ),
    **_on_one("/v1/webhooks", Opens.EITHER, _OWN),
    **PROBES,
}  # fmt: skip

PATH = {
    "subscription_id": {"type": "string", "minLength": 1},
    "event_id": {"type": "string", "minLength": 1},
}
