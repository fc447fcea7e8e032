"""What all trials together may cost: room for one more under TRIAL_POOL, or not.

Owns which accounts count. Must be asked in the transaction that makes the promise: its lock holds until that ends.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from decimal import Decimal

from django.conf import settings
from django.db import connection
from django.db.models import Q
from django.db.models.functions import Now

from billing import provisioning
from billing.errors import TrialsExhausted
from billing.models import Account
from billing.money import usd
from billing.plans import plan_of, plans_by_sign_up

logger = logging.getLogger(__name__)

POOL_WARNING = Decimal("0.8")
# A sign-up whose owner confirms nothing for so long holds no money of others'. Confirmed later, it is counted anew.
PROMISED_FOR = timedelta(days=7)
# What its owner deletes may have been spent, and counts for as long as a period: else the pool could be spent anew by
# whoever deletes one and signs up for another.
COUNTED_AFTER = timedelta(days=31)
# Each sign-up holds the lock for a few milliseconds, and on a busy machine for longer than web waits for any lock: of
# fifty at once one was told that the service is busy. Few wait here: see billing.signing_up.
LOCK_SECONDS = 5.0


def lapsed() -> Q:
    """The accounts that wait for their allowance for so long that nothing is kept for them."""
    return Q(allowance_granted_at=None, created_at__lt=Now() - PROMISED_FOR)


def _closed() -> Q:
    """Closed, and not just now by its owner with an allowance in it."""
    deleted = Q(tenant__closed_at__gt=Now() - COUNTED_AFTER, allowance_granted_at__isnull=False)
    return Q(status=Account.Status.CLOSED) & ~deleted


def check_room(plan: str) -> None:
    """Room for one more trial, or TrialsExhausted. Under a lock until the transaction's end: two would both fit."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = {round(LOCK_SECONDS * 1_000)}")
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended('billing:trials', 0))")
    # What was broken off is nobody's, and counts once somebody takes it over.
    gone = _closed() | Q(pk__in=provisioning.broken_off().values("pk")) | lapsed()
    promised = plan_of(plan).allowance + sum(
        trial.allowance * Account.objects.filter(plan=trial.name).exclude(gone).count() for trial in plans_by_sign_up()
    )
    if promised > settings.TRIAL_POOL:
        logger.error("No trial is made any more: all together reach TRIAL_POOL_USD, %s", usd(settings.TRIAL_POOL))
        raise TrialsExhausted
    if promised > settings.TRIAL_POOL * POOL_WARNING:
        logger.warning("Trials: %s of TRIAL_POOL_USD, %s, are given", usd(promised), usd(settings.TRIAL_POOL))
