"""System checks that refuse a configuration under which tenants could meet."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig, apps
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


@register(Tags.security)
def shared_rows_are_shared_on_purpose(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """A table of SHARED_APPS is one for all tenants, and nothing at its queries says so."""
    shared, apart = _labels(settings.SHARED_APPS), _labels(settings.TENANT_APPS)
    found: list[CheckMessage] = []
    for label in sorted(shared - apart - _labels(settings.SHARED_ON_PURPOSE)):
        models = ", ".join(model.__name__ for model in apps.get_app_config(label).get_models())
        if models:
            found.append(
                Error(
                    f"{label} is in SHARED_APPS and has models ({models}): all tenants would read and write the same "
                    "rows.",
                    hint="Move it to TENANT_APPS; or, where that is meant, name it in SHARED_ON_PURPOSE.",
                    id="tenants.E006",
                )
            )
    return found


def _labels(names: list[str]) -> set[str]:
    return {AppConfig.create(name).label for name in names}
