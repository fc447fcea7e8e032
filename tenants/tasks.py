"""The jobs of tenants, as procrastinate runs them. Each is a plain function that may run twice."""

from __future__ import annotations

from procrastinate.contrib.django import app

from tenants import limits
from tenants.jobs import without_tenant


@app.periodic(cron="23 * * * *")
@app.task(queueing_lock="forget_limits", lock="forget_limits")
@without_tenant
def forget_limits(timestamp: int) -> None:
    """Rows of those who tried and came no more: a stranger can make one for each of his addresses."""
    limits.forget_old()
