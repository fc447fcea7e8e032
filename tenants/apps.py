"""The tenants app: who a request belongs to."""

from django.apps import AppConfig
from django.db.backends.signals import connection_created


class TenantsConfig(AppConfig):
    name = "tenants"

    def ready(self) -> None:
        from tenants import checks  # noqa: F401  # registers the system checks
        from tenants.context import refuse_another_schema

        connection_created.connect(refuse_another_schema)
