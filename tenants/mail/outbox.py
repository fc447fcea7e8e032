"""Asking for a mail. The jobs process sends it (tenants.mail.tasks): a request never waits for a mail server.

Owns the outbox's new rows. Must not know what a mail says: whoever asks names a template of their app's.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from django.conf import settings
from django.template import Context, Engine

from tenants.context import tenant_or_public
from tenants.mail.lines import one_line
from tenants.mail.models import OutgoingMail
from tenants.sealing import seal

SUBJECT_LENGTH = 255


def send(
    to: str,
    template: str,
    *,
    subject: str,
    until: datetime | None = None,
    is_counted: bool | None = None,
    **context: Any,
) -> None:
    """Put a mail into the outbox, in the caller's transaction: rolled back, it never was.

    Renders `mail/<template>.txt` and `mail/<template>.html` here and now, with `tenant` (None on the bare host),
    `product_name`, `accent` and `subject` beside the context. It goes out in the bound tenant's name, else in the
    site's; not after `until`, for a mail whose link is over by then. A workspace must be active when it is sent.
    Whether it counts to what an address may get that nobody has confirmed is found out then
    (tenants.mail.strangers), unless `is_counted` says.
    """
    from tenants.mail import tasks  # the queue is not there yet when apps are loaded

    tenant = tenant_or_public()
    subject = one_line(subject, SUBJECT_LENGTH)
    site = {"product_name": settings.PRODUCT_NAME, "accent": settings.BRAND.accent}
    context = {**context, **site, "tenant": tenant, "subject": subject}
    body: dict[str, Any] = {
        kind: _render(f"mail/{template}.{kind}", context, is_html=kind == "html") for kind in ("txt", "html")
    }
    if until is not None:
        body["until"] = until.isoformat()
    if is_counted is not None:
        body["is_counted"] = is_counted
    mail = OutgoingMail.objects.create(to=to, subject=subject, sealed_body=seal(json.dumps(body)))
    if tenant is None:
        tasks.send_site_mail.defer(mail_id=mail.pk)
    else:
        tasks.send_mail.defer(mail_id=mail.pk)


def _render(template: str, context: dict[str, Any], *, is_html: bool) -> str:
    """In the text nothing is escaped, or a workspace named "A & B" would be "A &amp; B" to its members."""
    return Engine.get_default().get_template(template).render(Context(context, autoescape=is_html))
