"""The billing app: may it, and what did it cost."""

from django.apps import AppConfig


class BillingConfig(AppConfig):
    name = "billing"

    def ready(self) -> None:
        # Connects to nothing and needs no variable: a command like `migrate` must work without an authority.
        from billing.client import install_default_client

        install_default_client()
