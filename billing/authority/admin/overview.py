"""How everything stands, on one page: counts, what is in trouble, what happened in the last hour. Reads only."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from django.db.models import Count, Q
from django.http import HttpResponse, JsonResponse
from django.utils import timezone

from billing.authority.admin.auth import admin_only
from billing.authority.admin.events import JSON
from billing.authority.admin.request import AdminRequest, iso
from billing.authority.models import EmittedEvent, Ledger, Subscription, Tenant

WINDOW_SECONDS = 3600
SHOWN = 10


@admin_only
def overview(request: AdminRequest) -> HttpResponse:
    now = timezone.now()
    recent = EmittedEvent.objects.filter(created_at__gte=now - timedelta(seconds=WINDOW_SECONDS))
    denials = recent.filter(event_type="reservation.denied")
    return JsonResponse(
        {
            "as_of": iso(now),
            "event_window_seconds": WINDOW_SECONDS,
            "tenant_counts": Tenant.objects.aggregate(total=Count("pk"), **_by_status("active", "suspended", "closed")),
            "budget_counts": _budgets(),
            "over_limit_scopes": _ledgers(Q(is_over_limit=True), "allocated", "remaining", "debt"),
            "debt_scopes": _ledgers(Q(debt__gt=0), "debt", "overdraft_limit"),
            "webhook_counts": Subscription.objects.aggregate(
                total=Count("pk"),
                with_failures=Count("pk", filter=Q(consecutive_failures__gt=0)),
                **_by_status("active", "disabled"),
            ),
            "failing_webhooks": _failing(),
            "event_counts": {"total_recent": recent.count(), "by_category": _grouped(recent, "category")},
            "recent_denials": _latest(denials),
            "recent_expiries": _latest(recent.filter(event_type="reservation.expired")),
            "recent_denials_by_reason": _grouped(denials, "data__reason_code"),
        }
    )


def _by_status(*names: str) -> dict[str, Count]:
    return {name: Count("pk", filter=Q(status=name.upper())) for name in names}


def _budgets() -> dict[str, Any]:
    counts: dict[str, Any] = Ledger.objects.aggregate(
        total=Count("pk"),
        over_limit=Count("pk", filter=Q(is_over_limit=True)),
        with_debt=Count("pk", filter=Q(debt__gt=0)),
        **_by_status("active", "frozen", "closed"),
    )
    return {**counts, "by_unit": _grouped(Ledger.objects.all(), "unit")}


def _ledgers(which: Q, *figures: str) -> list[Any]:
    return list(Ledger.objects.filter(which).order_by("-debt", "scope").values("scope", "unit", *figures)[:SHOWN])


def _failing() -> list[dict[str, Any]]:
    rows = Subscription.objects.filter(consecutive_failures__gt=0).order_by("-consecutive_failures")[:SHOWN]
    return [
        {"subscription_id": row.subscription_id, "url": row.url, "consecutive_failures": row.consecutive_failures}
        | ({} if row.last_failure_at is None else {"last_failure_at": iso(row.last_failure_at)})
        for row in rows
    ]


def _grouped(rows: Any, name: str) -> dict[str, int]:
    return {str(key): count for key, count in rows.order_by().values_list(name).annotate(count=Count("pk"))}


def _latest(rows: Any) -> list[Any]:
    return [json.loads(event.json) for event in rows.annotate(json=JSON).order_by("-pk")[:SHOWN]]
