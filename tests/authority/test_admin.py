"""The operator's side: tenants, keys, budgets, funding, and what each does to running apps at once."""

from __future__ import annotations

import uuid

import pytest

from tests.support.authority import UNIT, RuntimeCaller


def denied(answer) -> tuple[int, str, str]:
    return answer.status_code, answer.json()["error"], answer.json()["message"]


def test_a_tenant_is_made_once(probe):
    tenant_id = f"acme-{uuid.uuid4().hex[:8]}"
    body = {"tenant_id": tenant_id, "name": "Acme", "metadata": {"plan": "pro"}}
    first = probe.admin.post("/v1/admin/tenants", json=body)
    again = probe.admin.post("/v1/admin/tenants", json={**body, "metadata": {"plan": "free"}})
    other = probe.admin.post("/v1/admin/tenants", json={**body, "name": "Other"})
    assert [first.status_code, again.status_code, other.status_code] == [201, 200, 409]
    assert again.json() == first.json()
    assert other.json()["error"] == "DUPLICATE_RESOURCE"


def test_a_suspended_tenant_gets_401_on_everything_until_it_is_active_again(acme, probe):
    hold = acme.app.hold(100)
    probe.change_tenant(acme.tenant_id, status="SUSPENDED")
    for answer in (acme.app.reserve(1), acme.app.commit(hold, 1), acme.app.http.get("/v1/balances?tenant=x")):
        assert denied(answer) == (401, "UNAUTHORIZED", "TENANT_SUSPENDED")
        assert "x-cycles-tenant" not in answer.headers
    probe.change_tenant(acme.tenant_id, status="ACTIVE")
    assert acme.app.commit(hold, 60).status_code == 200


def test_a_close_ends_keys_budgets_and_holds_in_one_step(acme, probe, sql):
    hold = acme.app.hold(100)
    assert probe.change_tenant(acme.tenant_id, status="CLOSED")["status"] == "CLOSED"
    assert denied(acme.app.reserve(1)) == (401, "UNAUTHORIZED", "KEY_REVOKED")
    ledger = probe.lookup(acme.scope)
    assert (ledger["status"], ledger["reserved"]["amount"], ledger["remaining"]["amount"]) == ("CLOSED", 0, 1_000)
    assert sql("SELECT status FROM reservation WHERE id = %s", hold) == [("RELEASED",)]
    for body in ({"operation": "CREDIT", "amount": {"unit": UNIT, "amount": 1}},):
        query = {"tenant_id": acme.tenant_id, "scope": acme.scope, "unit": UNIT}
        assert probe.admin.post("/v1/admin/budgets/fund", params=query, json=body).json()["error"] == "TENANT_CLOSED"
    key = probe.admin.post("/v1/admin/api-keys", json={"tenant_id": acme.tenant_id, "name": "late"})
    assert (key.status_code, key.json()["error"]) == (409, "TENANT_CLOSED")
    back = probe.admin.patch(f"/v1/admin/tenants/{acme.tenant_id}", json={"status": "ACTIVE"})
    assert back.status_code == 400
    assert probe.change_tenant(acme.tenant_id, status="CLOSED")["status"] == "CLOSED"


def test_a_revoked_key_is_dead_at_once_and_its_sister_lives(authority, acme, probe):
    sister = probe.create_key(acme.tenant_id, "sister")
    acme.app.hold(1)
    assert probe.revoke_key(acme.key_id)["status"] == "REVOKED"
    assert denied(acme.app.reserve(1)) == (401, "UNAUTHORIZED", "KEY_REVOKED")
    again = probe.admin.delete(f"/v1/admin/api-keys/{acme.key_id}")
    assert (again.status_code, again.json()["error"]) == (409, "KEY_REVOKED")
    other = RuntimeCaller(authority.runtime_url, acme.tenant_id, sister["key_secret"])
    assert other.reserve(1).status_code == 200


def test_a_wrong_key_says_whether_its_prefix_is_known(authority, acme, probe):
    def answer_to(secret: str):
        return denied(RuntimeCaller(authority.runtime_url, acme.tenant_id, secret).reserve(1))

    assert answer_to("") == (401, "UNAUTHORIZED", "Missing API key")
    assert answer_to("cyc_live_nobody") == (401, "UNAUTHORIZED", "KEY_NOT_FOUND")
    assert answer_to(acme.app.key[:-1] + "!") == (401, "UNAUTHORIZED", "INVALID_KEY")
    expired = probe.create_key(acme.tenant_id, expires_at="2001-01-01T00:00:00Z")
    assert answer_to(expired["key_secret"]) == (401, "UNAUTHORIZED", "KEY_EXPIRED")


def test_a_secret_is_shown_once_and_kept_only_as_a_digest(acme, probe, sql):
    key = probe.create_key(acme.tenant_id)
    secret = key["key_secret"]
    assert secret.startswith("cyc_live_")
    assert len(secret) == 41
    listed = probe.admin.get("/v1/admin/api-keys", params={"tenant_id": acme.tenant_id}).text
    assert secret not in listed
    stored = sql("SELECT k::text FROM api_key k WHERE key_id = %s", key["key_id"])[0][0]
    assert secret not in stored


def test_the_admin_plane_needs_the_admin_key(acme, probe):
    for key, message in ((None, "Missing X-Admin-API-Key header"), ("wrong", "Invalid admin API key")):
        headers = {} if key is None else {"X-Admin-API-Key": key}
        request = probe.admin.build_request("GET", "/v1/admin/tenants")
        del request.headers["X-Admin-API-Key"]
        request.headers.update(headers)
        assert denied(probe.admin.send(request)) == (401, "UNAUTHORIZED", message)


def test_a_tenants_key_reads_its_own_ledger_and_nobody_elses(acme, globex, probe):
    key = probe.create_key(acme.tenant_id, permissions=["budgets:read"])["key_secret"]

    def lookup(scope: str):
        request = probe.admin.build_request("GET", "/v1/admin/budgets/lookup", params={"scope": scope, "unit": UNIT})
        del request.headers["X-Admin-API-Key"]
        request.headers["X-Cycles-API-Key"] = key
        return probe.admin.send(request)

    assert lookup(acme.scope).status_code == 200
    assert lookup(globex.scope).json()["error"] == "BUDGET_NOT_FOUND"


@pytest.mark.parametrize(
    ("operation", "amount", "allocated", "spent"),
    [("CREDIT", 500, 1_500, 100), ("DEBIT", 500, 500, 100), ("RESET", 50, 50, 100), ("RESET_SPENT", 800, 800, 0),
     ("REPAY_DEBT", 30, 1_030, 100)],
)  # fmt: skip
def test_funding_keeps_what_is_held(acme, probe, operation, amount, allocated, spent):
    acme.app.commit(acme.app.hold(100), 100)
    acme.app.hold(200)
    answer = probe.fund(acme.tenant_id, operation, amount)
    assert answer["previous_allocated"]["amount"] == 1_000
    figures = acme.figures()
    assert (figures["allocated"], figures["spent"], figures["reserved"]) == (allocated, spent, 200)
    assert figures["remaining"] == allocated - spent - 200 == answer["new_remaining"]["amount"]


def test_a_debit_of_more_than_is_left_and_a_frozen_budget_refuse_funds(acme, probe):
    query = {"tenant_id": acme.tenant_id, "scope": acme.scope, "unit": UNIT}

    def fund(operation: str, amount: int) -> str:
        body = {"operation": operation, "amount": {"unit": UNIT, "amount": amount}}
        answer = probe.admin.post("/v1/admin/budgets/fund", params=query, json=body)
        assert answer.status_code == 409
        return str(answer.json()["error"])

    assert fund("DEBIT", 1_001) == "BUDGET_EXCEEDED"
    probe.freeze(acme.scope)
    assert fund("CREDIT", 1) == "BUDGET_FROZEN"
    assert acme.figures()["allocated"] == 1_000


def test_a_scope_belongs_to_its_tenant(acme, globex, probe):
    body = {
        "tenant_id": acme.tenant_id, "scope": f"{globex.scope}/app:x", "unit": UNIT,
        "allocated": {"unit": UNIT, "amount": 1},
    }  # fmt: skip
    assert probe.admin.post("/v1/admin/budgets", json=body).status_code == 400
    query = {"tenant_id": acme.tenant_id, "scope": globex.scope, "unit": UNIT}
    credit = {"operation": "CREDIT", "amount": {"unit": UNIT, "amount": 1}}
    answer = probe.admin.post("/v1/admin/budgets/fund", params=query, json=credit)
    assert (answer.status_code, answer.json()["error"]) == (403, "FORBIDDEN")


def test_unknown_caps_are_refused_when_written(acme, probe):
    query = {"scope": acme.scope, "unit": UNIT}
    answer = probe.admin.put("/v1/x-embedded/budgets/caps", params=query, json={"surprise": 1})
    assert answer.status_code == 400
    assert probe.admin.get("/v1/x-embedded/budgets/caps", params=query).json()["caps"] == {}


def test_an_operator_releases_a_suspended_tenants_hold_on_the_runtime_plane(authority, acme, probe):
    hold = acme.app.hold(100)
    probe.change_tenant(acme.tenant_id, status="SUSPENDED")
    headers = {"X-Admin-API-Key": authority.admin_key}
    answer = probe.runtime.post(
        f"/v1/reservations/{hold}/release", json={"idempotency_key": "op", "reason": "operator"}, headers=headers
    )
    assert answer.status_code == 200
    assert "x-cycles-tenant" not in answer.headers
    assert acme.figures()["reserved"] == 0


def test_what_is_not_built_answers_404_in_the_error_shape(probe):
    answer = probe.admin.get("/v1/admin/quotas")
    assert (answer.status_code, answer.json()["error"]) == (404, "NOT_FOUND")
    assert answer.json()["trace_id"] == answer.headers["x-cycles-trace-id"]
