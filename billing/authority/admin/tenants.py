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
from billing.authority.admin.trail import audit, context, emit
from billing.authority.errors import Refusal, invalid
from billing.authority.models import Tenant

SETTINGS = (
    "default_commit_overage_policy",
    "default_reservation_ttl_ms",
    "max_reservation_ttl_ms",
    "max_reservation_extensions",
)
CLOSE = "SELECT close_tenant(p_tenant => %(tenant)s, p_previous => %(previous)s, p_context => %(context)s::jsonb)"
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
    with transaction.atomic(durable=True):
        try:
            with transaction.atomic():
                Tenant.objects.create(**body.model_dump(exclude_none=True))
            status = 201
        except IntegrityError:
            status = 200
        tenant = Tenant.objects.get(tenant_id=body.tenant_id)
        if tenant.name != body.name:
            raise Refusal(409, "DUPLICATE_RESOURCE", facts={"scope": f"tenant {body.tenant_id}"})
        _tell(request, tenant, "created")
        _note(request, tenant, "createTenant", status, {"name": tenant.name})
    return JsonResponse(shown(tenant), status=status)


def _tell(request: AdminRequest, tenant: Tenant, what: str) -> None:
    told = {"tenant_id": tenant.tenant_id, "new_status": tenant.status, "changed_fields": []}
    emit(request, tenant.tenant_id, f"tenant.{what}", told)


def _note(request: AdminRequest, tenant: Tenant, operation: str, status: int, metadata: dict[str, Any]) -> None:
    resource = ("tenant", tenant.tenant_id)
    audit(request, tenant.tenant_id, operation, status, resource=resource, metadata=metadata)


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
        tenant.updated_at = timezone.now()
        if body.status is None or not change_status(request, tenant, body.status):
            tenant.save()
            _tell(request, tenant, "updated")
        _note(request, tenant, "updateTenant", 200, body.model_dump(exclude_none=True))
    return JsonResponse(shown(tenant))


def change_status(request: AdminRequest, tenant: Tenant, status: str) -> bool:
    """Save the locked tenant in another status; False if it is in it already. CLOSED is for good.
    `suspended_at` stays after a reactivation: it says when it was last suspended."""
    if tenant.status == Tenant.Status.CLOSED and status != Tenant.Status.CLOSED:
        raise invalid("Cannot transition from CLOSED: a closed tenant stays closed. Create another.")
    if status == tenant.status:
        return False
    previous, tenant.status, tenant.updated_at = tenant.status, status, timezone.now()
    if status == Tenant.Status.SUSPENDED:
        tenant.suspended_at = timezone.now()
    if status == Tenant.Status.CLOSED:
        tenant.closed_at = timezone.now()
        tenant.save()
        with connection.cursor() as cursor:
            told = {"tenant": tenant.pk, "previous": previous, "context": context(request)}
            cursor.execute(CLOSE, told)
        return True
    tenant.save()
    _tell(request, tenant, "suspended" if status == Tenant.Status.SUSPENDED else "reactivated")
    return True


def _get(tenant_id: str, *, lock: bool = False) -> Tenant:
    rows = Tenant.objects.all()
    if lock:
        rows = rows.select_for_update(no_key=True)  # no_key: running reserves reference this row and must not wait
    try:
        return rows.get(tenant_id=tenant_id)
    except Tenant.DoesNotExist:
        raise Refusal(404, "TENANT_NOT_FOUND") from None
