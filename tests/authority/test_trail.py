"""Events and audit rows: written with what they tell of, and bulk actions that happen once."""

from __future__ import annotations

import threading
import uuid

from tests.support.authority import UNIT


def events_of(probe, account, **query):
    answer = probe.admin.get("/v1/admin/events", params={"tenant_id": account.tenant_id, "limit": "100", **query})
    return answer.json()["events"]


def test_most_calls_write_no_event(acme, sql):
    before = sql("SELECT count(*) FROM emitted_event WHERE tenant_id = %s", acme.tenant_id)
    acme.app.commit(acme.app.hold(100), 80)
    acme.app.release(acme.app.hold(100))
    acme.app.decide(10)
    acme.app.event(5)
    assert sql("SELECT count(*) FROM emitted_event WHERE tenant_id = %s", acme.tenant_id) == before


def test_each_drained_scope_is_told_once(acme, probe):
    chat = f"{acme.scope}/app:chat"
    probe.create_budget(acme.tenant_id, 50, chat)
    acme.app.hold(50, app="chat")
    told = events_of(probe, acme, event_type="budget.exhausted")
    assert [event["scope"] for event in told] == [chat]
    assert told[0]["actor"]["key_id"] == acme.key_id
    assert acme.app.reserve(0, app="chat").status_code == 200
    assert len(events_of(probe, acme, event_type="budget.exhausted")) == 1


def test_a_denial_keeps_odd_text(acme, probe):
    answer = acme.app.decide(1_001, action={"kind": "llm", "name": "m"}, metadata={"x": "\x00"})
    assert answer.json()["decision"] == "DENY"
    subject = {"tenant": acme.tenant_id, "dimensions": {"a\x00b": "c"}}
    body = {**acme.app.request_body(1_001), "subject": subject}
    assert acme.app.post("/v1/decide", body).json()["decision"] == "DENY"
    assert len(events_of(probe, acme, event_type="reservation.denied")) == 2


def test_a_refused_fund_is_audited_as_the_operators_failure(acme, probe):
    trace = uuid.uuid4().hex
    query = {"tenant_id": acme.tenant_id, "scope": acme.scope, "unit": UNIT}
    body = {"operation": "DEBIT", "amount": {"unit": UNIT, "amount": 5_000}}
    headers = {"X-Cycles-Trace-Id": trace}
    assert probe.admin.post("/v1/admin/budgets/fund", params=query, json=body, headers=headers).status_code == 409
    logs = probe.admin.get("/v1/admin/audit/logs", params={"trace_id": trace}).json()["logs"]
    assert [(log["tenant_id"], log["operation"], log["status"], log["error_code"]) for log in logs] == [
        ("__admin__", "POST:/v1/admin/budgets/fund", 409, "BUDGET_EXCEEDED")
    ]
    assert not [event for event in events_of(probe, acme) if event["event_type"] == "budget.debited"]


def test_a_call_without_a_key_is_audited_under_nobody(probe):
    trace = uuid.uuid4().hex
    request = probe.admin.build_request("GET", "/v1/admin/tenants", headers={"X-Cycles-Trace-Id": trace})
    del request.headers["X-Admin-API-Key"]
    assert probe.admin.send(request).status_code == 401
    logs = probe.admin.get("/v1/admin/audit/logs", params={"trace_id": trace}).json()["logs"]
    assert [(log["tenant_id"], log["error_code"]) for log in logs] == [("__unauth__", "UNAUTHORIZED")]


def test_a_bulk_credit_under_one_key_happens_once_however_many_ask(acme, globex, probe):
    probe.create_budget(acme.tenant_id, 10, f"{acme.scope}/app:chat")
    body = {
        "filter": {"tenant_id": acme.tenant_id}, "action": "CREDIT", "amount": {"unit": UNIT, "amount": 7},
        "idempotency_key": uuid.uuid4().hex,
    }  # fmt: skip
    answers: list[dict[str, object]] = []

    def ask() -> None:
        answers.append(probe.admin.post("/v1/admin/budgets/bulk-action", json=body).json())

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]["succeeded"]) == 2
    assert acme.figures()["allocated"] == 1_007
    assert acme.figures(f"{acme.scope}/app:chat")["allocated"] == 17


def test_a_bulk_close_ends_what_the_tenants_own(acme, probe):
    hold = acme.app.hold(100)
    body = {"filter": {"search": acme.tenant_id}, "action": "CLOSE", "idempotency_key": uuid.uuid4().hex}
    answer = probe.admin.post("/v1/admin/tenants/bulk-action", json=body).json()
    assert answer["succeeded"] == [{"id": acme.tenant_id}]
    assert acme.figures()["reserved"] == 0
    assert acme.app.commit(hold, 1).json()["message"] == "KEY_REVOKED"
    chain = {event["correlation_id"] for event in events_of(probe, acme, search="cascade")}
    assert len(chain) == 1
