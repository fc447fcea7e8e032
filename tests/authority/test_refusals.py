"""What is refused, with which code; and that a refused request leaves nothing behind."""

from __future__ import annotations

import httpx
import pytest

from tests.support.authority import UNIT, RuntimeCaller

TRUNK = {
    "subject": {"app": "chat"},
    "action": {"kind": "llm.completion", "name": "m"},
    "estimate": {"unit": UNIT, "amount": 1},
    "idempotency_key": "k",
}


def refusal(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert {"error", "message", "request_id", "trace_id"} <= set(body)
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["trace_id"] == answer.headers["x-cycles-trace-id"]
    return answer.status_code, body["error"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": None}, "idempotency_key"),
        ({"idempotency_key": "x" * 257}, "idempotency_key"),
        ({"idempotency_key": "nul\x00"}, "idempotency_key"),
        ({"subject": {}}, "subject"),
        ({"subject": {"tenant": ""}}, "subject.tenant"),
        ({"subject": {"app": "a b"}}, "subject.app"),
        ({"subject": {"app": "a", "dimensions": {str(n): "v" for n in range(17)}}}, "subject.dimensions"),
        ({"action": {"kind": " ", "name": "m"}}, "action.kind"),
        ({"action": {"kind": "k", "name": "m", "tags": ["t"] * 11}}, "action.tags"),
        ({"estimate": {"unit": UNIT, "amount": -1}}, "estimate.amount"),
        ({"estimate": {"unit": UNIT, "amount": 1.5}}, "estimate.amount"),
        ({"estimate": {"unit": UNIT, "amount": True}}, "estimate.amount"),
        ({"estimate": {"unit": UNIT, "amount": "1"}}, "estimate.amount"),
        ({"estimate": {"unit": UNIT, "amount": 2**63}}, "estimate.amount"),
        ({"estimate": {"unit": "EUR", "amount": 1}}, "estimate.unit"),
        ({"estimate": {"unit": UNIT, "amount": 1, "surprise": 1}}, "estimate.surprise"),
        ({"surprise": 1}, "surprise"),
        ({"ttl_ms": 999}, "ttl_ms"),
        ({"ttl_ms": 86_400_001}, "ttl_ms"),
        ({"grace_period_ms": 60_001}, "grace_period_ms"),
        ({"overage_policy": "MAYBE"}, "overage_policy"),
        ({"dry_run": "yes"}, "dry_run"),
        ({"metadata": []}, "metadata"),
    ],
)
def test_a_bad_field_is_named_and_nothing_is_stored(acme, sql, change, field):
    answer = acme.app.http.post("/v1/reservations", json={**TRUNK, **change})
    assert refusal(answer) == (400, "INVALID_REQUEST")
    assert field in answer.json()["message"]
    assert acme.figures()["reserved"] == 0
    owned = "SELECT count(*) FROM {} x JOIN tenant t ON t.id = x.tenant_id WHERE t.tenant_id = %s"
    assert sql(owned.format("replay"), acme.tenant_id) == [(0,)]
    assert sql(owned.format("reservation"), acme.tenant_id) == [(0,)]


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{", b"{} trailing", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(acme, raw):
    answer = acme.app.http.post("/v1/reservations", content=raw, headers={"Content-Type": "application/json"})
    assert refusal(answer) == (400, "INVALID_REQUEST")


def test_a_body_above_the_limit_is_refused(acme):
    answer = acme.app.reserve(1, metadata={"x": "y" * 1_100_000})
    assert refusal(answer) == (400, "INVALID_REQUEST")


def test_a_header_key_that_differs_from_the_bodys_is_refused(acme):
    body = acme.app.request_body(1)
    answer = acme.app.post("/v1/reservations", body, **{"X-Idempotency-Key": "another"})
    assert refusal(answer) == (400, "INVALID_REQUEST")


def test_paths_methods_and_content_types_have_their_own_statuses(acme):
    http = acme.app.http
    assert refusal(http.get("/v1/nothing")) == (404, "NOT_FOUND")
    assert refusal(http.put("/v1/decide")) == (405, "INVALID_REQUEST")
    text = http.post("/v1/decide", content=b"{}", headers={"Content-Type": "text/plain"})
    assert refusal(text) == (415, "INVALID_REQUEST")
    assert refusal(http.get("/v1/balances")) == (400, "INVALID_REQUEST")
    assert refusal(http.get("/v1/reservations", params={"cursor": "garbage"})) == (400, "INVALID_REQUEST")


def test_a_key_acts_for_its_own_tenant_only(acme, globex):
    theirs = globex.app.hold(0, ttl_ms=1_000)
    intruder = RuntimeCaller(str(acme.app.http.base_url), globex.tenant_id, acme.app.key)
    assert refusal(intruder.reserve(1)) == (403, "FORBIDDEN")
    assert refusal(intruder.decide(1)) == (403, "FORBIDDEN")
    assert refusal(intruder.event(1)) == (403, "FORBIDDEN")
    assert refusal(intruder.commit(theirs, 0)) == (403, "FORBIDDEN")
    assert refusal(intruder.release(theirs)) == (403, "FORBIDDEN")
    assert refusal(intruder.extend(theirs, 1)) == (403, "FORBIDDEN")
    assert refusal(intruder.http.get(f"/v1/reservations/{theirs}")) == (403, "FORBIDDEN")
    query = {"tenant": globex.tenant_id}
    assert refusal(intruder.http.get("/v1/balances", params=query)) == (403, "FORBIDDEN")
    assert refusal(intruder.http.get("/v1/reservations", params=query)) == (403, "FORBIDDEN")


def test_a_subject_without_tenant_meets_no_budget(acme):
    answer = acme.app.http.post("/v1/reservations", json=TRUNK)
    assert refusal(answer) == (404, "NOT_FOUND")
    assert acme.app.http.post("/v1/decide", json=TRUNK).json()["reason_code"] == "BUDGET_NOT_FOUND"


def test_an_unknown_reservation_is_404(acme):
    for unknown in ("none", "00000000-0000-0000-0000-000000000000"):
        assert refusal(acme.app.commit(unknown, 1)) == (404, "NOT_FOUND")
        assert refusal(acme.app.http.get(f"/v1/reservations/{unknown}")) == (404, "NOT_FOUND")


def test_another_unit_is_a_mismatch_that_names_the_right_ones(acme):
    answer = acme.app.reserve(1, unit="TOKENS")
    assert refusal(answer) == (400, "UNIT_MISMATCH")
    assert answer.json()["details"] == {
        "scope": acme.scope, "requested_unit": "TOKENS", "expected_units": [UNIT],
    }  # fmt: skip
    assert refusal(acme.app.commit(acme.app.hold(1), 1, unit="TOKENS")) == (400, "UNIT_MISMATCH")


def test_more_than_is_left_is_refused_for_holds_and_rejecting_events(acme):
    assert refusal(acme.app.reserve(1_001)) == (409, "BUDGET_EXCEEDED")
    assert refusal(acme.app.event(1_001, overage_policy="REJECT")) == (409, "BUDGET_EXCEEDED")
    assert acme.app.reserve(1_000).status_code == 200


def test_a_settled_reservation_stays_settled(acme):
    hold = acme.app.hold(10)
    acme.app.commit(hold, 10)
    for answer in (acme.app.commit(hold, 10), acme.app.release(hold), acme.app.extend(hold, 1)):
        assert refusal(answer) == (409, "RESERVATION_FINALIZED")


def test_an_amount_past_64_bits_is_refused_and_stores_nothing(acme, probe):
    probe.fund(acme.tenant_id, "RESET", 2**63 - 1)
    query = {"tenant_id": acme.tenant_id, "scope": acme.scope, "unit": UNIT}
    body = {"operation": "CREDIT", "amount": {"unit": UNIT, "amount": 1}, "idempotency_key": "over"}
    answer = probe.admin.post("/v1/admin/budgets/fund", params=query, json=body)
    assert refusal(answer) == (400, "INVALID_REQUEST")
    assert acme.figures()["allocated"] == 2**63 - 1
    hold = acme.app.hold(2**63 - 1)
    assert acme.app.commit(hold, 2**63 - 1).status_code == 200
    assert acme.app.event(2**63 - 1).json()["charged"]["amount"] == 0


def test_debt_without_overdraft_blocks_new_holds(acme, sql):
    sql("UPDATE ledger SET debt = 5, spent = 5 WHERE scope = %s RETURNING 1", acme.scope)
    assert refusal(acme.app.reserve(1)) == (409, "DEBT_OUTSTANDING")
    assert acme.app.decide(1).json()["reason_code"] == "DEBT_OUTSTANDING"


def test_a_closed_budget_of_an_open_tenant_takes_nothing(acme, sql):
    sql("UPDATE ledger SET status = 'CLOSED' WHERE scope = %s RETURNING 1", acme.scope)
    assert refusal(acme.app.reserve(1)) == (409, "BUDGET_CLOSED")
    assert refusal(acme.app.event(1)) == (409, "BUDGET_CLOSED")
