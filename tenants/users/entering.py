"""The last step of every way in: who has proven who they are gets a session, and goes where they were going.

Owns the second step's place in it. Whoever has one gets no session for the first step, only a cookie that says for five
minutes that it was taken: signed, for this host's log-in alone, and good for nothing without a code. It is no row, for
who is not in yet leaves none behind; and there is nothing to clean up where nobody comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode

from django.conf import settings
from django.core import signing
from django.http import HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.urls import reverse
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.http import url_has_allowed_host_and_scheme

from tenants.http import TenantRequest
from tenants.users.auth import sign_in
from tenants.users.models import User

FIRST_STEP = "first_step"
FIRST_STEP_SECONDS = 300
_PATH = "/login/"
_SALT = "tenants.users.first-step"


@dataclass(frozen=True)
class FirstStep:
    """Who has taken it on this browser, and how."""

    user: User
    method: str


def let_in(
    request: TenantRequest, user: User, *, method: str, target: str = "", proven_at: int | None = None
) -> HttpResponse:
    """The answer to whoever has just proven to be `user`, by `method`: password, link, invitation, a provider's name.

    `target` is a path of this host that they were on the way to; anything else leads home. Who has a second step is
    asked for its code first. `proven_at`: when they proved it, where that was not now.
    """
    if user.second_step_at is None:
        return finish(request, user, method=method, target=target, proven_at=proven_at)
    response = HttpResponseRedirect(on_the_way(reverse("second_step"), target))
    response.set_cookie(
        FIRST_STEP,
        signing.dumps([_workspace(request), user.pk, _fingerprint(user), method], salt=_SALT),
        max_age=FIRST_STEP_SECONDS,
        path=_PATH,
        httponly=True,
        secure=settings.SESSION_COOKIE_SECURE,
        # Not strict: an identity provider sends people here from another site.
        samesite="Lax",
    )
    return response


def finish(
    request: TenantRequest, user: User, *, method: str, target: str = "", proven_at: int | None = None
) -> HttpResponse:
    """Let them in: every step is taken."""
    sign_in(request, user, method=method, proven_at=proven_at)
    response = HttpResponseRedirect(safe_target(target))
    if FIRST_STEP in request.COOKIES:
        forget_first_step(response)
    return response


def first_step(request: TenantRequest) -> FirstStep | None:
    """None where it was too long ago, at another workspace, or before the password or the member changed."""
    try:
        workspace, pk, fingerprint, method = signing.loads(
            request.COOKIES.get(FIRST_STEP, ""), salt=_SALT, max_age=FIRST_STEP_SECONDS
        )
    except (signing.BadSignature, ValueError, TypeError):
        return None
    if workspace != _workspace(request):
        return None
    user = User.objects.filter(pk=pk, is_active=True).exclude(second_step_at=None).first()
    if user is None or not constant_time_compare(fingerprint, _fingerprint(user)):
        return None
    return FirstStep(user, method)


def forget_first_step(response: HttpResponseBase) -> None:
    # As it was set: Django deletes a cookie without Secure.
    secure = settings.SESSION_COOKIE_SECURE
    response.set_cookie(FIRST_STEP, max_age=0, path=_PATH, httponly=True, secure=secure, samesite="Lax")


def on_the_way(address: str, target: str) -> str:
    """`address`, with where to go after it."""
    target = safe_target(target)
    return address if target == settings.LOGIN_REDIRECT_URL else f"{address}?{urlencode({'next': target})}"


def safe_target(target: str) -> str:
    is_safe = target.startswith("/") and url_has_allowed_host_and_scheme(target, allowed_hosts=None)
    return target if is_safe else settings.LOGIN_REDIRECT_URL


def _workspace(request: TenantRequest) -> int | None:
    return request.tenant.pk if request.tenant else None


def _fingerprint(user: User) -> str:
    """Of the password's hash, which it does not tell: the cookie can be read by who has it."""
    return salted_hmac(_SALT, user.get_session_auth_hash(), algorithm="sha256").hexdigest()[:32]
