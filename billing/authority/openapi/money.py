"""The admin plane's operations on tenants, keys, budgets and policies. Describes; the views decide."""

from __future__ import annotations

from billing.authority import wire
from billing.authority.admin import shapes
from billing.authority.openapi.words import (
    CURSOR,
    FLAG,
    SEARCH,
    UNIT,
    Opens,
    Operation,
    Parameter,
    choice,
    limit,
    paged,
    ref,
    text,
)

BAD = ("INVALID_REQUEST",)
UNPLEASED = ("INVALID_REQUEST", "UNIT_MISMATCH")
KEY_REFUSED = ("FORBIDDEN", "INSUFFICIENT_PERMISSIONS")
BULK = {400: (*BAD, "LIMIT_EXCEEDED"), 409: ("COUNT_MISMATCH", "IDEMPOTENCY_MISMATCH")}
_NO_TENANT = ("TENANT_NOT_FOUND", "NOT_FOUND")
_NO_BUDGET = ("BUDGET_NOT_FOUND",)
_FINAL = ("TENANT_CLOSED", "BUDGET_CLOSED")
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}

_tenant_id = text("tenant_id", "Only those of this tenant.")
_place = (
    text("scope", "The ledger's scope, in any case.", required=True),
    Parameter("unit", UNIT, "The ledger's unit.", required=True),
)
_statuses = choice("status", ("ACTIVE", "SUSPENDED", "CLOSED"), "Only those of this status.")
_ledgers = (
    text("tenant_id", "Only those of this tenant; a tenant's key sees its own anyway."),
    text("scope_prefix", "Only scopes that begin so."), Parameter("unit", UNIT, "Only those in this unit."),
    choice("status", ("ACTIVE", "FROZEN", "CLOSED"), "Only those of this status."),
    Parameter("over_limit", FLAG, "Only those that are over their limit, or are not."),
    Parameter("has_debt", FLAG, "Only those that owe, or do not."),
    Parameter("utilization_min", _SHARE, "Only those of which at least this share is spent."),
    Parameter("utilization_max", _SHARE, "Only those of which at most this share is spent."), SEARCH,
    *paged("utilization", "scope", "unit", "tenant_id", "status", "debt", "commit_overage_policy"),
)  # fmt: skip
_fund = (*_place, text("tenant_id", "Whose budget it is. Required with the admin key, without effect with another."))
_policies = (
    text("tenant_id", "Whose policies. Required with the admin key, without effect with another."),
    choice("status", ("ACTIVE", "DISABLED"), "Only those of this status."),
    text("scope_pattern", "Only those of just this pattern."),
    *paged("created_at", "name", "priority", "scope_pattern", "status"),
)

OPERATIONS: dict[str, Operation] = {
    "GET /v1/admin/tenants": Operation(
        "A page of tenants.", Opens.ADMIN, {200: ref("Tenants")}, {400: BAD},
        (_statuses, text("parent_tenant_id", "Only those below this one."), SEARCH,
         *paged("created_at", "tenant_id", "name", "status")),
    ),
    "POST /v1/admin/tenants": Operation(
        "Make a tenant; the same id and name again is 200.", Opens.ADMIN, {200: ref("Tenant"), 201: ref("Tenant")},
        {400: BAD, 409: ("DUPLICATE_RESOURCE",)}, body=wire.CreateTenant,
    ),
    "POST /v1/admin/tenants/bulk-action": Operation(
        "Suspend, reactivate or close many tenants, all in one transaction.", Opens.ADMIN, {200: ref("Bulk")}, BULK,
        body=shapes.BulkTenants,
    ),
    "GET /v1/admin/tenants/{tenant_id}": Operation(
        "One tenant.", Opens.ADMIN, {200: ref("Tenant")}, {400: BAD, 404: _NO_TENANT}
    ),
    "PATCH /v1/admin/tenants/{tenant_id}": Operation(
        "Change, suspend, reactivate or close a tenant. Closed is for good, and ends all that it owns.", Opens.ADMIN,
        {200: ref("Tenant")}, {400: BAD, 404: _NO_TENANT}, body=wire.PatchTenant,
    ),
    "GET /v1/admin/api-keys": Operation(
        "A page of keys, without their secrets.", Opens.ADMIN, {200: ref("Keys")}, {400: BAD},
        (_tenant_id, choice("status", ("ACTIVE", "REVOKED", "EXPIRED"), "Only those of this status."), SEARCH,
         *paged("created_at", "key_id", "name", "status", "tenant_id", "expires_at")),
    ),
    "POST /v1/admin/api-keys": Operation(
        "Make a key. Its secret is in this answer and nowhere else.", Opens.ADMIN, {201: ref("MadeKey")},
        {400: BAD, 404: ("TENANT_NOT_FOUND",), 409: ("TENANT_CLOSED",)}, body=wire.CreateKey,
    ),
    "DELETE /v1/admin/api-keys/{key_id}": Operation(
        "Revoke a key, for good.", Opens.ADMIN, {200: ref("Key")},
        {400: BAD, 404: ("NOT_FOUND",), 409: ("KEY_REVOKED", "TENANT_CLOSED")},
        (text("reason", "Kept with the key."),),
    ),
    "PATCH /v1/admin/api-keys/{key_id}": Operation(
        "Change a key's name, permissions or filter.", Opens.ADMIN, {200: ref("Key")},
        {400: BAD, 404: ("NOT_FOUND",), 409: ("INVALID_REQUEST", "TENANT_CLOSED")}, body=wire.PatchKey,
    ),
    "GET /v1/admin/budgets": Operation(
        "A page of ledgers.", Opens.EITHER, {200: ref("Ledgers")}, {400: BAD, 403: KEY_REFUSED}, _ledgers,
    ),
    "POST /v1/admin/budgets": Operation(
        "Make a budget. tenant_id is required with the admin key and refused with another.", Opens.EITHER,
        {201: ref("Ledger")},
        {400: UNPLEASED, 403: KEY_REFUSED, 404: ("TENANT_NOT_FOUND",), 409: ("DUPLICATE_RESOURCE", "TENANT_CLOSED")},
        body=wire.CreateBudget,
    ),
    "PATCH /v1/admin/budgets": Operation(
        "Change a budget's overdraft limit or policy.", Opens.ADMIN, {200: ref("Ledger")},
        {400: UNPLEASED, 404: _NO_BUDGET, 409: _FINAL}, _place, body=wire.PatchBudget,
    ),
    "GET /v1/admin/budgets/lookup": Operation(
        "One ledger; a tenant's key finds its own only.", Opens.EITHER, {200: ref("Ledger")},
        {400: BAD, 403: KEY_REFUSED, 404: _NO_BUDGET}, _place,
    ),
    "POST /v1/admin/budgets/fund": Operation(
        "Move a budget: credit, debit, reset, reset what was spent, repay debt.", Opens.EITHER, {200: ref("Funded")},
        {
            400: UNPLEASED, 403: KEY_REFUSED, 404: _NO_BUDGET,
            409: (*_FINAL, "BUDGET_FROZEN", "BUDGET_EXCEEDED", "IDEMPOTENCY_MISMATCH"),
        },
        _fund, body=wire.Fund,
    ),
    "POST /v1/admin/budgets/freeze": Operation(
        "Let a budget take no new reservation.", Opens.ADMIN, {200: ref("Ledger")},
        {400: BAD, 404: _NO_BUDGET, 409: (*_FINAL, "INVALID_REQUEST")}, _place, body=wire.Freeze, body_required=False,
    ),
    "POST /v1/admin/budgets/unfreeze": Operation(
        "Let it take reservations again.", Opens.ADMIN, {200: ref("Ledger")},
        {400: BAD, 404: _NO_BUDGET, 409: (*_FINAL, "INVALID_REQUEST")}, _place, body=wire.Freeze, body_required=False,
    ),
    "POST /v1/admin/budgets/bulk-action": Operation(
        "Fund many budgets of one tenant, all in one transaction.", Opens.ADMIN, {200: ref("Bulk")}, BULK,
        body=shapes.BulkBudgets,
    ),
    "GET /v1/balances": Operation(
        "The tenant's own ledgers, as this plane shows them.", Opens.TENANT, {200: ref("LedgerBalances")},
        {400: BAD, 403: KEY_REFUSED},
        (text("scope_prefix", "Only scopes that begin so."), Parameter("unit", UNIT, "Only those in this unit."),
         limit(100), CURSOR),
    ),
    "GET /v1/admin/policies": Operation(
        "A page of policies.", Opens.EITHER, {200: ref("Policies")}, {400: BAD, 403: KEY_REFUSED}, _policies,
    ),
    "POST /v1/admin/policies": Operation(
        "Write a policy down. Nothing applies it.", Opens.EITHER, {201: ref("Policy")},
        {400: BAD, 403: KEY_REFUSED, 404: ("TENANT_NOT_FOUND",), 409: ("TENANT_CLOSED",)}, body=shapes.CreatePolicy,
    ),
    "PATCH /v1/admin/policies/{policy_id}": Operation(
        "Change a policy; a tenant's key is refused.", Opens.EITHER, {200: ref("Policy")},
        {400: BAD, 403: KEY_REFUSED, 404: ("NOT_FOUND",), 409: ("TENANT_CLOSED",)}, body=shapes.PatchPolicy,
    ),
    "POST /v1/auth/validate": Operation(
        "Is this a good key, and whose?", Opens.ADMIN, {200: ref("Validity")}, {400: BAD}, body=shapes.KeySecret,
    ),
    "GET /v1/auth/introspect": Operation(
        "What the key of this very call may do.", Opens.EITHER, {200: ref("Introspection")}, {403: KEY_REFUSED},
    ),
    "GET /v1/x-embedded/budgets/caps": Operation(
        "The caps of a scope.", Opens.ADMIN, {200: ref("ScopeCaps")}, {400: BAD, 404: _NO_BUDGET}, _place,
        embedded=True,
    ),
    "PUT /v1/x-embedded/budgets/caps": Operation(
        "Set the caps that are given along when this scope is the leaf of a reservation; {} clears them.", Opens.ADMIN,
        {200: ref("ScopeCaps")}, {400: BAD, 404: _NO_BUDGET, 409: _FINAL}, _place, body=wire.Caps, embedded=True,
    ),
}  # fmt: skip

PATH = {
    "tenant_id": {"type": "string", "minLength": 1},
    "key_id": {"type": "string", "minLength": 1},
    "policy_id": {"type": "string", "minLength": 1},
}
