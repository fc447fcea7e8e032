"""The jobs of billing, as procrastinate runs them: what must happen without anybody asking for it.

Each is a plain function that may run twice. tenants.jobs knows how a job finds its tenant, billing.jobs how it is run.
"""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone
from procrastinate.contrib.django import app

from billing.models import Account
from billing.provisioning import try_to_provision
from tenants.jobs import without_tenant

# A page that provisions by itself takes under a second; a job must not run beside it.
INTERRUPTED_AFTER = timedelta(seconds=30)
ACCOUNTS_A_RUN = 20


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="finish_sign_ups", lock="finish_sign_ups")
@without_tenant
def finish_sign_ups(timestamp: int) -> None:
    """Finish accounts whose setting-up was interrupted. One that fails is logged and does not stop the others.

    In random order: with a fixed one, as many that always fail as fit into a run would keep all others waiting.
    """
    before = timezone.now() - INTERRUPTED_AFTER
    pending = Account.objects.filter(status=Account.Status.PENDING, created_at__lt=before)
    for account in pending.select_related("tenant").order_by("?")[:ACCOUNTS_A_RUN]:
        try_to_provision(account)
