"""The jobs of tenants, as procrastinate runs them. Each is a plain function that may run twice.

Must not decide what a schema needs: tenants.services does. Whoever asks for a tenant that is behind the code puts
`catch_up` into the queue, by tenants.schema_versions; the job of each minute finds those that nobody asks for.
"""

from __future__ import annotations

from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from tenants import limits, services
from tenants.jobs import without_tenant
from tenants.models import Tenant
from tenants.schema_versions import begin_catching_up, is_current

SERVED = (Tenant.Status.ACTIVE, Tenant.Status.SUSPENDED)


# Until it works: meanwhile the job is in the queue and no request puts another there, so that a migration which always
# fails is tried twice a minute and not with every request.
@app.task(retry=RetryStrategy(wait=30))
@without_tenant
def catch_up(*, tenant: int) -> None:
    found = Tenant.objects.filter(pk=tenant, status__in=SERVED).first()
    if found is not None:
        services.catch_up(found)


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="catch_up_all", lock="catch_up_all")
@without_tenant
def catch_up_all(timestamp: int) -> None:
    """Also what a jobs process does first when it starts: procrastinate begins with the minute that is under way."""
    for pk in Tenant.objects.filter(~is_current(), status__in=SERVED).values_list("pk", flat=True):
        begin_catching_up(pk)


@app.periodic(cron="23 * * * *")
@app.task(queueing_lock="forget_limits", lock="forget_limits")
@without_tenant
def forget_limits(timestamp: int) -> None:
    """Rows of those who tried and came no more: a stranger can make one for each of his addresses."""
    limits.forget_old()
