"""A system check for deployments: whether mails that are asked for go anywhere."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Tags, Warning, register


@register(Tags.security, deploy=True)
def mails_are_sent(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if settings.EMAIL_BACKEND != "tenants.mail.backends.Nowhere":
        return []
    return [
        Warning(
            "No mail is sent: nobody can be invited, reset a password or find their workspaces.",
            hint="Set SMTP_HOST, and what your mail server needs of SMTP_PORT, SMTP_USER, SMTP_PASSWORD, "
            "SMTP_SECURITY and MAIL_FROM.",
            id="mail.W001",
        )
    ]
