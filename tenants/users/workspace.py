"""What members with the right to it change of their workspace: its name, its time zone, its address, and the web
pages that may ask its API.

Owns that each change is in the trail, and how often an address may be changed. The rows are tenants.services'; who may
is decided by the page.
"""

from __future__ import annotations

from datetime import timedelta

from django.contrib.auth import logout
from django.db import transaction
from django.utils import timezone

from tenants import services
from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import RateLimited, TenantRequest
from tenants.limits import Rate, give_back, take
from tenants.users.auth import proven_at
from tenants.users.browsers import forget_session
from tenants.users.handoff import issue_token

# A workspace keeps every address that it had: with more it could collect names. 5 at once, then one each 6 days.
ADDRESSES = Rate("workspace-address", burst=5, every=timedelta(days=6).total_seconds())


def change_details(request: TenantRequest, *, name: str, time_zone: str) -> bool:
    """Whether there was anything to change."""
    tenant = request.tenant
    with transaction.atomic(durable=True):
        before = services.change_name(tenant, name), services.change_time_zone(tenant, time_zone)
        if before[0] != name:
            record(Event.RENAMED, request=request, target=name, before=before[0], after=name)
        if before[1] != time_zone:
            record(Event.TIME_ZONE_CHANGED, request=request, target=time_zone, before=before[1], after=time_zone)
    return before != (name, time_zone)


def change_origins(request: TenantRequest, origins: list[str]) -> bool:
    """The origins whose pages may ask the API from a browser. Whether there was anything to change."""
    with transaction.atomic(durable=True):
        before = services.change_origins(request.tenant, origins)
        if before == origins:
            return False
        record(Event.ORIGINS_CHANGED, request=request, target=", ".join(origins), before=before, after=origins)
    return True


def change_address(request: TenantRequest, *, slug: str) -> None:
    """Raises SlugIsTaken, and RateLimited with the day on which it may be changed again."""
    tenant = request.tenant
    _count(tenant.pk)
    try:
        with transaction.atomic(durable=True):
            before = services.change_slug(tenant, slug)
            if before != slug:
                record(Event.ADDRESS_CHANGED, request=request, target=slug, before=before, after=slug)
    except BaseException:
        give_back(ADDRESSES, tenant.pk)
        raise


def take_along(request: TenantRequest) -> str:
    """The token that signs the request's member in at the new address. This browser's session, which belongs to the old
    one's cookie, ends here.
    """
    token = issue_token(request.tenant, user_id=request.user.pk, proven_at=proven_at(request))
    forget_session(request.session.session_key)
    logout(request)
    return token


def _count(tenant_id: int) -> None:
    try:
        take(ADDRESSES, tenant_id)
    except RateLimited as refusal:
        again = timezone.localtime(timezone.now() + timedelta(milliseconds=refusal.retry_after_ms or 0))
        raise RateLimited(
            f"The address has been changed {ADDRESSES.burst} times lately. It can be changed again on "
            f"{again:%-d %B %Y, %H:%M %Z}.",
            retry_after_ms=refusal.retry_after_ms,
        ) from None
