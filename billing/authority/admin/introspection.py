"""What a key is and may do: asked by an operator about any key, or by a key about itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import transaction
from django.http import HttpResponse, JsonResponse

from billing.authority import wire
from billing.authority.admin.auth import Caller, admin_only, admin_or, why_not
from billing.authority.admin.request import AdminRequest, iso
from billing.authority.admin.shapes import KeySecret
from billing.authority.admin.trail import audit
from billing.authority.keys import digest_of, prefix_of
from billing.authority.models import ApiKey

SEEN = ("overview", "budgets", "events", "webhooks", "audit", "tenants", "api_keys", "policies", "reservations")
MANAGED = ("budgets", "policies", "webhooks", "tenants", "api_keys", "reservations")
OPERATORS_ONLY = {"overview", "audit", "tenants", "api_keys"}  # no tenant's key opens these, whatever it is granted


@admin_only
def validate(request: AdminRequest) -> HttpResponse:
    secret = wire.read(KeySecret, request.body).key_secret.strip()
    key = ApiKey.objects.select_related("tenant").filter(prefix=prefix_of(secret)).first()
    reason = why_not(key, digest_of(secret))
    if key is None or reason:
        tenant_id = key.tenant.tenant_id if key else ""
        return JsonResponse({"valid": False, "tenant_id": tenant_id, "reason": reason})
    body: dict[str, Any] = {
        "valid": True,
        "tenant_id": key.tenant.tenant_id,
        "key_id": key.key_id,
        "permissions": key.permissions,
        "expires_at": iso(key.expires_at),
    }
    if key.scope_filter:
        body["scope_filter"] = key.scope_filter
    with transaction.atomic(durable=True):
        audit(request, key.tenant.tenant_id, "validateApiKey", 200, resource=("api_key", key.key_id))
    return JsonResponse(body)


@admin_or(None)
def introspect(request: AdminRequest, caller: Caller) -> HttpResponse:
    body: dict[str, Any] = {
        "authenticated": True,
        "auth_type": "admin" if caller.tenant is None else "tenant",
        "permissions": list(caller.permissions),
        "capabilities": capabilities(caller.permissions),
    }
    if caller.tenant is not None:
        body["tenant_id"] = caller.tenant.tenant_id
    if caller.scope_filter:
        body["scope_filter"] = caller.scope_filter
    return JsonResponse(body)


def capabilities(permissions: Iterable[str]) -> dict[str, bool]:
    granted = set(permissions)
    return {f"view_{name}": _may(granted, name, "read") for name in SEEN} | {
        f"manage_{name}": _may(granted, name, "write") for name in MANAGED
    }


def _may(granted: set[str], name: str, verb: str) -> bool:
    if "*" in granted:
        return True
    if name in OPERATORS_ONLY:
        return False
    if name == "reservations":
        acts = {permission for permission in granted if permission.startswith("reservations:")}
        return f"admin:{verb}" in granted or bool(acts if verb == "read" else acts - {"reservations:list"})
    return not granted.isdisjoint({f"{name}:{verb}", f"admin:{verb}", f"admin:{name}:{verb}"})
