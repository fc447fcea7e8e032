"""The last step of every way in: who has proven who they are gets a session, and goes where they were going."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpResponse, HttpResponseRedirect
from django.utils.http import url_has_allowed_host_and_scheme

from tenants.http import TenantRequest
from tenants.users.auth import sign_in
from tenants.users.models import User


def let_in(request: TenantRequest, user: User, *, method: str, target: str = "") -> HttpResponse:
    """The answer to whoever has just proven to be `user`, by `method`: password, link, invitation, a provider's name.

    `target` is a path of this host that they were on the way to; anything else leads home.
    """
    sign_in(request, user, method=method)
    return HttpResponseRedirect(safe_target(target))


def safe_target(target: str) -> str:
    is_safe = target.startswith("/") and url_has_allowed_host_and_scheme(target, allowed_hosts=None)
    return target if is_safe else settings.LOGIN_REDIRECT_URL
