"""The embedded authority as a Django app: only `config.settings_authority` installs it, never the web process."""

from __future__ import annotations

from django.apps import AppConfig


class AuthorityConfig(AppConfig):
    name = "billing.authority"
    label = "authority"
    default_auto_field = "django.db.models.BigAutoField"
