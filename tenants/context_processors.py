"""What every template may show of the site itself."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest

from tenants.roles import Action, may


def role(request: HttpRequest) -> dict[str, dict[str, bool]]:
    """`may.invite` in a template: whether the role of who looks allows tenants.roles.Action.INVITE."""
    of = getattr(getattr(request, "user", None), "role", "") if getattr(request, "tenant", None) else ""
    return {"may": {action.name.lower(): may(of, action) for action in Action}}


def site(request: HttpRequest) -> dict[str, str]:
    return {
        "product_name": settings.PRODUCT_NAME,
        "site_url": settings.SITE_URL,
        "base_domain": settings.BASE_DOMAIN,
        # At an address where no workspace answers, its own "/" is the page that one has just been refused.
        "start_url": "/" if getattr(request, "tenant", None) else settings.SITE_URL + "/",
    }
