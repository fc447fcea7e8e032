"""Periods: at the end of each, an account's ledger starts anew with its allowance and the top-ups that are unspent.

Owns when a period begins and ends, and its roll-over at the authority. Every step is a row or a key, so that it may be
killed anywhere, run twice at once, or go on after a month. Must not decide whether a call is made.

What is exact comes from the authority's answer to the reset, which it gives in one piece: calls and top-ups may go on
beside it. The look before the reset only keeps whoever has top-ups from being refused in the moment after it.
"""

from __future__ import annotations

import calendar
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from django.db import connection, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet, Sum

from billing import admin_client, allowance
from billing.admin_client import Funded, Refused
from billing.allowance import SERVED, allowance_of
from billing.errors import BudgetError
from billing.ledgers import Ledger, all_ledgers, ledgers_of
from billing.models import Account, BudgetPeriod
from billing.money import UNIT
from billing.subjects import can_be_met
from tenants.models import Tenant

logger = logging.getLogger(__name__)

# The longest key that the authority takes.
_KEY_LENGTH = 256
_UNCORRECTED = ~Q(correction=0) & Q(corrected_at=None)


class NotRolled(Exception):
    """The ledger cannot start anew just now. The message says why; it is tried again."""


# --- when -----------------------------------------------------------------------------------------------------------


def months_after(anchor: datetime, months: int) -> datetime:
    """The same day and time so many months later, UTC; in a shorter month its last day."""
    anchor = anchor.astimezone(UTC)
    year, month = divmod(anchor.year * 12 + anchor.month - 1 + months, 12)
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)


def database_time() -> datetime:
    """The time by the one clock that all hosts share. A period that was opened early cannot be taken back: by a clock
    that is a year ahead, customers would be without a new budget for a year.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now


def _bounds(account: Account, number: int) -> dict[str, datetime]:
    """Counted from the account's beginning each time: after a short month the day is the old one again."""
    anchor = account.activated_at or account.created_at
    return {"starts_at": months_after(anchor, number), "ends_at": months_after(anchor, number + 1)}


def begin(account: Account) -> BudgetPeriod:
    """The account's first period, which began with it; made here where there is none yet."""
    given = allowance_of(account)
    bounds = _bounds(account, 0)
    opened = {"opened_at": bounds["starts_at"], "limits_renewed_at": bounds["starts_at"]}
    period, _ = BudgetPeriod.objects.get_or_create(
        account=account, number=0, defaults={**bounds, **opened, "allowance": given, "asked": given}
    )
    return period


def current(account: Account) -> BudgetPeriod | None:
    """The period that the account's ledger is in; None for an account that has none yet."""
    return BudgetPeriod.objects.filter(account=account, opened_at__isnull=False, closed_at=None).first()


def running(tenant: Tenant, *, now: datetime) -> BudgetPeriod | None:
    """The tenant's period at `now`; None where that is not known, as in the moment between two."""
    return BudgetPeriod.objects.filter(
        account__tenant_id=tenant.pk, opened_at__isnull=False, closed_at=None, ends_at__gt=now
    ).first()


def is_turning(account: Account) -> bool:
    """Whether the authority has been asked for the next period and we have not written its answer down.

    Not by the clock: that of the host that asked may have been another, and a frozen ledger's period ends without being
    asked for. It must be gone on with, for the authority may have done it.
    """
    return BudgetPeriod.objects.filter(account=account, opened_at=None).exists()


def closed(account: Account) -> QuerySet[BudgetPeriod]:
    """The periods that are over, newest first."""
    return BudgetPeriod.objects.filter(account=account, closed_at__isnull=False).order_by("-number")


def spent_before(account: Account) -> int:
    """Microcents that the authority counted in all closed periods."""
    return closed(account).aggregate(total=Sum("spent"))["total"] or 0


# --- which accounts -------------------------------------------------------------------------------------------------


def due(now: datetime) -> QuerySet[Account]:
    """Accounts whose period is over, those that have none yet, those where a roll-over left something to do, and those
    that an allowance is owed to.
    """
    is_open = Q(opened_at__isnull=False, closed_at=None)
    left_to_do = (is_open & (Q(ends_at__lte=now) | Q(limits_renewed_at=None))) | Q(opened_at=None) | _UNCORRECTED
    never_begun = ~Exists(BudgetPeriod.objects.filter(account=OuterRef("pk")))
    to_do = never_begun | Q(pk__in=BudgetPeriod.objects.filter(left_to_do).values("account")) | Q(allowance_owed__gt=0)
    return Account.objects.select_related("tenant").filter(to_do, status__in=SERVED)


# --- one account ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rolled:
    """What came of one account: the periods that were opened, and why it did not go on, where it did not."""

    account: Account
    opened: list[BudgetPeriod] = field(default_factory=list)
    problem: str | None = None


_told: set[int] = set()  # the accounts whose trouble this process has logged


def roll_over(account: Account, *, now: datetime) -> Rolled:
    """Open each period of the account that has begun by `now`, with one reset for each. Never raises an Exception: one
    account that fails must not stop the others. It is left as it stands, and goes on from there the next time.
    """
    rolled = Rolled(account)
    try:
        _roll_over(rolled, now)
    except Exception as exc:
        rolled.problem = exc.error if isinstance(exc, Refused) else str(exc) or type(exc).__name__
        if account.pk not in _told:
            _told.add(account.pk)
            is_known = isinstance(exc, NotRolled | BudgetError)
            logger.warning(
                "A budget is not rolled over: account=%s: %s", account.pk, rolled.problem, exc_info=not is_known
            )
    else:
        _told.discard(account.pk)
    return rolled


def _roll_over(rolled: Rolled, now: datetime) -> None:
    account = rolled.account
    allowance.pay(account)
    period = current(account) or begin(account)
    _correct(account, now)
    while period.ends_at <= now or is_turning(account):
        period = _open_next(account, period, now)
        rolled.opened.append(period)
        _correct(account, now)
    if period.limits_renewed_at is None:
        _renew_limits(account, period, now)


def _open_next(account: Account, ended: BudgetPeriod, now: datetime) -> BudgetPeriod:
    """Reset the ledger for the period after `ended`: the row, then the authority, then what it answered."""
    following, is_new = _ask_for(account, ended)
    if following.opened_at is not None:
        return following
    key = _key("reset", account, account.scope, following)
    answer = admin_client.fund_once(
        account.subject_tenant,
        account.scope,
        "RESET_SPENT",
        amount=following.asked,
        key=key,
        reason=key,
        asked_since=None if is_new else following.created_at,
    )
    return _write_down(account, ended, following, answer, now)


def _ledger_of(account: Account) -> Ledger:
    ledger = next(iter(ledgers_of([account.scope])), None)
    if ledger is None:
        raise NotRolled("there is no ledger at the authority")
    if ledger.status != "ACTIVE":
        raise NotRolled(f"the ledger is {ledger.status.lower()}, and such a one cannot be funded")
    return ledger


def _ask_for(account: Account, ended: BudgetPeriod) -> tuple[BudgetPeriod, bool]:
    """The row of the next period, and whether it is made just now. A row that is there keeps what it asks for, and is
    not kept waiting by a ledger that was frozen since: it may be reset already.

    What is held counts as spent here, so that no more is asked for than is unspent in the end: whoever is short of it
    until the correction waits for held money instead of being refused.
    """
    number = ended.number + 1
    if following := BudgetPeriod.objects.filter(account=account, number=number).first():
        return following, False
    ledger = _ledger_of(account)
    unspent = max(0, ledger.allocated - max(ended.allowance, ledger.spent + ledger.reserved))
    given = allowance_of(account)
    with transaction.atomic(durable=True):
        # A grant takes this lock as well. One that came since this run began changes what `ended` had, and is not paid;
        # one that comes later finds the row that is made here.
        granted = Account.objects.select_for_update().values_list("allowance_granted_at", flat=True).get(pk=account.pk)
        if granted != account.allowance_granted_at:
            raise NotRolled("its allowance was granted this moment")
        return BudgetPeriod.objects.get_or_create(
            account=account,
            number=number,
            defaults={**_bounds(account, number), "allowance": given, "asked": given + unspent},
        )


def _write_down(
    account: Account, ended: BudgetPeriod, following: BudgetPeriod, answer: Funded, now: datetime
) -> BudgetPeriod:
    """Close the one and open the other by the authority's answer. Of two that come here, one writes."""
    carried = max(0, answer.previous_allocated - max(ended.allowance, answer.previous_spent))
    with transaction.atomic(durable=True):
        is_first = BudgetPeriod.objects.filter(pk=ended.pk, closed_at=None).update(
            closed_at=now, spent=answer.previous_spent
        )
        if is_first:
            BudgetPeriod.objects.filter(pk=following.pk).update(
                # By the row as it is: an allowance may have been granted to this period since it was asked for.
                opened_at=now,
                carried=carried,
                correction=F("allowance") + carried - F("asked"),
            )
    following.refresh_from_db()
    if is_first:
        logger.info(
            "period opened tenant=%s number=%d spent=%d carried=%d",
            account.tenant.slug,
            following.number,
            answer.previous_spent,
            carried,
        )
    return following


def _correct(account: Account, now: datetime) -> None:
    """Credit what a reset gave too little, debit what it gave too much.

    Neither depends on the period that it comes in: it is top-up money. A debit for which nothing is left stays owed.
    """
    for period in BudgetPeriod.objects.filter(_UNCORRECTED, account=account):
        key = _key("correction", account, account.scope, period)
        try:
            admin_client.fund_once(
                account.subject_tenant,
                account.scope,
                "CREDIT" if period.correction > 0 else "DEBIT",
                amount=abs(period.correction),
                key=key,
                reason=key,
                asked_since=period.created_at,
            )
        except Refused as exc:
            if exc.error != "BUDGET_EXCEEDED":
                raise
            logger.info("A debit has to wait: account=%s period=%d", account.pk, period.number)
        else:
            BudgetPeriod.objects.filter(pk=period.pk).update(corrected_at=now)


def _renew_limits(account: Account, period: BudgetPeriod, now: datetime) -> None:
    """Reset what is limited below the tenant: seats, features, keys. A conversation's limit is for its whole life.

    A frozen limit is left as it is, and said: it must not keep the others from starting anew.
    """
    for limit in all_ledgers(account.subject_tenant, below=f"{account.scope}/"):
        if limit.unit != UNIT or not can_be_met(limit.scope) or "/workflow:" in limit.scope:
            continue
        key = _key("reset", account, limit.scope, period)
        try:
            admin_client.fund_once(
                account.subject_tenant,
                limit.scope,
                "RESET_SPENT",
                amount=limit.allocated,
                key=key,
                reason=key,
                asked_since=period.created_at,
            )
        except Refused as exc:
            if exc.error not in ("BUDGET_FROZEN", "BUDGET_CLOSED"):
                raise
            logger.warning("A limit did not start anew: %s: %s", limit.scope, exc.error)
    BudgetPeriod.objects.filter(pk=period.pk).update(limits_renewed_at=now)


def _key(what: str, account: Account, scope: str, period: BudgetPeriod) -> str:
    """One for tenant, scope, unit and period: a real authority's fund keys are shared by all tenants and scopes."""
    key = f"{what}:{account.subject_tenant}:{scope}:{UNIT}:{period.number}"
    return key if len(key) <= _KEY_LENGTH else f"{what}:{sha256(key.encode()).hexdigest()}"


# --- resets that are not ours ---------------------------------------------------------------------------------------


def resets_by_hand(account: Account) -> list[admin_client.FundingEvent]:
    """Resets of the account's ledger that no period of ours asked for, oldest first, of the last 90 days."""
    ours = f"reset:{account.subject_tenant}:"
    since = (account.activated_at or account.created_at) - timedelta(days=1)
    told = admin_client.funding_events(account.subject_tenant, account.scope, "RESET_SPENT", since=since)
    return [event for event in told if not event.reason.startswith(ours)]
