"""One action on many rows: tenants, budgets, webhooks.

All of it is one transaction, so a repeat after a crash under the same key does it wholly or finds it wholly done. Rows
are taken in the order in which everybody locks them. Money moves in the SQL function that also a single call uses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django.db import DataError, connection, transaction
from django.db.models import Q, QuerySet
from django.http import HttpResponse, JsonResponse
from django.utils import timezone

from billing.authority import wire
from billing.authority.admin import tenants, webhooks
from billing.authority.admin.auth import Caller, admin_only
from billing.authority.admin.budgets import UTILIZATION, emit_funded, matching
from billing.authority.admin.request import ADMIN, AdminRequest, durably, run
from billing.authority.admin.shapes import Bulk, BulkBudgets, BulkTenants, BulkWebhooks
from billing.authority.admin.trail import audit
from billing.authority.errors import Refusal, sentence
from billing.authority.models import Ledger, Subscription, Tenant

MOST = 500
WINDOW_MS = 900_000
NOBODY = 0  # the space of an operator's own keys: no tenant has this number
RECALL = """SELECT recall(p_tenant => %(tenant)s, p_operation => %(operation)s, p_key => %(key)s,
    p_digest => %(digest)s)::text"""
REMEMBER = """SELECT remember(p_tenant => %(tenant)s, p_operation => %(operation)s, p_key => %(key)s,
    p_digest => %(digest)s, p_body => %(body)s::jsonb, p_expires_at_ms => now_ms() + %(window_ms)s)"""
ALREADY = "ALREADY_IN_TARGET_STATE"
OPERATOR = Caller(None)
# A ledger's state, which one call names by itself; in a bulk answer it is one word for all.
STATE_REFUSALS = {"BUDGET_FROZEN", "BUDGET_CLOSED", "INVALID_REQUEST"}
Row = TypeVar("Row")


@dataclass
class Tally:
    """What became of each row."""

    total: int
    succeeded: list[dict[str, str]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def done(self, identity: str) -> None:
        self.succeeded.append({"id": identity})

    def fail(self, identity: str, code: str, message: str) -> None:
        self.failed.append({"id": identity, "error_code": code, "message": message})

    def skip(self, identity: str) -> None:
        self.skipped.append({"id": identity, "reason": ALREADY})


@admin_only
def act_on_tenants(request: AdminRequest) -> HttpResponse:
    body = wire.read(BulkTenants, request.body)
    target = {"SUSPEND": "SUSPENDED", "REACTIVATE": "ACTIVE", "CLOSE": "CLOSED"}[body.action]

    def choose() -> Sequence[Tenant]:
        wanted, chosen = Q(), body.filter
        if chosen.status:
            wanted &= Q(status=chosen.status)
        if chosen.parent_tenant_id:
            wanted &= Q(parent_tenant_id=chosen.parent_tenant_id)
        if chosen.search:
            wanted &= Q(tenant_id__icontains=chosen.search) | Q(name__icontains=chosen.search)
        return list(Tenant.objects.select_for_update(no_key=True).filter(wanted).order_by("pk")[: MOST + 1])

    def act(tenant: Tenant, tally: Tally) -> None:
        try:
            changed = tenants.change_status(request, tenant, target)
        except Refusal as refusal:
            tally.fail(tenant.tenant_id, "INVALID_TRANSITION", refusal.message)
            return
        if changed:
            tally.done(tenant.tenant_id)
        else:
            tally.skip(tenant.tenant_id)

    return _once(request, "bulkActionTenants", body, body.action, choose, act, ADMIN)


@admin_only
def act_on_webhooks(request: AdminRequest) -> HttpResponse:
    body = wire.read(BulkWebhooks, request.body)

    def choose() -> Sequence[Subscription]:
        chosen = body.filter
        wanted = webhooks.matching(chosen.status, chosen.event_type, chosen.search)
        if chosen.tenant_id:
            wanted &= Q(tenant_id=chosen.tenant_id)
        rows = Subscription.objects.filter(wanted)
        # Tenants first and in order, as in every change of a single one: a close takes them in this order too.
        owners = rows.values_list("tenant_id", flat=True)
        list(Tenant.objects.select_for_update(no_key=True).filter(tenant_id__in=list(owners)).order_by("pk"))
        return list(rows.select_for_update(no_key=True).order_by("pk")[: MOST + 1])

    def act(row: Subscription, tally: Tally) -> None:
        try:
            webhooks.refuse_closed(row.tenant_id)
        except Refusal as refusal:
            tally.fail(row.subscription_id, refusal.code, refusal.message)
            return
        if body.action == "DELETE":
            webhooks.drop(request, OPERATOR, row)
        elif what := webhooks.set_status(row, "PAUSED" if body.action == "PAUSE" else "ACTIVE"):
            row.updated_at = timezone.now()
            row.save()
            webhooks.tell(request, OPERATOR, row, what, "update")
        else:
            tally.skip(row.subscription_id)
            return
        tally.done(row.subscription_id)

    return _once(request, "bulkActionWebhooks", body, body.action, choose, act, body.filter.tenant_id or ADMIN)


@admin_only
def act_on_budgets(request: AdminRequest) -> HttpResponse:
    body = wire.read(BulkBudgets, request.body)
    chosen = body.filter
    wanted = matching(
        unit=chosen.unit, status=chosen.status, over_limit=chosen.over_limit, has_debt=chosen.has_debt,
        utilization_min=chosen.utilization_min, utilization_max=chosen.utilization_max, text=chosen.search,
    )  # fmt: skip

    def choose() -> Sequence[Ledger]:
        rows: QuerySet[Any] = (
            Ledger.objects.annotate(utilization=UTILIZATION)
            .select_related("tenant")
            .filter(wanted, tenant__tenant_id=chosen.tenant_id, scope__startswith=(chosen.scope_prefix or "").lower())
        )
        return list(rows.order_by("scope", "unit")[: MOST + 1])

    return _once(
        request, "bulkActionBudgets", body, body.action, choose,
        lambda ledger, tally: _fund(request, body, ledger, tally), chosen.tenant_id,
    )  # fmt: skip


def _fund(request: AdminRequest, body: BulkBudgets, ledger: Ledger, tally: Tally) -> None:
    """One ledger through the one function that funds. Its own refusal leaves the others as they are."""
    identity, owner, unit = str(ledger.ledger_id), ledger.tenant.tenant_id, ledger.unit
    if ledger.tenant.status == Tenant.Status.CLOSED:
        tally.fail(identity, "TENANT_CLOSED", sentence("TENANT_CLOSED", {}))
        return
    if unit != body.amount.unit:
        tally.fail(identity, "INVALID_TRANSITION", f"This budget is in {unit}, the amount in {body.amount.unit}.")
        return
    if body.action == "REPAY_DEBT" and ledger.debt == 0:
        tally.skip(identity)
        return
    try:
        with transaction.atomic():
            status, text = run(
                "fund",
                {
                    "tenant": owner,
                    "scope": ledger.scope,
                    "unit": unit,
                    "operation": body.action,
                    "amount": body.amount.amount,
                    "spent": body.spent.amount if body.spent else None,
                    "reason": body.reason,
                    "key": None,
                    "request": b"",
                },
            )
    except DataError:
        tally.fail(identity, "INVALID_TRANSITION", "The amount pushes this budget past 2^63-1. Use a smaller one.")
        return
    answer = json.loads(text)
    if status >= 400:
        code = "INVALID_TRANSITION" if answer["error"] in STATE_REFUSALS else answer["error"]
        tally.fail(identity, code, sentence(answer["error"], answer))
        return
    place = (owner, ledger.scope, unit)
    emit_funded(request, place, answer, body.reason, spent_given=body.spent is not None)
    tally.done(identity)


def _once(
    request: AdminRequest, operation: str, body: Bulk, action: str, choose: Callable[[], Sequence[Row]],
    act: Callable[[Row, Tally], None], owner: str,
) -> HttpResponse:  # fmt: skip
    """Do it, or give the answer that was given under this key in the last quarter of an hour."""
    digest = wire.digest(body)

    def attempt() -> dict[str, Any]:
        if (known := _recalled(operation, body.idempotency_key, digest)) is not None:
            return known
        rows = choose()
        if len(rows) > MOST:
            raise Refusal(400, "LIMIT_EXCEEDED", f"The filter means more than {MOST} rows. Narrow it.")
        if body.expected_count is not None and body.expected_count != len(rows):
            message = f"The filter means {len(rows)} rows, not the {body.expected_count} expected. Nothing was done."
            raise Refusal(409, "COUNT_MISMATCH", message, details={"total_matched": len(rows)})
        answer = _answer(action, body, rows, act)
        _remember(operation, body.idempotency_key, digest, answer)
        counts = {name: len(answer[name]) for name in ("succeeded", "failed", "skipped")}
        audit(request, owner, operation, 200, metadata={"action": action, **counts})
        return answer

    return JsonResponse(durably(attempt))


def _answer(action: str, body: Bulk, rows: Iterable[Row], act: Callable[[Row, Tally], None]) -> dict[str, Any]:
    rows = list(rows)
    tally = Tally(len(rows))
    for row in rows:
        act(row, tally)
    return {
        "action": action,
        "total_matched": tally.total,
        "succeeded": tally.succeeded,
        "failed": tally.failed,
        "skipped": tally.skipped,
        "idempotency_key": body.idempotency_key,
    }


def _recalled(operation: str, key: str, digest: bytes) -> dict[str, Any] | None:
    with connection.cursor() as cursor:
        cursor.execute(RECALL, {"tenant": NOBODY, "operation": operation, "key": key, "digest": digest})
        text = cursor.fetchone()[0]
    if text is None:
        return None
    body: dict[str, Any] = json.loads(text)
    if "error" in body:
        raise Refusal(409, body["error"])
    return body


def _remember(operation: str, key: str, digest: bytes, answer: dict[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            REMEMBER,
            {
                "tenant": NOBODY,
                "operation": operation,
                "key": key,
                "digest": digest,
                "body": json.dumps(answer),
                "window_ms": WINDOW_MS,
            },
        )
