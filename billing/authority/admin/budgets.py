"""Budgets: make, list, look up, fund, freeze, change, cap. Reads here; every change is a SQL operation."""

from __future__ import annotations

import json
from typing import Any

from django.db.models import Case, F, FloatField, Q, QuerySet, TextField, Value, When
from django.db.models.expressions import RawSQL
from django.db.models.functions import Cast, Coalesce
from django.http import HttpResponse, JsonResponse

from billing.authority import wire
from billing.authority.admin.auth import Caller, admin_only, admin_or
from billing.authority.admin.request import AdminRequest, call, choice, flag, page, required, search
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


@admin_or("budgets:write")
def create(request: AdminRequest, caller: Caller) -> HttpResponse:
    body = wire.read(wire.CreateBudget, request.body)
    tenant_id = _owner(caller, body)
    try:
        scope = parse_scope(body.scope, tenant_id)
    except ScopeError as error:
        raise invalid(f"{error}.") from None
    caller.may_reach(scope)
    for amount in (body.allocated, body.overdraft_limit):
        _check_unit(amount, body.unit)
    return call(
        "create_budget", tenant_id, scope, body.unit, body.allocated.amount,
        body.overdraft_limit.amount if body.overdraft_limit else None, body.commit_overage_policy,
        body.rollover_policy, body.period_start, body.period_end, wire.dumped(body.metadata),
    )  # fmt: skip


def _owner(caller: Caller, body: wire.CreateBudget) -> str:
    if caller.tenant is None:
        if body.tenant_id is None:
            raise invalid("tenant_id: required with the admin key.")
        return body.tenant_id
    if body.tenant_id is not None:
        raise invalid("tenant_id: leave it out, the API key says whose budget this is.")
    return caller.tenant.tenant_id


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
    rows = _filtered(request, rows).filter(scope__startswith=prefix)
    return page(request, rows, "ledgers", shown, sorts=SORTS, default="utilization", identity="ledger_id")


def _filtered(request: AdminRequest, rows: QuerySet[Any]) -> QuerySet[Any]:
    if "unit" in request.GET:
        rows = rows.filter(unit=choice(request, "unit", wire.UNITS, ""))
    if "status" in request.GET:
        rows = rows.filter(status=choice(request, "status", tuple(Ledger.Status.values), ""))
    if (over := flag(request, "over_limit")) is not None:
        rows = rows.filter(is_over_limit=over)
    if (owing := flag(request, "has_debt")) is not None:
        rows = rows.filter(debt__gt=0) if owing else rows.filter(debt=0)
    least, most = _share(request, "utilization_min"), _share(request, "utilization_max")
    if least is not None and most is not None and least > most:
        raise invalid("utilization_min is above utilization_max.")
    if least is not None:
        rows = rows.filter(utilization__gte=least)
    if most is not None:
        rows = rows.filter(utilization__lte=most)
    if text := search(request):
        rows = rows.filter(Q(scope__icontains=text) | Q(tenant__tenant_id__icontains=text))
    return rows


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
    return call("patch_budget", scope, unit, limit, body.commit_overage_policy, wire.dumped(body.metadata))


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
        "fund", tenant_id, scope, unit, body.operation, body.amount.amount,
        body.spent.amount if body.spent else None, body.reason, body.idempotency_key, wire.digest(body),
    )  # fmt: skip


@admin_only
def freeze(request: AdminRequest) -> HttpResponse:
    return _set_status(request, Ledger.Status.FROZEN)


@admin_only
def unfreeze(request: AdminRequest) -> HttpResponse:
    return _set_status(request, Ledger.Status.ACTIVE)


def _set_status(request: AdminRequest, status: str) -> HttpResponse:
    scope, unit = place(request)
    if request.body:
        wire.read(wire.Freeze, request.body)
    return call("set_budget_status", scope, unit, status)


@admin_only
def caps(request: AdminRequest) -> HttpResponse:
    """Beyond the protocol: the caps of a scope, which the runtime plane gives along when it is the leaf."""
    scope, unit = place(request)
    if request.method == "PUT":
        body = wire.read(wire.Caps, request.body)
        return call("set_caps", scope, unit, json.dumps(body.model_dump(exclude_none=True)))
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
