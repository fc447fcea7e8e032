"""The jobs of billing, as procrastinate runs them: what must happen without anybody asking for it.

Each is a plain function that may run twice. tenants.jobs knows how a job finds its tenant, billing.jobs how it is run.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from django.utils import timezone
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from billing import closing, periods
from billing.engine.repeats import KEPT_SECONDS
from billing.models import Account
from billing.provisioning import broken_off, try_to_provision, unfinished
from billing.usage.models import Repeat
from tenants.jobs import without_tenant
from tenants.models import Tenant

logger = logging.getLogger(__name__)

# The queue of those who wait for their workspace; it has a worker of its own (billing.jobs).
SIGN_UPS = "sign_ups"
# A sign-up's own job takes well under a second, and is tried again after 2, 4, 8, 16 and 32.
INTERRUPTED_AFTER = timedelta(seconds=30)
# What they all need may be away: a run tries no further after so many that failed.
FAILURES_A_RUN = 20
ACCOUNTS_A_RUN = 500
FINISH_SECONDS = 40.0
BUDGETS_A_RUN = 500
# A run is over before the next one is due; what it did not reach is drawn again.
ROLL_SECONDS = 40.0


class NotFinished(Exception):
    """The workspace is not set up yet, and the log says why."""


@app.task(queue=SIGN_UPS, retry=RetryStrategy(max_attempts=5, exponential_wait=2))
@without_tenant
def provision_account(account_id: int) -> None:
    """Set up the workspace of a sign-up, which enqueues this with its rows. Its customer waits."""
    account = Account.objects.select_related("tenant").get(pk=account_id)
    # What was broken off is not tried again: who takes it over has a job of their own.
    if not try_to_provision(account) and not broken_off().filter(pk=account_id).exists():
        raise NotFinished


@app.periodic(cron="* * * * *")
@app.task(queue=SIGN_UPS, queueing_lock="finish_sign_ups", lock="finish_sign_ups")
@without_tenant
def finish_sign_ups(timestamp: int) -> None:
    """Finish accounts whose setting-up was interrupted. One that fails is logged and does not stop the others.

    In random order: with a fixed one, as many that always fail as fit into a run would keep all others waiting.
    """
    until, failed = time.monotonic() + FINISH_SECONDS, 0
    interrupted = unfinished().filter(created_at__lt=timezone.now() - INTERRUPTED_AFTER)
    for account in interrupted.order_by("?")[:ACCOUNTS_A_RUN]:
        failed += not try_to_provision(account)
        if failed >= FAILURES_A_RUN or time.monotonic() > until:
            return


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="roll_budgets", lock="roll_budgets")
@without_tenant
def roll_budgets(timestamp: int) -> None:
    """Roll over the budgets whose period has ended. In random order: see finish_sign_ups."""
    until = time.monotonic() + ROLL_SECONDS
    now = periods.database_time()
    for account in periods.due(now).order_by("?")[:BUDGETS_A_RUN]:
        if time.monotonic() > until:
            return
        periods.roll_over(account, now=now)


@app.periodic(cron="17 3 * * *")
@app.task(queueing_lock="forget_repeats_everywhere", lock="forget_repeats_everywhere")
@without_tenant
def forget_repeats_everywhere(timestamp: int) -> None:
    """Once a day, a job for each workspace: the words of one that asks nothing more must not stay."""
    tenants = Tenant.objects.filter(status=Tenant.Status.ACTIVE).values_list("pk", flat=True)
    if jobs := [{"tenant_id": pk} for pk in tenants]:
        forget_repeats.batch_defer(*jobs)


@app.task
def forget_repeats() -> None:
    """Answers that are kept for whoever repeats a request, once their time is over."""
    Repeat.objects.filter(created_at__lt=timezone.now() - timedelta(seconds=KEPT_SECONDS)).delete()


# --- deleted workspaces ----------------------------------------------------------------------------------------------

PURGE_SECONDS = 600.0


# Until it works: its calls may be under way for minutes, and the authority may be away for longer.
@app.task(retry=RetryStrategy(wait=30))
@without_tenant
def shut_account(account_id: int) -> None:
    """Suspend a deleted workspace at the authority, once its calls are settled."""
    closing.shut(Account.objects.select_related("tenant").get(pk=account_id))


@app.periodic(cron="41 * * * *")
@app.task(queueing_lock="purge_closed", lock="purge_closed")
@without_tenant
def purge_closed(timestamp: int) -> None:
    """Drop what deleted workspaces have left, once their time is over. In random order: see finish_sign_ups."""
    until = time.monotonic() + PURGE_SECONDS
    for account in closing.due(timezone.now()).order_by("?"):
        if time.monotonic() > until:
            return
        try:
            closing.purge(account)
        except closing.NotYet as exc:
            logger.info("Not purged yet: account=%s: %s", account.pk, exc)
        except Exception:  # one that fails must not keep the others; the next hour tries it again
            logger.exception("A deleted workspace cannot be purged: account=%s", account.pk)
