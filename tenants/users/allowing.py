"""Which models a workspace, and each key of it, may call: who changes that, and that it is in the trail.

Owns the rows; what a call makes of them is decided where it is bought. None is all that can be called.
"""

from __future__ import annotations

from django.db import transaction

from tenants import services
from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import Forbidden, TenantRequest
from tenants.users.keys import facts_of, keys_for, may_revoke
from tenants.users.models import ApiKey


def allow_workspace(request: TenantRequest, models: list[str] | None) -> bool:
    """Whether there was anything to change."""
    tenant = request.tenant
    with transaction.atomic(durable=True):
        # Not the request's own: that one may have been read before another change, which this one then undoes.
        before = services.allow_models(tenant, models)
        if before == models:
            return False
        record(Event.MODELS_ALLOWED, request=request, target=tenant.name, before=said_of(before), after=said_of(models))
    return True


def allow_key(request: TenantRequest, key_id: int, models: list[str] | None) -> bool:
    """Whether there was anything to change. Raises ApiKey.DoesNotExist, Forbidden."""
    with transaction.atomic(durable=True):
        key = keys_for(request.user).select_for_update(of=("self",)).select_related("user").get(pk=key_id)
        if not may_revoke(request.user, key):
            raise Forbidden("Only somebody whose role is as high as its owner’s may change this key.")
        before = key.allowed_models
        if before == models:
            return False
        ApiKey.objects.filter(pk=key.pk).update(allowed_models=models)
        facts = {**facts_of(key), "before": said_of(before), "after": said_of(models)}
        record(Event.KEY_MODELS_CHANGED, request=request, target=key.name, **facts)
    return True


def said_of(models: list[str] | None) -> list[str] | str:
    return "all" if models is None else models
