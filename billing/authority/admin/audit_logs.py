"""The audit log: who did what and how it ended, failed calls too. Reads only."""

from __future__ import annotations

from typing import Any

from django.db.models import F, Q
from django.http import HttpResponse

from billing.authority.admin.auth import admin_only
from billing.authority.admin.request import AdminRequest, iso, moment, page, search
from billing.authority.errors import invalid
from billing.authority.models import AuditEntry

SORTS = {"timestamp": F("created_at"), **{n: F(n) for n in ("operation", "status", "tenant_id")}}
EXACT = ("tenant_id", "key_id", "resource_type", "resource_id", "trace_id", "request_id")
OPTIONAL = (
    "key_id", "user_agent", "source_ip", "resource_type", "resource_id", "request_id", "trace_id", "error_code",
    "metadata",
)  # fmt: skip


def shown(entry: AuditEntry) -> dict[str, Any]:
    body = {
        "log_id": entry.log_id,
        "timestamp": iso(entry.created_at),
        "tenant_id": entry.tenant_id,
        "operation": entry.operation,
        "status": entry.status,
    }
    return body | {name: value for name in OPTIONAL if (value := getattr(entry, name)) is not None}


@admin_only
def listing(request: AdminRequest) -> HttpResponse:
    query = request.GET
    wanted: dict[str, Any] = {name: query[name] for name in EXACT if query.get(name)}
    for name in ("operation", "error_code"):
        if text := query.get(name):
            wanted[f"{name}__in"] = [part.strip() for part in text.split(",")]
    wanted |= _statuses(request)
    since, until = moment(request, "from"), moment(request, "to")
    if since is not None:
        wanted["created_at__gte"] = since
    if until is not None:
        wanted["created_at__lte"] = until
    rows = AuditEntry.objects.filter(**wanted)
    if excluded := query.get("error_code_exclude"):
        rows = rows.filter(Q(error_code=None) | ~Q(error_code__in=[part.strip() for part in excluded.split(",")]))
    if text := search(request):
        rows = rows.filter(Q(resource_id__icontains=text) | Q(log_id__icontains=text))
    return page(request, rows, "logs", shown, sorts=SORTS, default="id", identity="log_id")


def _statuses(request: AdminRequest) -> dict[str, int]:
    names = {"status": "status", "status_min": "status__gte", "status_max": "status__lte"}
    given = {name: request.GET[name] for name in names if request.GET.get(name)}
    if "status" in given and len(given) > 1:
        raise invalid("status goes without status_min and status_max: give one or the other.")
    for name, text in given.items():
        if not text.isascii() or not text.isdigit() or not 100 <= int(text[:4]) <= 599:
            raise invalid(f"{name}: write a status from 100 to 599.")
    wanted = {names[name]: int(text) for name, text in given.items()}
    if wanted.get("status__gte", 0) > wanted.get("status__lte", 999):
        raise invalid("status_min is above status_max.")
    return wanted
