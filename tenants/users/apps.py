"""People of one workspace. Lives in every schema, so that a session or key of one tenant means nothing at another."""

from django.apps import AppConfig


class UsersConfig(AppConfig):
    name = "tenants.users"
    label = "users"
    verbose_name = "People and keys"
