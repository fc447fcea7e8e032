"""An account's allowance: what it is now, and giving it to an account that had to wait for it.

Owns `Account.allowance_granted_at` and `allowance_owed`, and the one CREDIT that pays a late allowance. Granting is
rows alone, so it goes into the transaction of what it is granted for; paying is the authority's, and may be repeated
for ever. Must not know why an account waits: see `billing.confirming`.
"""

from __future__ import annotations

import logging

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from billing import admin_client
from billing.errors import BudgetError
from billing.models import Account, BudgetPeriod
from billing.money import UNIT, usd
from billing.plans import plan_of
from tenants.audit.events import Event
from tenants.audit.trail import record

logger = logging.getLogger(__name__)

SERVED = (Account.Status.ACTIVE, Account.Status.FROZEN)


def waits(account: Account) -> bool:
    """Whether its allowance is not granted yet. Until then it can spend top-ups, if it has any."""
    return account.allowance_granted_at is None


def allowance_of(account: Account) -> int:
    """Microcents that its period has from its plan."""
    return 0 if waits(account) else plan_of(account.plan).allowance


def grant(account: Account, *, via: str = "confirmation") -> bool:
    """Grant the allowance of the account of the current tenant, in the caller's transaction. False: it was before.

    It belongs to the period that the ledger is in. Where the next one is asked for already and not open, it belongs to
    that one, whose opening then corrects by it; else the ledger lacks it, and it is owed until `pay` has credited it.
    A roll-over that is about to ask for a period waits for the lock of the first statement here.
    """
    amount = plan_of(account.plan).allowance
    waiting = Account.objects.filter(pk=account.pk, allowance_granted_at=None, status__in=SERVED)
    if waiting.update(allowance_granted_at=Now()) != 1:
        return False
    periods = BudgetPeriod.objects.filter(account=account)
    if not periods.filter(opened_at=None).update(allowance=F("allowance") + amount):
        periods.filter(closed_at=None).update(allowance=F("allowance") + amount)
        Account.objects.filter(pk=account.pk).update(allowance_owed=amount)
    record(Event.ALLOWANCE_GRANTED, via=via, usd=usd(amount))
    return True


def pay(account: Account) -> None:
    """Credit at the authority what is owed, once however often it is called. A BudgetError leaves it owed."""
    account.refresh_from_db(fields=["allowance_granted_at", "allowance_owed"])
    owed = account.allowance_owed
    if not owed:
        return
    # A real authority's fund keys are shared by all tenants and scopes: name them all.
    key = f"allowance:{account.subject_tenant}:{account.scope}:{UNIT}"
    admin_client.fund_once(
        account.subject_tenant,
        account.scope,
        "CREDIT",
        amount=owed,
        key=key,
        reason=key,
        asked_since=account.allowance_granted_at,
    )
    Account.objects.filter(pk=account.pk, allowance_owed=owed).update(allowance_owed=0)
    account.allowance_owed = 0


def pay_after_commit(account: Account) -> None:
    """Once the caller's transaction is committed. What cannot be paid then, `roll_budgets` pays within minutes."""

    def now() -> None:
        try:
            pay(account)
        except BudgetError:
            logger.warning("A granted allowance is not paid yet: account=%s", account.pk, exc_info=True)

    transaction.on_commit(now)
