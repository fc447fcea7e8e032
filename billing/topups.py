"""Money bought: a durable row, applied at the authority once for each key."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from billing import admin_client
from billing.models import Account, TopUp
from billing.money import UNIT, usd
from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.context import tenant_scope
from tenants.spelling import is_blank

# The authority's events tell for 90 days what became of an unanswered payment; past that a repeat could be a second.
_REPEATABLE_FOR = timedelta(days=80)
LONGEST_KEY = 100


class TopUpKeyUnfit(ValueError):
    """The key names no payment. Nothing was asked for."""


class TopUpConflict(Exception):
    """The key stands for another amount, or is too old to be repeated safely. The message says which."""


class TopUpRefused(Exception):
    """The ledger takes no money now. Nothing was added; the row stays, for the same command again."""


_NOT_TAKEN = {
    "BUDGET_FROZEN": "The ledger {scope} is frozen, so nothing was added. Unfreeze it at the authority, then run the "
    "same command again.",
    "BUDGET_CLOSED": "The ledger {scope} is closed for good, so nothing was added. Give the money back: it can no "
    "longer be spent here.",
    "TENANT_CLOSED": "The workspace is closed at the authority for good, so nothing was added. Give the money back: "
    "it can no longer be spent here.",
}


def top_up(account: Account, *, amount: int, key: str) -> TopUp:
    """Credit `amount` microcents, once for each `key` of the account, however often it is called.

    Raises TopUpKeyUnfit, TopUpConflict, TopUpRefused or a BudgetError.
    """
    # A script's variable with nothing in it would be one key for all its payments: the second is then taken for the
    # first again, and called added.
    if not (1 <= len(key) <= LONGEST_KEY and key.isprintable() and key == key.strip()) or is_blank(key):
        raise TopUpKeyUnfit(
            f"The key {key[:LONGEST_KEY]!r} names no payment: write 1 to {LONGEST_KEY} characters that can be seen, "
            "with no space at either end, such as the invoice's number. Nothing was added."
        )
    with transaction.atomic(durable=True):
        row, is_new = TopUp.objects.get_or_create(account=account, key=key, defaults={"amount": amount})
    if row.amount != amount:
        raise TopUpConflict(f"Key {key} stands for another amount already. Use a new key for a new payment.")
    if row.applied_at is not None:
        return row
    if timezone.now() - row.created_at > _REPEATABLE_FOR:
        raise TopUpConflict(f"Key {key} is over 80 days old and was never confirmed. Compare the ledger by hand.")
    try:
        admin_client.fund_once(
            account.subject_tenant,
            account.scope,
            "CREDIT",
            amount=amount,
            # A real authority's fund keys are shared by all tenants and scopes: name them all.
            key=f"topup:{account.subject_tenant}:{account.scope}:{UNIT}:{key}",
            reason=f"top-up {key}",
            asked_since=None if is_new else row.created_at,
        )
    except admin_client.Refused as exc:
        if exc.error in _NOT_TAKEN:
            raise TopUpRefused(_NOT_TAKEN[exc.error].format(scope=account.scope)) from exc
        raise
    _note_applied(account, row)
    row.refresh_from_db()
    return row


def _note_applied(account: Account, row: TopUp) -> None:
    """Once, also where two who repeat the same payment come here together. With a line in the workspace's trail."""
    with tenant_scope(account.tenant), transaction.atomic(durable=True):
        if TopUp.objects.filter(pk=row.pk, applied_at=None).update(applied_at=timezone.now()):
            record(Event.TOPPED_UP, via="command", target=row.key, usd=usd(row.amount))
