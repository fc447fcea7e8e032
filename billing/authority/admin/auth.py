"""Who may call what on the admin plane: the admin key, or a tenant's key with the permission."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from django.http import HttpResponse
from django.utils import timezone

from billing.authority.admin.request import ADMIN, AdminRequest
from billing.authority.conf import setting
from billing.authority.errors import Refusal, invalid, unauthorized
from billing.authority.keys import digest_of, grants, prefix_of
from billing.authority.models import ApiKey, Tenant
from billing.authority.scopes import permits

View = Callable[..., HttpResponse]

# Below these every path needs the admin key, also one that does not exist.
GUARDED = (
    "/v1/admin/tenants", "/v1/admin/api-keys", "/v1/auth/validate", "/v1/admin/audit", "/v1/admin/webhooks",
    "/v1/admin/events", "/v1/admin/overview", "/v1/admin/config", "/actuator/", "/api-docs",
)  # fmt: skip


@dataclass(frozen=True)
class Caller:
    """The admin (no tenant), or the tenant whose key came."""

    tenant: Tenant | None
    scope_filter: list[str] | None = None
    key_id: str | None = None
    permissions: tuple[str, ...] = ("*",)

    def may_reach(self, scope: str) -> None:
        if not permits(self.scope_filter, scope):
            raise Refusal(403, "FORBIDDEN", f"API key scope_filter does not permit access to scope: {scope}")

    def owner(self, named: str | None) -> str:
        """Whose a new thing is: the admin key must name the tenant, a tenant's key must not."""
        if self.tenant is None:
            if named is None:
                raise invalid("tenant_id: required with the admin key.")
            return named
        if named is not None:
            raise invalid("tenant_id: leave it out, the API key says whose this is.")
        return self.tenant.tenant_id

    def may_own(self, tenant_id: str) -> bool:
        return self.tenant is None or self.tenant.tenant_id == tenant_id


def check_admin_key(request: AdminRequest) -> None:
    given = request.headers.get("X-Admin-API-Key", "")
    if not given.strip():
        raise unauthorized("Missing X-Admin-API-Key header")
    if not hmac.compare_digest(given.encode(), setting("AUTHORITY_ADMIN_KEY").encode()):
        raise unauthorized("Invalid admin API key")
    request.answers_to = ADMIN


def admin_only(view: View) -> View:
    @wraps(view)
    def checked(request: AdminRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        check_admin_key(request)
        return view(request, *args, **kwargs)

    return checked


def for_operators(view: View) -> View:
    """Like admin_only, for a view that both kinds of caller have: it gets the admin as its Caller."""

    @wraps(view)
    def checked(request: AdminRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        check_admin_key(request)
        return view(request, Caller(None), *args, **kwargs)

    return checked


def admin_or(permission: str | None) -> Callable[[View], View]:
    """The admin key, or a tenant's key with this permission. The view gets a Caller after the request.

    With both headers the admin's decides. A HEAD is not a GET here: it takes a tenant's key only.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def checked(request: AdminRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            if request.headers.get("X-Admin-API-Key") is not None and request.method != "HEAD":
                check_admin_key(request)
                return view(request, Caller(None), *args, **kwargs)
            return view(request, tenant_caller(request, permission), *args, **kwargs)

        return checked

    return decorate


def tenant_only(permission: str) -> Callable[[View], View]:
    """A tenant's key with this permission; an admin key beside it does not count."""

    def decorate(view: View) -> View:
        @wraps(view)
        def checked(request: AdminRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            return view(request, tenant_caller(request, permission), *args, **kwargs)

        return checked

    return decorate


def tenant_caller(request: AdminRequest, permission: str | None) -> Caller:
    secret = request.headers.get("X-Cycles-API-Key", "").strip()
    if not secret:
        raise unauthorized("Missing X-Cycles-API-Key header")
    key = ApiKey.objects.select_related("tenant").filter(prefix=prefix_of(secret)).first()
    if reason := why_not(key, digest_of(secret)):
        raise Refusal(403, "FORBIDDEN", f"Invalid API key: {reason}")
    assert key is not None
    if permission is not None and not grants(key.permissions, permission):
        raise Refusal(403, "INSUFFICIENT_PERMISSIONS", f"API key lacks required permission: {permission}")
    request.answers_to = key.tenant.tenant_id
    return Caller(key.tenant, key.scope_filter, key.key_id, tuple(key.permissions))


def why_not(key: ApiKey | None, digest: bytes) -> str | None:
    """The same reasons in the same order as the runtime plane's `caller_of`."""
    if key is None:
        return "KEY_NOT_FOUND"
    if key.status == ApiKey.Status.REVOKED:
        return "KEY_REVOKED"
    if key.expires_at < timezone.now():
        return "KEY_EXPIRED"
    if not hmac.compare_digest(bytes(key.digest), digest):
        return "INVALID_KEY"
    if key.tenant.status != Tenant.Status.ACTIVE:
        return f"TENANT_{key.tenant.status}"
    return None
