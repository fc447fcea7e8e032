"""API keys: make, list, change, revoke. The secret is in the answer of its making and nowhere else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import F, Q
from django.http import HttpResponse, JsonResponse
from django.utils import timezone

from billing.authority import wire
from billing.authority.admin.auth import admin_only
from billing.authority.admin.request import AdminRequest, choice, iso, page, search
from billing.authority.admin.trail import audit, emit
from billing.authority.errors import Refusal, invalid
from billing.authority.keys import DEFAULT_PERMISSIONS, PERMISSIONS, digest_of, new_key_id, new_secret, prefix_of
from billing.authority.models import ApiKey, Tenant

DEFAULT_LIFE = timedelta(days=90)
SORTS = {
    "created_at": F("created_at"),
    "key_id": F("key_id"),
    "name": F("name"),
    "status": F("status"),
    "tenant_id": F("tenant__tenant_id"),
    "expires_at": F("expires_at"),
}


def shown(key: ApiKey) -> dict[str, Any]:
    body: dict[str, Any] = {
        "key_id": key.key_id,
        "tenant_id": key.tenant.tenant_id,
        "key_prefix": key.prefix,
        "status": key.status,
        "name": key.name,
        "permissions": key.permissions,
        "created_at": iso(key.created_at),
        "expires_at": iso(key.expires_at),
    }
    for name in ("description", "scope_filter", "metadata", "revoked_reason"):
        if (value := getattr(key, name)) is not None:
            body[name] = value
    if key.revoked_at is not None:
        body["revoked_at"] = iso(key.revoked_at)
    return body


@admin_only
def create(request: AdminRequest) -> HttpResponse:
    body = wire.read(wire.CreateKey, request.body)
    _check_permissions(body.permissions)
    secret = new_secret()
    while ApiKey.objects.filter(prefix=prefix_of(secret)).exists():  # 30 random bits: it happens once in a while
        secret = new_secret()
    with transaction.atomic(durable=True):
        tenant = _open_tenant(body.tenant_id)
        key = ApiKey.objects.create(
            key_id=new_key_id(),
            prefix=prefix_of(secret),
            digest=digest_of(secret),
            tenant=tenant,
            name=body.name,
            description=body.description,
            permissions=DEFAULT_PERMISSIONS if body.permissions is None else body.permissions,
            scope_filter=body.scope_filter,
            metadata=body.metadata,
            created_at=timezone.now(),
            expires_at=body.expires_at or timezone.now() + DEFAULT_LIFE,
        )
        told = {"new_status": key.status, **({} if body.permissions is None else {"permissions": key.permissions})}
        _tell(request, key, "created", {"key_name": key.name, **told})
        _note(request, key, "createApiKey", 201, {"name": key.name})
    answer = shown(key)
    made = {name: answer[name] for name in ("key_id", "key_prefix", "tenant_id", "permissions", "created_at")}
    return JsonResponse({**made, "key_secret": secret, "expires_at": answer["expires_at"]}, status=201)


def _open_tenant(tenant_id: str) -> Tenant:
    """Locked, so that a close beside us revokes this key too."""
    tenant = Tenant.objects.select_for_update(no_key=True).filter(tenant_id=tenant_id).first()
    if tenant is None:
        raise Refusal(404, "TENANT_NOT_FOUND")
    if tenant.status == Tenant.Status.CLOSED:
        raise Refusal(409, "TENANT_CLOSED")
    if tenant.status != Tenant.Status.ACTIVE:
        raise invalid(f"Tenant is {tenant.status}: {tenant_id}. Reactivate it first.")
    return tenant


@admin_only
def listing(request: AdminRequest) -> HttpResponse:
    rows = ApiKey.objects.select_related("tenant")
    if tenant_id := request.GET.get("tenant_id"):
        rows = rows.filter(tenant__tenant_id=tenant_id)
    if "status" in request.GET:
        rows = rows.filter(status=choice(request, "status", ("ACTIVE", "REVOKED", "EXPIRED"), ""))
    if text := search(request):
        rows = rows.filter(Q(key_id__icontains=text) | Q(name__icontains=text))
    return page(request, rows, "keys", shown, sorts=SORTS, default="created_at", identity="key_id")


@admin_only
def change(request: AdminRequest, key_id: str) -> HttpResponse:
    body = wire.read(wire.PatchKey, request.body)
    _check_permissions(body.permissions)
    with transaction.atomic(durable=True):
        key = _get(key_id)
        if key.status == ApiKey.Status.REVOKED:
            raise Refusal(409, "INVALID_REQUEST", "Cannot modify a REVOKED key. Create another.")
        changes = body.model_dump(exclude_none=True)
        for name, value in changes.items():
            setattr(key, name, value)
        key.save(update_fields=list(changes))
        if "permissions" in changes:
            _tell(request, key, "permissions_changed", {"key_name": key.name, "permissions": key.permissions})
        _note(request, key, "updateApiKey", 200, {"name": key.name})
    return JsonResponse(shown(key))


@admin_only
def revoke(request: AdminRequest, key_id: str) -> HttpResponse:
    with transaction.atomic(durable=True):
        key = _get(key_id)
        if key.status == ApiKey.Status.REVOKED:
            raise Refusal(409, "KEY_REVOKED", "This key is revoked already.")
        key.status = ApiKey.Status.REVOKED
        key.revoked_at = timezone.now()
        key.revoked_reason = request.GET.get("reason")
        key.save(update_fields=["status", "revoked_at", "revoked_reason"])
        _tell(request, key, "revoked", {"new_status": key.status})
        _note(request, key, "revokeApiKey", 200, {"name": key.name, "reason": key.revoked_reason})
    return JsonResponse(shown(key))


def _tell(request: AdminRequest, key: ApiKey, what: str, told: dict[str, Any]) -> None:
    emit(request, key.tenant.tenant_id, f"api_key.{what}", {"key_id": key.key_id, **told})


def _note(request: AdminRequest, key: ApiKey, operation: str, status: int, metadata: dict[str, Any]) -> None:
    audit(
        request, key.tenant.tenant_id, operation, status, key_id=key.key_id, resource=("api_key", key.key_id),
        metadata=metadata,
    )  # fmt: skip


def _get(key_id: str) -> ApiKey:
    key = ApiKey.objects.select_for_update(no_key=True, of=("self",)).select_related("tenant").filter(key_id=key_id)
    found = key.first()
    if found is None:
        raise Refusal(404, "NOT_FOUND", "There is no API key of this id.")
    if found.tenant.status == Tenant.Status.CLOSED:
        raise Refusal(409, "TENANT_CLOSED")
    return found


def _check_permissions(permissions: list[str] | None) -> None:
    if unknown := set(permissions or []) - PERMISSIONS:
        raise invalid(f"permissions: unknown {', '.join(sorted(unknown))}. Use {', '.join(sorted(PERMISSIONS))}.")
