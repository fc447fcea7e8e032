"""Policies: written down, listed, changed. Nothing applies them; what a plan allows is the app's own to enforce."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import transaction
from django.db.models import F
from django.http import HttpResponse, JsonResponse
from django.utils import timezone

from billing.authority import wire
from billing.authority.admin.auth import Caller, admin_or
from billing.authority.admin.request import AdminRequest, choice, iso, page, required
from billing.authority.admin.shapes import CreatePolicy, PatchPolicy, PolicySettings
from billing.authority.admin.trail import ON_BEHALF, actor_of, audit, emit
from billing.authority.errors import Refusal, invalid
from billing.authority.models import KeptPolicy, Tenant
from billing.authority.records import SYSTEM
from billing.authority.scopes import ScopeError, parse_pattern

SORTS = {name: F(name) for name in ("created_at", "name", "priority", "scope_pattern", "status")}
SETTINGS = set(PolicySettings.model_fields)


def shown(policy: KeptPolicy) -> dict[str, Any]:
    body: dict[str, Any] = {
        "policy_id": policy.policy_id,
        "name": policy.name,
        "scope_pattern": policy.scope_pattern,
        "priority": policy.priority,
        "status": policy.status,
        "created_at": iso(policy.created_at),
        **policy.settings,
    }
    if policy.description is not None:
        body["description"] = policy.description
    if policy.updated_at is not None:
        body["updated_at"] = iso(policy.updated_at)
    return body


@admin_or("policies:write")
def create(request: AdminRequest, caller: Caller) -> HttpResponse:
    body = wire.read(CreatePolicy, request.body)
    tenant_id = caller.owner(body.tenant_id)
    try:
        pattern = parse_pattern(body.scope_pattern, tenant_id)
    except ScopeError as error:
        raise invalid(f"{error}.") from None
    with transaction.atomic(durable=True):
        tenant = _open_tenant(tenant_id)
        policy = KeptPolicy.objects.create(
            policy_id=f"pol_{str(uuid.uuid4())[:16]}",
            tenant=tenant,
            name=body.name,
            description=body.description,
            scope_pattern=pattern,
            priority=body.priority or 0,
            settings=_settings(body),
            created_at=timezone.now(),
        )
        told = {"policy_id": policy.policy_id, "name": policy.name, "scope_pattern": pattern}
        emit(request, tenant_id, "policy.created", told, scope=pattern, actor=actor_of(caller.key_id, ON_BEHALF))
        _note(request, policy, "createPolicy", 201, caller.key_id)
    return JsonResponse(shown(policy), status=201)


def _open_tenant(tenant_id: str) -> Tenant:
    tenant = Tenant.objects.select_for_update(no_key=True).filter(tenant_id=tenant_id).first()
    if tenant is None:
        raise Refusal(404, "TENANT_NOT_FOUND")
    if tenant.status == Tenant.Status.CLOSED:
        raise Refusal(409, "TENANT_CLOSED")
    if tenant.status != Tenant.Status.ACTIVE:
        raise invalid(f"Tenant is not ACTIVE: {tenant_id}. Reactivate it first.")
    return tenant


def _settings(body: PolicySettings) -> dict[str, Any]:
    return body.model_dump(mode="json", exclude_none=True, include=SETTINGS)


@admin_or("policies:read")
def listing(request: AdminRequest, caller: Caller) -> HttpResponse:
    tenant_id = caller.tenant.tenant_id if caller.tenant else required(request, "tenant_id")
    rows = KeptPolicy.objects.filter(tenant__tenant_id=tenant_id)
    if "status" in request.GET:
        rows = rows.filter(status=choice(request, "status", tuple(KeptPolicy.Status.values), ""))
    if pattern := request.GET.get("scope_pattern"):
        rows = rows.filter(scope_pattern=pattern)
    return page(request, rows, "policies", shown, sorts=SORTS, default="created_at", identity="policy_id")


@admin_or("policies:write")
def change(request: AdminRequest, caller: Caller, policy_id: str) -> HttpResponse:
    """For operators. A tenant's key passes the gate and is then refused, whoever's the policy is."""
    body = wire.read(PatchPolicy, request.body)
    with transaction.atomic(durable=True):
        rows = KeptPolicy.objects.select_for_update(no_key=True, of=("self",)).select_related("tenant")
        policy = rows.filter(policy_id=policy_id).first()
        if policy is None:
            raise Refusal(404, "NOT_FOUND", "There is no policy of this id.")
        if caller.tenant is not None:
            raise Refusal(403, "FORBIDDEN", "A policy is changed by an operator, with the admin key.")
        if policy.tenant.status == Tenant.Status.CLOSED:
            raise Refusal(409, "TENANT_CLOSED")
        for name, value in body.model_dump(exclude_none=True, exclude=SETTINGS).items():
            setattr(policy, name, value)
        policy.settings = {**policy.settings, **_settings(body)}
        policy.updated_at = timezone.now()
        policy.save()
        told = {"policy_id": policy.policy_id, "name": policy.name, "scope_pattern": policy.scope_pattern}
        emit(request, SYSTEM, "policy.updated", told, scope=policy.scope_pattern)  # told to operators alone
        _note(request, policy, "updatePolicy", 200, None)
    return JsonResponse(shown(policy))


def _note(request: AdminRequest, policy: KeptPolicy, operation: str, status: int, key_id: str | None) -> None:
    audit(
        request, policy.tenant.tenant_id, operation, status, key_id=key_id, resource=("policy", policy.policy_id),
        metadata={"name": policy.name, "scope_pattern": policy.scope_pattern},
    )  # fmt: skip
