"""Mails that wait to be sent. Lives in every schema: a workspace's mails are its own, the site's lie in public."""

from django.apps import AppConfig


class MailConfig(AppConfig):
    name = "tenants.mail"
    label = "mail"
    verbose_name = "Mail"

    def ready(self) -> None:
        from tenants.mail import checks  # noqa: F401  # registers the system check
