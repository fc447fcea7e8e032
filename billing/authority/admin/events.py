"""The events that were told: one, or pages of them, newest first. Reads only; they are written with what they tell."""

from __future__ import annotations

import json
from typing import Any

from django.db.models import F, Q, QuerySet
from django.db.models.expressions import RawSQL
from django.http import HttpResponse, JsonResponse

from billing.authority.admin.auth import Caller, admin_only, tenant_only
from billing.authority.admin.request import AdminRequest, moment, page, search
from billing.authority.errors import Refusal
from billing.authority.models import EmittedEvent

JSON = RawSQL("emitted_json(emitted_event)::text", ())
SORTS = {"timestamp": F("created_at"), **{n: F(n) for n in ("event_type", "category", "tenant_id", "scope")}}
EXACT = ("event_type", "category", "correlation_id", "trace_id", "request_id", "scope")


@admin_only
def listing(request: AdminRequest) -> HttpResponse:
    rows = EmittedEvent.objects.all()
    if tenant_id := request.GET.get("tenant_id"):
        rows = rows.filter(tenant_id=tenant_id)
    return _page(request, rows)


@tenant_only("events:read")
def own(request: AdminRequest, caller: Caller) -> HttpResponse:
    """The tenant's own; a tenant in the query does not count."""
    assert caller.tenant is not None
    return _page(request, EmittedEvent.objects.filter(tenant_id=caller.tenant.tenant_id))


@admin_only
def show(request: AdminRequest, event_id: str) -> HttpResponse:
    event: Any = EmittedEvent.objects.annotate(json=JSON).filter(event_id=event_id).first()
    if event is None:
        raise Refusal(404, "EVENT_NOT_FOUND", "There is no event of this id.")
    return JsonResponse(shown(event))


def shown(event: Any) -> Any:
    return json.loads(event.json)


def _page(request: AdminRequest, rows: QuerySet[Any]) -> HttpResponse:
    wanted: dict[str, Any] = {name: request.GET[name] for name in EXACT if request.GET.get(name)}
    since, until = moment(request, "from"), moment(request, "to")
    if since is not None:
        wanted["created_at__gte"] = since
    if until is not None:
        wanted["created_at__lte"] = until
    rows = rows.filter(**wanted).annotate(json=JSON)
    if text := search(request):
        rows = rows.filter(Q(correlation_id__icontains=text) | Q(scope__icontains=text))
    if request.GET.get("sort_by") == "scope":
        rows = rows.exclude(scope=None)  # a cursor cannot stand on nothing
    return page(request, rows, "events", shown, sorts=SORTS, default="id", identity="event_id")
