"""Tenants: make, show, list, change, suspend, close. A close ends everything the tenant owns in one transaction."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, connection, transaction
from django.db.models import F, Q
from django.http import HttpResponse, JsonResponse
from django.utils import timezone

from billing.authority import wire
from billing.authority.admin.auth import admin_only
from billing.authority.admin.request import AdminRequest, choice, iso, page, search
from billing.authority.errors import Refusal, invalid
from billing.authority.models import Tenant

SETTINGS = (
    "default_commit_overage_policy",
    "default_reservation_ttl_ms",
    "max_reservation_ttl_ms",
    "max_reservation_extensions",
)
SORTS = {name: F(name) for name in ("created_at", "tenant_id", "name", "status")}


def shown(tenant: Tenant) -> dict[str, Any]:
    body: dict[str, Any] = {
        "tenant_id": tenant.tenant_id,
        "name": tenant.name,
        "status": tenant.status,
        **{name: getattr(tenant, name) for name in SETTINGS},
        "created_at": iso(tenant.created_at),
    }
    for name in ("parent_tenant_id", "metadata", "reservation_expiry_policy"):
        if (value := getattr(tenant, name)) is not None:
            body[name] = value
    for name in ("updated_at", "suspended_at", "closed_at"):
        if (moment := getattr(tenant, name)) is not None:
            body[name] = iso(moment)
    return body


@admin_only
def create(request: AdminRequest) -> HttpResponse:
    """201 for a new tenant, 200 for the same id and name again, 409 for the same id under another name."""
    body = wire.read(wire.CreateTenant, request.body)
    try:
        made = Tenant.objects.create(**body.model_dump(exclude_none=True))
    except IntegrityError:
        there = Tenant.objects.get(tenant_id=body.tenant_id)
        if there.name != body.name:
            raise Refusal(409, "DUPLICATE_RESOURCE", facts={"scope": f"tenant {body.tenant_id}"}) from None
        return JsonResponse(shown(there))
    return JsonResponse(shown(Tenant.objects.get(pk=made.pk)), status=201)


@admin_only
def listing(request: AdminRequest) -> HttpResponse:
    rows = Tenant.objects.all()
    if "status" in request.GET:
        rows = rows.filter(status=choice(request, "status", tuple(Tenant.Status.values), ""))
    if parent := request.GET.get("parent_tenant_id"):
        rows = rows.filter(parent_tenant_id=parent)
    if text := search(request):
        rows = rows.filter(Q(tenant_id__icontains=text) | Q(name__icontains=text))
    return page(request, rows, "tenants", shown, sorts=SORTS, default="created_at", identity="tenant_id")


@admin_only
def show(request: AdminRequest, tenant_id: str) -> HttpResponse:
    return JsonResponse(shown(_get(tenant_id)))


@admin_only
def change(request: AdminRequest, tenant_id: str) -> HttpResponse:
    body = wire.read(wire.PatchTenant, request.body)
    with transaction.atomic(durable=True):
        tenant = _get(tenant_id, lock=True)
        for name, value in body.model_dump(exclude_none=True, exclude={"status"}).items():
            setattr(tenant, name, value)
        if body.status is not None:
            _change_status(tenant, body.status)
        tenant.updated_at = timezone.now()
        tenant.save()
    return JsonResponse(shown(tenant))


def _change_status(tenant: Tenant, status: str) -> None:
    """CLOSED is for good. `suspended_at` stays after a reactivation: it says when it was last suspended."""
    if tenant.status == Tenant.Status.CLOSED and status != Tenant.Status.CLOSED:
        raise invalid("Cannot transition from CLOSED: a closed tenant stays closed. Create another.")
    if status == tenant.status:
        return
    tenant.status = status
    if status == Tenant.Status.SUSPENDED:
        tenant.suspended_at = timezone.now()
    if status == Tenant.Status.CLOSED:
        tenant.closed_at = timezone.now()
        with connection.cursor() as cursor:
            cursor.execute("SELECT close_tenant(%s)", [tenant.pk])


def _get(tenant_id: str, *, lock: bool = False) -> Tenant:
    rows = Tenant.objects.all()
    if lock:
        rows = rows.select_for_update(no_key=True)  # no_key: running reserves reference this row and must not wait
    try:
        return rows.get(tenant_id=tenant_id)
    except Tenant.DoesNotExist:
        raise Refusal(404, "TENANT_NOT_FOUND") from None
