"""The jobs of mail, as procrastinate runs them. Each may run twice; a mail that was sent is not sent again.

A workspace that is not active has no mails sent: their jobs end (tenants.jobs), and so do the mails in time.
"""

from __future__ import annotations

from procrastinate import BaseRetryStrategy, RetryDecision
from procrastinate.contrib.django import app
from procrastinate.jobs import Job

from tenants.jobs import without_tenant
from tenants.mail import sending
from tenants.models import Tenant

# A queue with a worker of its own (billing.jobs): a mail server that hangs keeps others from nothing but mails.
MAILS = "mails"
LONGEST_WAIT = 2 * 3600


class Growing(BaseRetryStrategy):
    """After 4 seconds, 16, 64 … then every two hours. When a mail is given up, tenants.mail.sending decides."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision:
        return RetryDecision(retry_in={"seconds": min(4 ** min(job.attempts + 1, 10), LONGEST_WAIT)})


@app.task(queue=MAILS, retry=Growing())
def send_mail(*, mail_id: int) -> None:
    """In the name of the workspace that the job belongs to."""
    sending.send_now(mail_id)


@app.task(queue=MAILS, retry=Growing())
@without_tenant
def send_site_mail(*, mail_id: int) -> None:
    sending.send_now(mail_id)


@app.periodic(cron="41 3 * * *")
@app.task(queueing_lock="forget_mails_everywhere", lock="forget_mails_everywhere")
@without_tenant
def forget_mails_everywhere(timestamp: int) -> None:
    """Once a day, the site's own, and a job for each workspace."""
    _tidy()
    tenants = Tenant.objects.filter(status=Tenant.Status.ACTIVE).values_list("pk", flat=True)
    if jobs := [{"tenant_id": pk} for pk in tenants]:
        forget_mails.batch_defer(*jobs)


@app.task
def forget_mails() -> None:
    _tidy()


def _tidy() -> None:
    sending.give_up_old()
    sending.forget_old()
