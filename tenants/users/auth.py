"""Who is asking: an API key's member, or the session's. Owns signing in and the session's tie to its tenant."""

from __future__ import annotations

from django.contrib.auth import login
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from tenants.http import CsrfFailed, TenantRequest, Unauthenticated
from tenants.users.keys import bearer_secret, key_from_header
from tenants.users.models import User

SESSION_TENANT = "tenant_id"


class _CsrfCheck(CsrfViewMiddleware):
    """Django's check without its page: the reason back, or None."""

    def _reject(self, request: HttpRequest, reason: str) -> str:
        return reason


def _no_view(request: HttpRequest) -> HttpResponse:
    """Not marked csrf_exempt, as ninja's views are: the check then applies."""
    return HttpResponse()


def caller(request: TenantRequest) -> User:
    """The member who asks on /api/: by key (cookies are then ignored), else by session (CSRF then applies).

    Raises Unauthenticated or CsrfFailed.
    """
    if request.api_key is not None:
        return request.api_key.user
    if bearer_secret(request) is not None:
        request.api_key = key_from_header(request)
        if request.api_key is None:
            raise Unauthenticated
        return request.api_key.user
    if not request.user.is_authenticated:
        raise Unauthenticated
    check = _CsrfCheck(lambda request: None)  # type: ignore[arg-type]
    check.process_request(request)
    if check.process_view(request, _no_view, (), {}):
        raise CsrfFailed
    return request.user


def sign_in(request: TenantRequest, user: User) -> None:
    """Start a session under a new key, tied to this tenant.

    Without the tie a session store that tenants shared would let t1's session open t2 as the user of the same id.
    """
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    request.session[SESSION_TENANT] = request.tenant.pk if request.tenant else None
