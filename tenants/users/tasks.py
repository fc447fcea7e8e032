"""The jobs of a workspace's people, as procrastinate runs them. Each may run twice.

What a request only asks for, so that its answer tells nobody who is a member; and what goes by itself.
"""

from __future__ import annotations

from django.db import transaction
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from tenants.jobs import without_tenant
from tenants.models import Tenant
from tenants.users import addresses, browsers, setting_passwords
from tenants.users.models import User

RETRY = RetryStrategy(max_attempts=5, exponential_wait=2)


@app.periodic(cron="41 3 * * *")
@app.task(queueing_lock="forget_sessions_everywhere", lock="forget_sessions_everywhere")
@without_tenant
def forget_sessions_everywhere(timestamp: int) -> None:
    """Once a day, a job for each workspace."""
    tenants = Tenant.objects.filter(status=Tenant.Status.ACTIVE).values_list("pk", flat=True)
    if jobs := [{"tenant_id": pk} for pk in tenants]:
        forget_sessions.batch_defer(*jobs)


@app.task
def forget_sessions() -> None:
    """Sessions that have ended by themselves: nothing else deletes those."""
    browsers.forget_old()


@app.task(retry=RETRY)
def mail_reset(*, email: str, address: str) -> None:
    with transaction.atomic(durable=True):
        setting_passwords.ask_to_reset(email, address=address)


@app.task(retry=RETRY)
def mail_change(*, user_id: int, email: str) -> None:
    with transaction.atomic(durable=True):
        if user := User.objects.filter(pk=user_id, is_active=True).first():
            addresses.ask_to_change(user, email)
