"""Sending a mail of the outbox through Django's mail backend, in the jobs process."""

from __future__ import annotations

import json
from email.utils import formataddr, parseaddr

from django.conf import settings
from django.core.mail import EmailMultiAlternatives
from django.utils import timezone

from tenants.context import tenant_or_public
from tenants.mail.models import OutgoingMail
from tenants.sealing import unseal


def send_now(mail_id: int) -> None:
    """Send it unless it was sent. Raises what the mail server's connection raises: the job is tried again."""
    waiting = OutgoingMail.objects.filter(pk=mail_id, sent_at=None, given_up_at=None)
    mail = waiting.first()
    if mail is None:
        return
    body = json.loads(unseal(mail.sealed_body))
    message = EmailMultiAlternatives(mail.subject, body["txt"], _sender(), [mail.to])
    message.attach_alternative(body["html"], "text/html")
    message.send()
    waiting.update(sent_at=timezone.now(), sealed_body="")


def _sender() -> str:
    """In the workspace's name, from the site's address."""
    tenant = tenant_or_public()
    name, address = parseaddr(settings.DEFAULT_FROM_EMAIL)
    return formataddr((f"{tenant.name} · {settings.PRODUCT_NAME}" if tenant else name, address))
