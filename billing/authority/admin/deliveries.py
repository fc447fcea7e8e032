"""What became of a subscription's deliveries: list them, try one now, send past events again."""

from __future__ import annotations

import json
import secrets
from typing import Any

from django.db import connection, transaction
from django.db.models import F
from django.http import HttpResponse, JsonResponse
from django.utils import timezone

from billing.authority import wire
from billing.authority.admin.auth import Caller
from billing.authority.admin.request import AdminRequest, iso, moment, page
from billing.authority.admin.shapes import Replay
from billing.authority.admin.trail import audit
from billing.authority.admin.webhooks import find, refuse_closed, security
from billing.authority.models import Delivery
from billing.authority.outbound import Message, send
from billing.authority.records import SYSTEM

SORTS = {"attempted_at": F("created_at"), "status": F("status")}
ENDED = (Delivery.Status.SUCCESS, Delivery.Status.FAILED)
REPLAYED_AT_MOST = 100
QUEUE = """
INSERT INTO delivery (delivery_id, subscription_id, event_id, status, attempts, created_at, due_at, trace_flags,
                      traceparent_inbound_valid)
SELECT short_id('del'), %(subscription)s, chosen.id, 'PENDING', 0, clock_timestamp(), clock_timestamp(), '01', false
FROM (
    SELECT e.id FROM emitted_event e
    WHERE (%(everyone)s OR e.tenant_id = %(tenant)s)
      AND (e.event_type = ANY (%(types)s) OR e.category = ANY (%(categories)s))
      AND (%(only)s::text[] IS NULL OR e.event_type = ANY (%(only)s::text[]))
      AND (%(since)s::timestamptz IS NULL OR e.created_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR e.created_at <= %(until)s::timestamptz)
    ORDER BY e.id DESC LIMIT %(limit)s
) AS chosen
"""


def shown(row: Delivery) -> dict[str, Any]:
    body: dict[str, Any] = {
        "delivery_id": row.delivery_id,
        "subscription_id": row.subscription.subscription_id,
        "event_id": row.event.event_id,
        "event_type": row.event.event_type,
        "status": row.status,
        "attempted_at": iso(row.created_at),
        "attempts": row.attempts,
        "trace_id": row.event.trace_id,
        "trace_flags": row.trace_flags,
        "traceparent_inbound_valid": row.traceparent_inbound_valid,
    }
    if row.status in ENDED:
        outcome = {name: getattr(row, name) for name in ("response_status", "response_time_ms", "error_message")}
        body |= {name: value for name, value in outcome.items() if value is not None}
        body["completed_at"] = iso(row.completed_at or row.created_at)
    return body


def listing(request: AdminRequest, caller: Caller, subscription_id: str) -> HttpResponse:
    rows = Delivery.objects.filter(subscription=find(caller, subscription_id)).select_related("subscription", "event")
    wanted: dict[str, Any] = {}
    if status := request.GET.get("status"):
        wanted["status"] = status
    if (since := moment(request, "from")) is not None:
        wanted["created_at__gte"] = since
    if (until := moment(request, "to")) is not None:
        wanted["created_at__lte"] = until
    return page(request, rows.filter(**wanted), "deliveries", shown, sorts=SORTS, default="id", identity="delivery_id")


def test(request: AdminRequest, caller: Caller, subscription_id: str) -> HttpResponse:
    """One event made up for it, sent at once and never again, whatever state the subscription is in."""
    row = find(caller, subscription_id)
    event_id = f"evt_test_{secrets.token_hex(6)}"
    event = {
        "event_id": event_id,
        "event_type": "system.webhook_test",
        "category": "system",
        "timestamp": iso(timezone.now()),
        "tenant_id": row.tenant_id,
        "actor": {"type": "admin" if caller.key_id is None else "api_key"},
        "source": "cycles-admin",
        "data": {"subscription_id": row.subscription_id},
        "trace_id": request.trace_id,
    }
    message = Message(
        row.url, row.sealed_secret, json.dumps(event).encode(), event_id, "system.webhook_test", request.trace_id,
        request_id=request.request_id, sealed_headers=row.sealed_headers,
    )  # fmt: skip
    outcome = send(message, security())
    body: dict[str, Any] = {
        "success": outcome.delivered,
        "response_time_ms": outcome.response_time_ms,
        "event_id": event_id,
    }
    if outcome.response_status is not None:
        body["response_status"] = outcome.response_status
    if not outcome.delivered:
        body["error_message"] = outcome.error
    with transaction.atomic(durable=True):
        audit(
            request, row.tenant_id, "testWebhookSubscription", 200, key_id=caller.key_id,
            resource=("webhook", row.subscription_id), metadata={"success": outcome.delivered},
        )  # fmt: skip
    return JsonResponse(body)


def replay(request: AdminRequest, caller: Caller, subscription_id: str) -> HttpResponse:
    """Queue past events that the subscription asks for, the newest ones if there are too many."""
    row = find(caller, subscription_id)
    body = wire.read(Replay, request.body or b"{}")
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        refuse_closed(row.tenant_id)
        cursor.execute(
            QUEUE,
            {
                "subscription": row.pk, "tenant": row.tenant_id, "everyone": row.tenant_id == SYSTEM,
                "types": row.event_types, "categories": row.event_categories or [], "only": body.event_types,
                "since": body.since, "until": body.to, "limit": body.max_events or REPLAYED_AT_MOST,
            },
        )  # fmt: skip
        queued = cursor.rowcount
        audit(
            request, row.tenant_id, "replayEvents", 202, key_id=caller.key_id,
            resource=("webhook", row.subscription_id), metadata={"events_queued": queued},
        )  # fmt: skip
    answer = {
        "replay_id": f"replay_{secrets.token_hex(6)}",
        "events_queued": queued,
        "estimated_completion_seconds": max(1, queued // 10),
    }
    return JsonResponse(answer, status=202)
