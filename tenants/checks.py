"""System checks that refuse a configuration under which tenants could meet."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register


@register(Tags.security)
def tenants_are_kept_apart(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    default = settings.DATABASES["default"]
    if default.get("ATOMIC_REQUESTS"):
        found.append(
            Error(
                "ATOMIC_REQUESTS must be off: the hold and its settling are transactions of their own.",
                id="tenants.E001",
            )
        )
    if getattr(settings, "SHOW_PUBLIC_IF_NO_TENANT_FOUND", False):
        found.append(
            Error(
                "SHOW_PUBLIC_IF_NO_TENANT_FOUND must be off: an unknown host would see public.",
                id="tenants.E002",
            )
        )
    if settings.SESSION_COOKIE_DOMAIN or settings.CSRF_COOKIE_DOMAIN:
        found.append(Error("Cookies must be host-only: a Domain cookie reaches every workspace.", id="tenants.E003"))
    if settings.SESSION_ENGINE != "django.contrib.sessions.backends.db":
        found.append(
            Error(
                "Sessions must live in each tenant's schema, where web and plane read them: SESSION_ENGINE must be "
                "django.contrib.sessions.backends.db.",
                id="tenants.E004",
            )
        )
    for alias, cache in settings.CACHES.items():
        if cache.get("KEY_FUNCTION") != "django_tenants.cache.make_key":
            found.append(
                Error(f"CACHES[{alias!r}] needs KEY_FUNCTION django_tenants.cache.make_key.", id="tenants.E005")
            )
    return found
