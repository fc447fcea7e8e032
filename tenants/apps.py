"""The tenants app: who a request belongs to."""

from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"

    def ready(self) -> None:
        from tenants import checks  # noqa: F401  # registers the system checks
        from tenants.context import bind

        # The thread that loads Django is a command's or a shell's own, and works on the public schema. Threads that
        # are started later are bound by what they do: the middleware, a job, a scope.
        bind(None)
