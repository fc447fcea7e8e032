"""Budgets: make, list, look up, fund, freeze, change, cap. Reads here; every change is a SQL operation."""

from __future__ import annotations

import json
from typing import Any

from django.db.models import Case, F, FloatField, Q, QuerySet, TextField, Value, When
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Coalesce
from django.http import HttpResponse, JsonResponse

from billing.authority import wire
from billing.authority.admin.auth import Caller, admin_only, admin_or, tenant_only
from billing.authority.admin.request import AdminRequest, call, choice, flag, page, required, search
from billing.authority.admin.trail import ON_BEHALF, actor_of, audit, emit
from billing.authority.errors import Refusal, invalid
from billing.authority.models import Ledger
from billing.authority.scopes import ScopeError, parse_scope

JSON = RawSQL("ledger_json(ledger)::text", ())  # as the SQL operations show it: one place knows the shape
UTILIZATION = Case(
    When(allocated=0, then=Value(0.0)),
    default=Cast(F("spent"), FloatField()) / Cast(F("allocated"), FloatField()),
    output_field=FloatField(),
)
SORTS = {
    "utilization": UTILIZATION,
    "scope": F("scope"),
    "unit": F("unit"),
    "tenant_id": F("tenant__tenant_id"),
    "status": F("status"),
    "debt": F("debt"),
    "commit_overage_policy": Coalesce(F("commit_overage_policy"), Value(""), output_field=TextField()),
}


FUNDED = {
    "CREDIT": "funded",
    "DEBIT": "debited",
    "RESET": "reset",
    "RESET_SPENT": "reset_spent",
    "REPAY_DEBT": "debt_repaid",
}
FIGURES = ("allocated", "remaining", "debt", "spent")


@admin_or("budgets:write")
def create(request: AdminRequest, caller: Caller) -> HttpResponse:
    body = wire.read(wire.CreateBudget, request.body)
    tenant_id = caller.owner(body.tenant_id)
    try:
        scope = parse_scope(body.scope, tenant_id)
    except ScopeError as error:
        raise invalid(f"{error}.") from None
    caller.may_reach(scope)
    for amount in (body.allocated, body.overdraft_limit):
        _check_unit(amount, body.unit)
    return call(
        "create_budget",
        {
            "tenant": tenant_id, "scope": scope, "unit": body.unit, "allocated": body.allocated.amount,
            "overdraft_limit": body.overdraft_limit.amount if body.overdraft_limit else None,
            "policy": body.commit_overage_policy, "rollover": body.rollover_policy,
            "period_start": body.period_start, "period_end": body.period_end, "metadata": wire.dumped(body.metadata),
        },
        then=lambda ledger: _tell_created(request, caller, ledger),
    )  # fmt: skip


def _tell_created(request: AdminRequest, caller: Caller, ledger: dict[str, Any]) -> None:
    tenant_id, place_of = ledger["tenant_id"], {"scope": ledger["scope"], "unit": ledger["unit"]}
    told = {"ledger_id": ledger["ledger_id"], **place_of, "operation": "CREATE"}
    emit(request, tenant_id, "budget.created", told, scope=ledger["scope"], actor=actor_of(caller.key_id, ON_BEHALF))
    audit(
        request, tenant_id, "createBudget", 201, key_id=caller.key_id, resource=("budget", ledger["ledger_id"]),
        metadata={
            **place_of,
            "allocated": ledger["allocated"]["amount"],
            "actor_type": ON_BEHALF["type"] if caller.key_id is None else None,
        },
    )  # fmt: skip


@admin_or("budgets:read")
def listing(request: AdminRequest, caller: Caller) -> HttpResponse:
    prefix = request.GET.get("scope_prefix", "").lower()
    if prefix:
        caller.may_reach(prefix)
    rows: QuerySet[Any] = Ledger.objects.annotate(json=JSON, utilization=UTILIZATION)
    if caller.tenant is not None:
        rows = rows.filter(tenant=caller.tenant)
    elif tenant_id := request.GET.get("tenant_id"):
        rows = rows.filter(tenant__tenant_id=tenant_id)
    rows = rows.filter(_asked(request), scope__startswith=prefix)
    return page(request, rows, "ledgers", shown, sorts=SORTS, default="utilization", identity="ledger_id")


def _asked(request: AdminRequest) -> Q:
    return matching(
        unit=choice(request, "unit", wire.UNITS, "") if "unit" in request.GET else None,
        status=choice(request, "status", tuple(Ledger.Status.values), "") if "status" in request.GET else None,
        over_limit=flag(request, "over_limit"),
        has_debt=flag(request, "has_debt"),
        utilization_min=_share(request, "utilization_min"),
        utilization_max=_share(request, "utilization_max"),
        text=search(request),
    )


def matching(
    *, unit: str | None = None, status: str | None = None, over_limit: bool | None = None,
    has_debt: bool | None = None, utilization_min: float | None = None, utilization_max: float | None = None,
    text: str | None = None,
) -> Q:  # fmt: skip
    """Which ledgers a list or a bulk action means. They must be annotated with their utilization."""
    if utilization_min is not None and utilization_max is not None and utilization_min > utilization_max:
        raise invalid("utilization_min is above utilization_max.")
    plain = {
        "unit": unit,
        "status": status,
        "is_over_limit": over_limit,
        "utilization__gte": utilization_min,
        "utilization__lte": utilization_max,
    }
    wanted = Q(**{name: value for name, value in plain.items() if value is not None})
    if has_debt is not None:
        wanted &= Q(debt__gt=0) if has_debt else Q(debt=0)
    if text:
        wanted &= Q(scope__icontains=text) | Q(tenant__tenant_id__icontains=text)
    return wanted


def _share(request: AdminRequest, name: str) -> float | None:
    text = request.GET.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise invalid(f"{name} is {text!r}: write a number from 0 to 1.")
    return value


def shown(ledger: Any) -> Any:
    return json.loads(ledger.json)


@admin_or("budgets:read")
def lookup(request: AdminRequest, caller: Caller) -> HttpResponse:
    """One ledger. A tenant's key sees its own only; another's is as good as absent."""
    scope, unit = place(request)
    caller.may_reach(scope)
    ledger: Any = Ledger.objects.annotate(json=JSON).select_related("tenant").filter(scope=scope, unit=unit).first()
    if ledger is None or not caller.may_own(ledger.tenant.tenant_id):
        raise Refusal(404, "BUDGET_NOT_FOUND", facts={"scope": scope})
    return JsonResponse(shown(ledger))


@admin_only
def change(request: AdminRequest) -> HttpResponse:
    scope, unit = place(request)
    body = wire.read(wire.PatchBudget, request.body)
    _check_unit(body.overdraft_limit, unit)
    limit = body.overdraft_limit.amount if body.overdraft_limit else None
    return call(
        "patch_budget",
        {
            "scope": scope, "unit": unit, "overdraft_limit": limit, "policy": body.commit_overage_policy,
            "metadata": wire.dumped(body.metadata),
        },
        then=lambda ledger: _tell_changed(
            request, ledger, "budget.updated", "updateBudget", {"operation": "UPDATE"},
            {"overdraft_limit": limit, "commit_overage_policy": body.commit_overage_policy},
        ),
    )  # fmt: skip


def _tell_changed(
    request: AdminRequest, ledger: dict[str, Any], event_type: str, operation: str, told: dict[str, Any],
    noted: dict[str, Any],
) -> None:  # fmt: skip
    place_of = {"scope": ledger["scope"], "unit": ledger["unit"]}
    data = {"ledger_id": ledger["ledger_id"], **place_of, **told}
    emit(request, ledger["tenant_id"], event_type, data, scope=ledger["scope"])
    audit(
        request, ledger["tenant_id"], operation, 200, resource=("budget", ledger["ledger_id"]),
        metadata={**place_of, **noted},
    )  # fmt: skip


@admin_or("budgets:write")
def fund(request: AdminRequest, caller: Caller) -> HttpResponse:
    scope, unit = place(request)
    tenant_id = caller.tenant.tenant_id if caller.tenant else required(request, "tenant_id")
    if not tenant_id.strip():
        raise invalid("tenant_id: name the tenant whose budget is funded.")
    caller.may_reach(scope)
    body = wire.read(wire.Fund, request.body)
    _check_unit(body.amount, unit)
    _check_unit(body.spent, unit)
    return call(
        "fund",
        {
            "tenant": tenant_id, "scope": scope, "unit": unit, "operation": body.operation,
            "amount": body.amount.amount, "spent": body.spent.amount if body.spent else None, "reason": body.reason,
            "key": body.idempotency_key, "request": wire.digest(body),
        },
        then=lambda answer: _tell_funded(request, caller, (tenant_id, scope, unit), body, answer),
    )  # fmt: skip


def _tell_funded(
    request: AdminRequest, caller: Caller, ledger: tuple[str, str, str], body: wire.Fund, answer: dict[str, Any]
) -> None:
    tenant_id, scope, unit = ledger
    emit_funded(request, ledger, answer, body.reason, spent_given=body.spent is not None, key_id=caller.key_id)
    audit(
        request, tenant_id, "fundBudget", 200, key_id=caller.key_id, resource=("budget", f"{scope}:{unit}"),
        metadata={
            "scope": scope, "unit": unit, "funding_operation": body.operation, "amount": body.amount.amount,
            "reason": body.reason, "idempotency_key": body.idempotency_key,
            "previous_spent": answer["previous_spent"]["amount"], "new_spent": answer["new_spent"]["amount"],
        },
    )  # fmt: skip


def emit_funded(
    request: AdminRequest, ledger: tuple[str, str, str], answer: dict[str, Any], reason: str | None, *,
    spent_given: bool, key_id: str | None = None,
) -> None:  # fmt: skip
    """Told for a repeated call too: a listener learns that it was asked for again."""
    tenant_id, scope, unit = ledger
    operation = answer["operation"]
    data: dict[str, Any] = {"scope": scope, "unit": unit, "operation": operation}
    for state in ("previous", "new"):
        data[f"{state}_state"] = {name: answer[f"{state}_{name}"]["amount"] for name in FIGURES}
    if operation == "RESET_SPENT":
        data["spent_override_provided"] = spent_given
    if reason is not None:
        data["reason"] = reason
    emit(request, tenant_id, f"budget.{FUNDED[operation]}", data, scope=scope, actor=actor_of(key_id))


@admin_only
def freeze(request: AdminRequest) -> HttpResponse:
    return _set_status(request, Ledger.Status.FROZEN)


@admin_only
def unfreeze(request: AdminRequest) -> HttpResponse:
    return _set_status(request, Ledger.Status.ACTIVE)


def _set_status(request: AdminRequest, status: str) -> HttpResponse:
    scope, unit = place(request)
    reason = wire.read(wire.Freeze, request.body).reason if request.body else None
    verb = "freeze" if status == Ledger.Status.FROZEN else "unfreeze"
    told = {"operation": "STATUS_CHANGE", **({} if reason is None else {"reason": reason})}
    return call(
        "set_budget_status",
        {"scope": scope, "unit": unit, "status": status},
        then=lambda ledger: _tell_changed(
            request, ledger, "budget.frozen" if verb == "freeze" else "budget.unfrozen", f"{verb}Budget", told, {}
        ),
    )  # fmt: skip


@admin_only
def caps(request: AdminRequest) -> HttpResponse:
    """Beyond the protocol: the caps of a scope, which the runtime plane gives along when it is the leaf."""
    scope, unit = place(request)
    if request.method == "PUT":
        body = wire.read(wire.Caps, request.body)
        caps = body.model_dump(exclude_none=True)
        owner = scope.split("/")[0].partition(":")[2]
        return call(
            "set_caps",
            {"scope": scope, "unit": unit, "caps": json.dumps(caps)},
            then=lambda _: audit(
                request, owner, "setBudgetCaps", 200, resource=("budget", f"{scope}:{unit}"), metadata={"caps": caps}
            ),
        )  # fmt: skip
    ledger = Ledger.objects.filter(scope=scope, unit=unit).first()
    if ledger is None:
        raise Refusal(404, "BUDGET_NOT_FOUND", facts={"scope": scope})
    return JsonResponse({"scope": scope, "unit": unit, "caps": ledger.caps or {}})


def place(request: AdminRequest) -> tuple[str, str]:
    """The ledger that the query names. Here the whole scope may be in any case."""
    scope, unit = required(request, "scope").lower(), required(request, "unit")
    if unit not in wire.UNITS:
        raise invalid(f"unit: write one of {', '.join(wire.UNITS)}.")
    if "\x00" in scope:
        raise invalid("scope: must not contain U+0000.")
    return scope, unit


def _check_unit(amount: wire.Amount | None, unit: str) -> None:
    if amount is not None and amount.unit != unit:
        raise Refusal(400, "UNIT_MISMATCH", f"An amount is in {amount.unit}, the budget in {unit}. Use {unit}.")


@tenant_only("balances:read")
def balances(request: AdminRequest, caller: Caller) -> HttpResponse:
    """The tenant's own ledgers, as the admin plane shows them. A tenant in the query does not count."""
    rows: QuerySet[Any] = Ledger.objects.annotate(json=JSON).filter(
        tenant=caller.tenant, scope__startswith=request.GET.get("scope_prefix", "").lower()
    )
    if "unit" in request.GET:
        rows = rows.filter(unit=choice(request, "unit", wire.UNITS, ""))
    limit = wire.parse_limit(request.GET.get("limit"), default=50, largest=100)
    if cursor := request.GET.get("cursor"):
        last = rows.filter(ledger_id=cursor).first() if wire.UUID.fullmatch(cursor) else None
        if last is None:
            raise invalid("The cursor belongs to no row of this list. Start again without it.")
        rows = rows.filter(Q(scope__gt=last.scope) | Q(scope=last.scope, unit__gt=last.unit))
    found = list(rows.order_by("scope", "unit")[: limit + 1])
    page_rows, more = found[:limit], len(found) > limit
    follow = str(page_rows[-1].ledger_id) if more else None
    return JsonResponse({"balances": [shown(row) for row in page_rows], "has_more": more, "next_cursor": follow})
