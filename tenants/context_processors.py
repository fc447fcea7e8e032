"""What every template may show of the site itself."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.utils.functional import cached_property

from tenants.roles import Action, may


def role(request: HttpRequest) -> dict[str, _May]:
    """`may.invite` in a template: whether the role of who looks allows tenants.roles.Action.INVITE."""
    return {"may": _May(request)}


class _May:
    """Who looks is asked for by the first template that wants to know: an error's page must look nobody up."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request

    def __getitem__(self, name: str) -> bool:
        return self._allowed[name]

    @cached_property
    def _allowed(self) -> dict[str, bool]:
        user = getattr(self._request, "user", None) if getattr(self._request, "tenant", None) else None
        of = getattr(user, "role", "")
        return {action.name.lower(): may(of, action) for action in Action}


def site(request: HttpRequest) -> dict[str, Any]:
    return {
        "product_name": settings.PRODUCT_NAME,
        "brand": settings.BRAND,
        "site_url": settings.SITE_URL,
        "base_domain": settings.BASE_DOMAIN,
        # At an address where no workspace answers, its own "/" is the page that one has just been refused.
        "start_url": "/" if getattr(request, "tenant", None) else settings.SITE_URL + "/",
    }
