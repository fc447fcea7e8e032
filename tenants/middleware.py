"""From request to tenant, and back to nobody.

Owns which tenant a request works for (by host, or X-Tenant-ID with a key), the state gate, the reset after it, health
before it, and the one place where an ApiError becomes a response. Must not know what a tenant may spend.
"""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.core.exceptions import BadRequest, DisallowedHost, RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, OperationalError, ProgrammingError
from django.db.models.expressions import RawSQL
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.middleware.common import CommonMiddleware
from django.utils.cache import patch_vary_headers
from django.utils.module_loading import import_string
from django_tenants.middleware.main import TenantMainMiddleware

from tenants.context import enter
from tenants.hosts import host_for, normal_host
from tenants.http import (
    AccountOnHold,
    ApiError,
    Invalid,
    MethodNotAllowed,
    NotFound,
    TenantConflict,
    TenantNotReady,
    TooLarge,
    Unauthenticated,
    Unavailable,
    error_response,
    wants_json,
)
from tenants.models import Domain, Tenant
from tenants.slugs import SLUG
from tenants.users.keys import bearer_secret, key_from_header, key_in_schema

GetResponse = Callable[[HttpRequest], HttpResponseBase]


def as_api_error(exc: Exception) -> ApiError | None:
    """The ApiError that `exc` is or means; None where it is a defect and should be seen as one."""
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, RequestDataTooBig):
        return TooLarge()
    # Too many fields, a broken multipart body, a charset that is not UTF-8.
    if isinstance(exc, SuspiciousOperation | MultiPartParserError | BadRequest | UnreadablePostError):
        return Invalid({"body": ["This cannot be read as it was sent."]})
    # The database is down, or every connection of the pool is taken: say so, rather than a stack.
    if isinstance(exc, OperationalError | InterfaceError):
        return Unavailable()
    return None


class HealthMiddleware:
    """/healthz and /readyz on any host: health checks come by address, not by name."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info == "/healthz":
            return JsonResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})
        if request.path_info == "/readyz":
            return self._ready()
        return self.get_response(request)

    def _ready(self) -> HttpResponse:
        problems: list[str] = []
        for check in map(import_string, settings.READINESS_CHECKS):
            # A database that is away is waited for once, not by each that would ask it.
            if problems and getattr(check, "asks_the_database", False):
                continue
            if problem := check():
                problems.append(problem)
        body = {"status": "not_ready" if problems else "ready", "not_ready": problems}
        return JsonResponse(body, status=503 if problems else 200, headers={"Cache-Control": "no-store"})


class TenantMiddleware(TenantMainMiddleware):  # type: ignore[misc]
    """Finds the tenant, checks its state in the same query, and leaves the thread on public afterwards.

    - no header: the host decides. The bare host is no tenant: public schema, `request.tenant = None`.
    - X-Tenant-ID: a second spelling of the host. It names and never opens, so it is worth nothing without an API key
      of that very tenant, and an unknown tenant answers exactly like a known one without its key.
    """

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        try:
            enter(None)
            self.process_request(request)
            response: HttpResponseBase = self.get_response(request)
        except Exception as exc:
            error = as_api_error(exc)
            if error is None:
                raise
            response = error_response(request, error)
        finally:
            # The thread serves another customer next; whatever runs after us must not find this one.
            enter(None)
        if response.streaming:
            response._resource_closers.append(lambda: enter(None))  # type: ignore[attr-defined]
        self._mark_private(request, response)
        return response

    def process_request(self, request: HttpRequest) -> None:
        request.tenant = request.api_key = None  # type: ignore[attr-defined]
        request.urlconf = settings.PUBLIC_SCHEMA_URLCONF
        if (request.content_params or {}).get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
            # Python knows encodings, such as hex, under which reading a form fails in ways nobody expects.
            raise Invalid({"body": ["Send it as UTF-8."]})
        try:
            host = normal_host(request)
        except DisallowedHost:
            raise NotFound("No workspace lives at this address.") from None
        slug = request.headers.get("X-Tenant-ID")
        if slug is not None:
            self._enter_by_header(request, host, slug.strip().lower())
        elif host != settings.BASE_DOMAIN:
            tenant = self.get_tenant(Domain, host)
            if tenant is None:
                raise NotFound("No workspace lives at this address.")
            self._enter(request, tenant)

    def _enter_by_header(self, request: HttpRequest, host: str, slug: str) -> None:
        if host != settings.BASE_DOMAIN and self.get_tenant(Domain, host) is None:
            raise NotFound("No workspace lives at this address.")
        if host not in (settings.BASE_DOMAIN, host_for(slug)):
            raise TenantConflict
        # The header opens the API only: pages are for people, who have the workspace's own address.
        known = wants_json(request) and SLUG.fullmatch(slug)
        tenant = self.get_tenant(Domain, host_for(slug)) if known else None
        if tenant is None or not tenant.schema_exists:
            # The look-up that a known name would have cost: the time must not tell either.
            key_in_schema(bearer_secret(request))
            raise Unauthenticated
        # Without public: a schema that is still being built has no keys, and an operator's must not count as one.
        enter(tenant, alone=True)
        try:
            key = key_from_header(request)
        except ProgrammingError:
            key = None
        if key is None:
            raise Unauthenticated
        request.api_key = key  # type: ignore[attr-defined]
        self._enter(request, tenant)

    def _enter(self, request: HttpRequest, tenant: Tenant) -> None:
        # Without the gate a tenant whose schema is missing is served public's rows: `SET search_path` to a schema
        # that is not there is no error, and public comes next in the path.
        if tenant.status == Tenant.Status.PENDING or not tenant.schema_exists:
            raise TenantNotReady
        if tenant.status != Tenant.Status.ACTIVE:
            raise AccountOnHold
        enter(tenant)
        request.tenant = tenant  # type: ignore[attr-defined]
        request.urlconf = settings.ROOT_URLCONF

    def get_tenant(self, domain_model: type[Domain], hostname: str) -> Tenant | None:
        found = (
            domain_model.objects.select_related("tenant")
            .annotate(
                schema_exists=RawSQL(  # no value of a request in it
                    "EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = tenants_tenant.schema_name)", ()
                )
            )
            .filter(domain=hostname)
            .first()
        )
        if found is None:
            return None
        tenant: Tenant = found.tenant
        tenant.schema_exists = found.schema_exists  # type: ignore[misc]
        return tenant

    def _mark_private(self, request: HttpRequest, response: HttpResponseBase) -> None:
        patch_vary_headers(response, ["Host", "X-Tenant-ID", "Authorization", "Cookie"])
        if (request.tenant is not None or wants_json(request)) and not response.has_header("Cache-Control"):  # type: ignore[attr-defined]
            response["Cache-Control"] = "private, no-store"


class SlashMiddleware(CommonMiddleware):
    """Django's, but for the API: a redirect to the slash would lose a POST's body."""

    def should_redirect_with_slash(self, request: HttpRequest) -> bool:
        return not wants_json(request) and super().should_redirect_with_slash(request)


class ApiErrorMiddleware:
    """The one place where an ApiError raised below becomes its response."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if response.status_code == 405:
            allow = response.headers.get("Allow", "")
            response = error_response(request, MethodNotAllowed())
            response["Allow"] = allow
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        error = as_api_error(exception)
        return None if error is None else error_response(request, error)
