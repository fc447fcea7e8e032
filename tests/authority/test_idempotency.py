"""One key, one effect: repeats give the first answer, another request under the same key is refused."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

from tests.support.authority import UNIT


def test_a_repeated_reserve_is_the_first_answer_with_the_time_that_is_left(acme):
    key = uuid.uuid4().hex
    first = acme.app.reserve(100, idempotency_key=key).json()
    again = acme.app.reserve(100, idempotency_key=key, dry_run=False, grace_period_ms=5_000).json()
    assert again.pop("remaining_ttl_ms") <= first.pop("remaining_ttl_ms")
    assert again == first
    assert acme.figures()["reserved"] == 100
    acme.app.commit(first["reservation_id"], 10)
    assert acme.app.reserve(100, idempotency_key=key).json()["remaining_ttl_ms"] == 0


def test_another_request_under_a_used_key_is_a_mismatch(acme):
    key = uuid.uuid4().hex
    acme.app.reserve(100, idempotency_key=key)
    for change in ({"dry_run": True}, {"ttl_ms": 2_000}, {"app": "chat"}, {"metadata": {"a": 1}}):
        answer = acme.app.reserve(100, idempotency_key=key, **change)
        assert (answer.status_code, answer.json()["error"]) == (409, "IDEMPOTENCY_MISMATCH")


def test_keys_of_operations_and_tenants_are_apart(acme, globex):
    key = uuid.uuid4().hex
    assert acme.app.decide(1, idempotency_key=key).status_code == 200
    assert acme.app.event(1, idempotency_key=key).status_code == 201
    hold = acme.app.hold(2, idempotency_key=key)
    assert acme.app.extend(hold, 1, idempotency_key=key).status_code == 200
    assert acme.app.commit(hold, 1, idempotency_key=key).status_code == 200
    assert globex.app.decide(5, idempotency_key=key).json()["decision"] == "ALLOW"


def test_commit_release_and_extend_repeat_their_answers(acme):
    one, two = acme.app.hold(100), acme.app.hold(100)
    extended = acme.app.extend(one, 1_000, idempotency_key="e").json()
    committed = acme.app.commit(one, 40, idempotency_key="c").json()
    released = acme.app.release(two, idempotency_key="r").json()
    assert acme.app.commit(one, 40, idempotency_key="c").json() == committed
    assert acme.app.release(two, idempotency_key="r").json() == released
    later = acme.app.extend(one, 1_000, idempotency_key="e").json()
    assert later == extended | {"remaining_ttl_ms": 0}
    assert acme.app.commit(one, 41, idempotency_key="c").json()["error"] == "IDEMPOTENCY_MISMATCH"
    assert acme.figures()["spent"] == 40


def test_a_refused_key_can_be_used_again(acme, probe):
    key = uuid.uuid4().hex
    assert acme.app.reserve(1_500, idempotency_key=key).status_code == 409
    probe.fund(acme.tenant_id, "CREDIT", 1_000)
    assert acme.app.reserve(1_500, idempotency_key=key).status_code == 200


def test_a_decision_is_kept_even_when_it_was_no(acme, probe):
    key = uuid.uuid4().hex
    assert acme.app.decide(1_500, idempotency_key=key).json()["decision"] == "DENY"
    probe.fund(acme.tenant_id, "CREDIT", 1_000)
    assert acme.app.decide(1_500, idempotency_key=key).json()["decision"] == "DENY"


def test_twenty_creates_with_one_key_make_one_hold_and_one_body(acme):
    key = uuid.uuid4().hex
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: acme.app.reserve(100, idempotency_key=key), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    bodies = [answer.json() | {"remaining_ttl_ms": 0} for answer in answers]
    assert all(body == bodies[0] for body in bodies)
    assert acme.figures()["reserved"] == 100


def test_one_key_at_once_on_disjoint_budgets_does_one_of_them(acme, probe):
    """No ledger is locked by both, so only the unique constraint stands between them."""
    probe.create_budget(acme.tenant_id, 10, f"{acme.scope}/app:a", "TOKENS")
    probe.create_budget(acme.tenant_id, 10, f"{acme.scope}/app:b", "TOKENS")
    for _ in range(8):
        key = uuid.uuid4().hex
        with ThreadPoolExecutor(2) as pool:
            answers = pool.map(
                lambda app, key=key: acme.app.reserve(1, app=app, unit="TOKENS", idempotency_key=key).status_code,
                ["a", "b"],
            )
            assert sorted(answers) == [200, 409]


def test_a_fund_is_applied_once_per_key(acme, probe):
    first = probe.fund(acme.tenant_id, "CREDIT", 500, idempotency_key="pay_1")
    assert probe.fund(acme.tenant_id, "CREDIT", 500, idempotency_key="pay_1") == first
    assert acme.figures()["allocated"] == 1_500
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: probe.fund(acme.tenant_id, "CREDIT", 1, idempotency_key="pay_2"), range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert acme.figures()["allocated"] == 1_501


def test_a_fund_key_used_for_another_ledger_applies_there_too(acme, open_account, probe):
    initech = open_account("initech")
    for account in (acme, initech):
        probe.fund(account.tenant_id, "CREDIT", 500, idempotency_key="pay_1")
        assert account.figures()["allocated"] == 1_500
    query = {"tenant_id": acme.tenant_id, "scope": acme.scope, "unit": UNIT}
    body = {"operation": "CREDIT", "amount": {"unit": UNIT, "amount": 501}, "idempotency_key": "pay_1"}
    answer = probe.admin.post("/v1/admin/budgets/fund", params=query, json=body)
    assert (answer.status_code, answer.json()["error"]) == (409, "IDEMPOTENCY_MISMATCH")
