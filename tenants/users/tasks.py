"""The jobs of people's rows, as procrastinate runs them. Each may run twice."""

from __future__ import annotations

from procrastinate.contrib.django import app

from tenants.jobs import without_tenant
from tenants.models import Tenant
from tenants.users import browsers


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
