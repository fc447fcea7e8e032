"""Asking for a mail, and sending it. The jobs process sends: a request never waits for a mail server.

Owns the outbox's rows. Must not know what a mail says: whoever asks names a template of their app's.
"""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.template import Context, Engine

from tenants.context import tenant_or_public
from tenants.mail.models import OutgoingMail
from tenants.sealing import seal


def send(to: str, template: str, *, subject: str, **context: Any) -> None:
    """Put a mail into the outbox, in the caller's transaction: rolled back, it never was.

    Renders `mail/<template>.txt` and `mail/<template>.html` here and now, with `tenant` (None on the bare host),
    `product_name` and `subject` beside the context. It goes out in the bound tenant's name, else in the site's.
    """
    from tenants.mail import tasks  # the queue is not there yet when apps are loaded

    tenant = tenant_or_public()
    context = {**context, "tenant": tenant, "product_name": settings.PRODUCT_NAME, "subject": subject}
    body = {kind: _render(f"mail/{template}.{kind}", context, is_html=kind == "html") for kind in ("txt", "html")}
    mail = OutgoingMail.objects.create(to=to, subject=subject, sealed_body=seal(json.dumps(body)))
    if tenant is None:
        tasks.send_site_mail.defer(mail_id=mail.pk)
    else:
        tasks.send_mail.defer(mail_id=mail.pk)


def _render(template: str, context: dict[str, Any], *, is_html: bool) -> str:
    """In the text nothing is escaped, or a workspace named "A & B" would be "A &amp; B" to its members."""
    return Engine.get_default().get_template(template).render(Context(context, autoescape=is_html))
