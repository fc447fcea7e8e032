"""What every template may show of the site itself."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest


def site(request: HttpRequest) -> dict[str, str]:
    return {
        "product_name": settings.PRODUCT_NAME,
        "site_url": settings.SITE_URL,
        "base_domain": settings.BASE_DOMAIN,
        # At an address where no workspace answers, its own "/" is the page that one has just been refused.
        "start_url": "/" if getattr(request, "tenant", None) else settings.SITE_URL + "/",
    }
