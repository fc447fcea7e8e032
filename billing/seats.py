"""What members and keys have spent, and how much they may: the part of their pages that is about money.

A limit is a ledger at the authority, below the tenant's own, and begins anew with each period. A member's is at their
seat. A key's is at each feature that its scopes allow, for the protocol has no level for "this key, in all features":
one amount, and one ledger for each. Owns how such limits are set, changed and taken away, and is their only writer.

The authority's ledgers say whether there is a limit; nothing here is asked on the way of a call. Two things hold for
every step: a ledger is there before a page says so, and whatever is stopped half-way refuses too much and not too
little, until the same is asked for again. No authority deletes a ledger, so a limit that is taken away stays behind as
one that never binds (admin_client.NO_LIMIT).
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from billing import admin_client, periods
from billing.admin_client import NO_LIMIT, Refused
from billing.client import account_of
from billing.errors import BudgetError, LimitNotSet
from billing.forms import LimitForm
from billing.ledgers import Ledger, all_ledgers, ledgers_of
from billing.models import Account
from billing.money import UNIT, usd
from billing.proof import Bar, bar_of
from billing.subjects import FEATURES, scopes_of, subject_for
from billing.usage.models import UsageLine
from tenants.audit.events import Event
from tenants.audit.models import AuditEvent
from tenants.audit.trail import record
from tenants.http import TenantRequest
from tenants.locks import if_nobody_is
from tenants.roles import SCOPES, Action, may_act_on
from tenants.users.models import ApiKey, User

# The features of FEATURES that a key's scopes allow. A builder's own come to a key's limit once they were used.
_FEATURES_OF = {Action.CHAT: {"chat", "api"}, Action.SUMMARIZE: {"summarize"}}


# --- where a limit is -----------------------------------------------------------------------------------------------


def seat_scope(account: Account, member: User) -> str:
    return scopes_of({"tenant": account.subject_tenant, "workspace": f"user-{member.pk}"})[-1]


def key_scope(account: Account, key: ApiKey, app: str) -> str:
    tenant, user_id = account.subject_tenant, key.user_id
    return scopes_of(subject_for(tenant=tenant, user_id=user_id, app=app, key_id=key.spender))[-1]


def key_apps(key: ApiKey) -> list[str]:
    """The features that a limit of this key is to be for: what its scopes allow, and what else is called here.

    Never fewer than it has: a ledger that is there goes on refusing.
    """
    scopes = SCOPES if key.scopes is None else [scope for scope in SCOPES if scope in key.scopes]
    allowed = {app for scope in scopes for app in _FEATURES_OF.get(scope, ())}
    others = set(UsageLine.objects.values_list("app", flat=True).distinct()) - set(FEATURES) - {""}
    wanted = allowed | others | {str(settings.DEFAULT_APP)} | set(key.limited_apps or ())
    return sorted({app.lower() for app in wanted}, key=_order)


def _order(app: str) -> tuple[bool, str]:
    return (app not in FEATURES, app)


def name_of_app(app: str) -> str:
    return {"summarize": "summaries", "api": "the API of /v1", str(settings.DEFAULT_APP).lower(): "other calls"}.get(
        app, app
    )


# --- setting --------------------------------------------------------------------------------------------------------


def set_limit(request: TenantRequest, whose: User | ApiKey, amount: int) -> None:
    """The most that a member, or a key in each of its features, may spend in a period. Safe to repeat.

    What was spent in the period before there was a limit counts; a call under way at that moment counts from its next
    slice on. Lowered below what is spent, it refuses all further calls until the period ends. Raises LimitNotSet, or a
    BudgetError: it may then be set, so the same is asked again.
    """
    _put(request, whose, amount)


def remove_limit(request: TenantRequest, whose: User | ApiKey) -> None:
    """Raises as `set_limit`."""
    _put(request, whose, None)


def _put(request: TenantRequest, whose: User | ApiKey, amount: int | None) -> None:
    account = account_of(request.tenant)
    # Of two at once, each would be heard at some of a key's ledgers, and the row and the trail could say the other's.
    with if_nobody_is(f"limit:{account.pk}:{_name_of(whose)}") as alone:
        if not alone:
            raise LimitNotSet(LimitNotSet.BUSY)
        whose.refresh_from_db()
        apps = key_apps(whose) if isinstance(whose, ApiKey) else None
        period = _period_that_stands(account)
        before = _allocate_each(account, amount, _spent_at(account, whose, apps or ()))
        if _period_that_stands(account) != period:
            raise LimitNotSet(LimitNotSet.TURNING)
        with transaction.atomic(durable=True):
            if isinstance(whose, ApiKey):
                _mark(whose, apps if amount is not None else None)
            _write_down(request, whose, amount, before)


def _name_of(whose: User | ApiKey) -> str:
    return f"key-{whose.spender}" if isinstance(whose, ApiKey) else f"user-{whose.pk}"


def _allocate_each(account: Account, amount: int | None, spent: dict[str, int]) -> int | None:
    """Bring the ledgers to the amount. `spent`: by scope, what was spent there. The limit that was there before."""
    found = {ledger.scope: ledger for ledger in ledgers_of(spent)}
    for scope in spent:
        try:
            _allocate(account, scope, amount, found.get(scope), spent[scope])
        except Refused as exc:
            if exc.error in ("BUDGET_FROZEN", "BUDGET_CLOSED", "TENANT_CLOSED"):
                raise LimitNotSet(LimitNotSet.ON_HOLD) from exc
            raise
    return next((ledger.allocated for ledger in found.values() if ledger.is_limit), None)


def _allocate(account: Account, scope: str, amount: int | None, ledger: Ledger | None, spent: int) -> None:
    """Bring one ledger to the amount. RESET leaves alone what is spent and held, so calls may go on beside it."""
    if ledger is None:
        if amount is None:
            return
        # With something spent already it is made with nothing, for what is spent is written by the step after it, and
        # would wipe out what a call between the two was charged.
        first = amount if not spent else 0
        admin_client.ensure_budget(account.subject_tenant, scope, allocated=first, overdraft_limit=0)
        (ledger,) = ledgers_of([scope])
    wanted = NO_LIMIT if amount is None else amount
    # Also for a limit of nothing, and for one that is taken away half-made: a later one would begin without it.
    if spent and not (ledger.allocated or ledger.spent or ledger.reserved):
        _begin_with(account, scope, wanted, spent)
        (ledger,) = ledgers_of([scope])
    if ledger.allocated != wanted or ledger.is_over_limit:
        _fund(account, scope, "RESET", amount=wanted, key=str(uuid.uuid4()))


def _begin_with(account: Account, scope: str, amount: int, spent: int) -> None:
    """Of two who do this at once one is heard: the second has the same key, and must not write over later calls."""
    period = periods.current(account)
    number = period.number if period else -1
    try:
        key = sha256(f"{scope}:{UNIT}:{number}".encode()).hexdigest()
        _fund(account, scope, "RESET_SPENT", amount=amount, spent=spent, key=f"limit:{key}")
    except Refused as exc:
        if exc.error != "IDEMPOTENCY_MISMATCH":
            raise


def _fund(account: Account, scope: str, operation: str, *, key: str, **figures: int) -> None:
    admin_client.fund(
        account.subject_tenant, scope, operation, key=key, reason="a member's or a key's limit", **figures
    )


def _period_that_stands(account: Account) -> int | None:
    """The number of the account's period, None where it has none yet. Raises LimitNotSet while one is being opened.

    The roll-over gives each limit the amount that it has read a moment ago, which may be the one of before. It reads
    after the next period's row is written. So asked before and after the ledgers are changed: where that is the same
    period, the next roll-over will read ours. Asked after them alone, one that came and was over is not noticed.
    """
    period = periods.current(account)
    if periods.is_turning(account) or (period is not None and period.limits_renewed_at is None):
        raise LimitNotSet(LimitNotSet.TURNING)
    return None if period is None else period.number


def _family(key: ApiKey) -> QuerySet[ApiKey]:
    """The key and those it was rotated from and to: they spend in one name, and share one limit."""
    return ApiKey.objects.filter(Q(pk=key.spender) | Q(spends_as=key.spender))


def _mark(key: ApiKey, apps: list[str] | None) -> None:
    # Locked first, by a statement of its own: a rotation that is under way adds a key that the next one then sees.
    list(ApiKey.objects.select_for_update().filter(pk=key.spender))
    _family(key).update(has_limit=apps is not None, limited_apps=apps)


def key_rotated(old: ApiKey, new: ApiKey) -> None:
    """A key was made in the place of another: it spends in that one's name, so that one limit is over both of them.

    To be called in the transaction that makes it.
    """
    with transaction.atomic():
        first = ApiKey.objects.select_for_update().get(pk=old.spender)
        new.spends_as, new.has_limit, new.limited_apps = first.pk, first.has_limit, first.limited_apps
        new.save(update_fields=["spends_as", "has_limit", "limited_apps"])


def _write_down(request: HttpRequest, whose: User | ApiKey, amount: int | None, before: int | None) -> None:
    """One line of the trail for a change, also where the first try's answer was lost and another one came through."""
    type(whose)._default_manager.select_for_update().get(pk=whose.pk)
    of = _name_of(whose)
    events = (Event.LIMIT_SET, Event.LIMIT_REMOVED)
    newest = AuditEvent.objects.filter(event__in=events, details__of=of).order_by("-pk").first()
    limit, was = (None if figure is None else usd(figure) for figure in (amount, before))
    if limit == (newest.details.get("limit") if newest else None):
        return
    target = str(whose) if isinstance(whose, ApiKey) else whose.email
    record(events[amount is None], request=request, target=target, of=of, limit=limit, before=was, currency="USD")


# --- reading --------------------------------------------------------------------------------------------------------


def _spent(account: Account, **only: Any) -> QuerySet[UsageLine]:
    """The lines of the account's current period, in the tenant whose scope is entered."""
    period = periods.current(account)
    since = {} if period is None or period.opened_at is None else {"settled_at__gte": period.opened_at}
    return UsageLine.objects.filter(**since, **only).order_by()


def _spent_at(account: Account, whose: User | ApiKey, apps: Iterable[str]) -> dict[str, int]:
    """Microcents at each of the scopes at which the member's, or the key's, limit is."""
    if isinstance(whose, User):
        total = _spent(account, user_id=whose.pk).aggregate(total=Sum("cost"))["total"]
        return {seat_scope(account, whose): total or 0}
    by_app: Counter[str] = Counter()
    for app, total in _spent(account, key_id=whose.spender).values_list("app").annotate(total=Sum("cost")):
        by_app[app.lower()] += total
    return {key_scope(account, whose, app): by_app[app] for app in apps}


@dataclass(frozen=True, slots=True)
class Part:
    """One ledger of a limit, as a page shows it."""

    name: str
    ledger: Ledger
    bar: Bar | None


@dataclass(frozen=True, slots=True)
class Beside:
    """What stands on one row. `spent` by our own lines; `parts` is empty where there is no limit."""

    kind: str
    pk: int
    name: str
    spent: int
    parts: Sequence[Part] = ()
    is_known: bool = True  # whether the authority could be asked for limits
    may_set: bool = False
    is_whole: bool = True  # False: setting or removing it was interrupted, and is to be done again
    is_shared: bool = False  # with the key that it took the place of, or that took its place

    @property
    def limit(self) -> int | None:
        return self.parts[0].ledger.allocated if self.parts else None

    @property
    def address(self) -> str:
        return f"/settings/{self.kind}/{self.pk}/limit/"

    @property
    def form(self) -> LimitForm:
        typed = {"amount": usd(self.limit)} if self.limit is not None else {}
        return LimitForm(initial=typed, auto_id=f"limit-{self.kind}-{self.pk}-%s")


def beside_members(request: TenantRequest, members: Sequence[User]) -> dict[int, SafeString]:
    """By member's id, what the members' page shows on their row."""
    return _rendered(request, read_members(request, members))


def beside_keys(request: TenantRequest, keys: Sequence[ApiKey]) -> dict[int, SafeString]:
    """By key's id, what the keys' page shows on its row."""
    return _rendered(request, read_keys(request, keys))


def _rendered(request: TenantRequest, rows: Iterable[Beside]) -> dict[int, SafeString]:
    return {row.pk: render_to_string("billing/partials/seat.html", {"seat": row}, request) for row in rows}


def read_members(request: TenantRequest, members: Sequence[User]) -> list[Beside]:
    account = Account.objects.filter(tenant_id=request.tenant.pk).first()
    if account is None:
        return []
    ledgers = _limits(account)
    spent = dict(_spent(account).values_list("user_id").annotate(total=Sum("cost")))
    return [
        Beside(
            kind="members",
            pk=member.pk,
            name=member.email,
            spent=spent.get(member.pk, 0),
            parts=_parts(ledgers, [("", seat_scope(account, member))]),
            is_known=ledgers is not None,
            may_set=member.is_active and _may_limit(request.user, member.role),
        )
        for member in members
    ]


def read_keys(request: TenantRequest, keys: Sequence[ApiKey]) -> list[Beside]:
    account = Account.objects.filter(tenant_id=request.tenant.pk).first()
    if account is None:
        return []
    ledgers = _limits(account)
    spent = dict(_spent(account, key_id__isnull=False).values_list("key_id").annotate(total=Sum("cost")))
    roles = dict(User.objects.filter(pk__in={key.user_id for key in keys}).values_list("pk", "role"))
    shared = set(ApiKey.objects.filter(spends_as__isnull=False).values_list("spends_as", flat=True))
    return [
        Beside(
            kind="keys",
            pk=key.pk,
            name=key.name,
            spent=spent.get(key.spender, 0),
            parts=_worth_showing(_parts(ledgers, places := _places(account, key, ledgers or {}))),
            is_whole=ledgers is None or _is_whole(account, key, places),
            is_known=ledgers is not None,
            may_set=key.is_active and _may_limit(request.user, roles[key.user_id]),
            is_shared=key.spender in shared,
        )
        for key in keys
    ]


def _places(account: Account, key: ApiKey, ledgers: Collection[str]) -> list[tuple[str, str]]:
    """The scopes at which the authority does have a ledger of the key, whatever its row says."""
    scope = re.compile(re.escape(key_scope(account, key, "X").lower()).replace("app:x", "app:([^/]+)"))
    found = [(match[1], one) for one in ledgers if (match := scope.fullmatch(one))]
    return [(name_of_app(app), one) for app, one in sorted(found, key=lambda pair: _order(pair[0]))]


def _is_whole(account: Account, key: ApiKey, places: Iterable[tuple[str, str]]) -> bool:
    """Whether the row and the authority agree. With a ledger and no mark the other features go past the limit; with the
    mark and no ledger they are refused for a limit that is gone.
    """
    found = {scope for _, scope in places}
    marked = {key_scope(account, key, app) for app in key.limited_apps or ()}
    return key.has_limit == bool(found) and marked <= found


def _may_limit(user: User, role: str) -> bool:
    return may_act_on(user.role, role, Action.SET_LIMITS)


def _limits(account: Account) -> dict[str, Ledger] | None:
    """Every limit of the workspace's members and keys by its scope, in one look-up; None where it cannot be had."""
    try:
        found = all_ledgers(account.subject_tenant, below=f"{account.scope}/workspace:user-")
    except BudgetError:
        return None
    return {ledger.scope: ledger for ledger in found if ledger.unit == UNIT and ledger.is_limit}


def _parts(ledgers: dict[str, Ledger] | None, places: Collection[tuple[str, str]]) -> list[Part]:
    found = ledgers or {}
    return [Part(name, found[scope], bar_of(found[scope])) for name, scope in places if scope in found]


def _worth_showing(parts: list[Part]) -> list[Part]:
    """Of a key's: the features that everybody has, and of the others those that were used."""
    usual = {name_of_app(app) for app in FEATURES}
    return [one for one in parts if one.name in usual or one.ledger.spent or one.ledger.reserved] or parts
