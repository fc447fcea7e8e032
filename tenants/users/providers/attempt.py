"""One try to log in with a provider, from leaving this host to coming back.

It lies in the browser that began it: signed, for this workspace and provider, ten minutes. So a stranger's try makes
no row here, and an answer that somebody else was given is worth nothing in another browser.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import asdict, dataclass

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare

from tenants.models import Tenant
from tenants.users.providers.errors import AttemptOver
from tenants.users.providers.known import Provider

SECONDS = 600
COOKIE = "login_attempt"
# A cookie holds 4 KB; whoever was on the way to a longer address goes home.
LONGEST_TARGET = 1_000
_STATE = re.compile(r"([0-9a-f]{12})\.[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Attempt:
    """`state` begins with the workspace's public id, by which the bare host knows where to send the browser on.
    `member` is who links an account, and None where somebody logs in.
    """

    provider: str
    state: str
    nonce: str
    verifier: str
    target: str = ""
    member: int | None = None

    @property
    def challenge(self) -> str:
        return str(create_s256_code_challenge(self.verifier))


def new_attempt(tenant: Tenant, provider: Provider, *, target: str = "", member: int | None = None) -> Attempt:
    return Attempt(
        provider=provider.key,
        state=f"{tenant.public_id}.{secrets.token_urlsafe(32)}",
        nonce=secrets.token_urlsafe(32),
        verifier=secrets.token_urlsafe(48),
        target=target if len(target) <= LONGEST_TARGET else "",
        member=member,
    )


def keep(response: HttpResponse, tenant: Tenant, attempt: Attempt) -> None:
    response.set_cookie(
        COOKIE,
        signing.dumps(asdict(attempt), salt=_salt(tenant, attempt.provider)),
        max_age=SECONDS,
        path=_path(attempt.provider),
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        # It must come along when the provider's page leads back.
        samesite="Lax",
    )


def forget(response: HttpResponse, provider: Provider) -> None:
    response.delete_cookie(COOKIE, path=_path(provider.key), samesite="Lax")


def kept(request: HttpRequest, tenant: Tenant, provider: Provider) -> Attempt:
    """The attempt that this browser began here and that the answer is for. Raises AttemptOver."""
    try:
        given = signing.loads(request.COOKIES.get(COOKIE, ""), salt=_salt(tenant, provider.key), max_age=SECONDS)
        attempt = Attempt(**given)
    except (signing.BadSignature, TypeError):
        raise AttemptOver from None
    if attempt.provider != provider.key or not constant_time_compare(attempt.state, request.GET.get("state", "")):
        raise AttemptOver
    return attempt


def workspace_of(state: str) -> str | None:
    """The public id in a state of ours."""
    found = _STATE.fullmatch(state)
    return found[1] if found else None


def _salt(tenant: Tenant, provider: str) -> str:
    return f"tenants.users.providers:{tenant.public_id}:{provider}"


def _path(provider: str) -> str:
    return f"/login/back/{provider}/"
