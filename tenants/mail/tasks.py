"""The jobs of mail, as procrastinate runs them. Each may run twice; a mail that was sent is not sent again."""

from __future__ import annotations

from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from tenants.jobs import without_tenant
from tenants.mail import sending

RETRY = RetryStrategy(max_attempts=8, exponential_wait=4)


@app.task(retry=RETRY)
def send_mail(*, mail_id: int) -> None:
    """In the name of the workspace that the job belongs to."""
    sending.send_now(mail_id)


@app.task(retry=RETRY)
@without_tenant
def send_site_mail(*, mail_id: int) -> None:
    sending.send_now(mail_id)
