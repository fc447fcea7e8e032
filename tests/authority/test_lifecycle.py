"""A reservation's life: held, then committed, released or expired, on every budgeted scope at once."""

from __future__ import annotations

import time

import pytest

from tests.support.authority import UNIT
from tests.support.receiver import eventually


def test_a_hold_and_its_commit_move_every_budgeted_scope(acme, probe):
    chat = f"{acme.scope}/app:chat"
    probe.create_budget(acme.tenant_id, 500, chat)
    answer = acme.app.reserve(100, app="Chat", workflow="c1").json()
    assert answer["decision"] == "ALLOW"
    assert answer["affected_scopes"] == [acme.scope, chat, f"{chat}/workflow:c1"]
    assert answer["remaining_ttl_ms"] == 60_000
    assert [b["scope_path"] for b in answer["balances"]] == [acme.scope, chat]
    assert acme.figures(chat)["reserved"] == acme.figures()["reserved"] == 100

    done = acme.app.commit(answer["reservation_id"], 70)
    assert done.status_code == 200
    assert done.json()["charged"] == {"unit": UNIT, "amount": 70}
    assert done.json()["released"] == {"unit": UNIT, "amount": 30}
    assert acme.figures(chat) | {"allocated": 0, "remaining": 0} == acme.figures() | {"allocated": 0, "remaining": 0}
    assert acme.figures()["spent"] == 70
    assert acme.figures(chat)["remaining"] == 430


def test_success_bodies_hold_no_null_and_no_unknown_key(acme):
    answer = acme.app.reserve(10)
    hold = answer.json()
    assert set(hold) == {
        "decision", "reservation_id", "affected_scopes", "expires_at_ms", "remaining_ttl_ms", "scope_path",
        "reserved", "balances",
    }  # fmt: skip
    assert set(hold["balances"][0]) == {"scope", "scope_path", "remaining", "reserved", "spent", "allocated"}
    extended = acme.app.extend(hold["reservation_id"], 1_000).json()
    assert set(extended) == {"status", "expires_at_ms", "remaining_ttl_ms", "balances"}
    assert extended["expires_at_ms"] == hold["expires_at_ms"] + 1_000
    assert "null" not in answer.text


def test_a_release_gives_everything_back(acme):
    answer = acme.app.release(acme.app.hold(100), reason="stream_failed")
    assert answer.json()["status"] == "RELEASED"
    assert answer.json()["released"] == {"unit": UNIT, "amount": 100}
    assert acme.figures()["remaining"] == 1_000


def test_an_event_is_booked_at_once_and_answers_201(acme):
    answer = acme.app.event(40)
    assert answer.status_code == 201
    assert set(answer.json()) == {"status", "event_id", "balances"}
    assert acme.figures()["spent"] == 40


def test_a_dry_run_and_a_decision_hold_nothing(acme):
    assert acme.app.reserve(100, dry_run=True).json()["decision"] == "ALLOW"
    assert acme.app.decide(100).json()["decision"] == "ALLOW"
    assert acme.app.reserve(1_001, dry_run=True).json()["reason_code"] == "BUDGET_EXCEEDED"
    assert acme.app.decide(1_001).json()["reason_code"] == "BUDGET_EXCEEDED"
    assert acme.figures()["remaining"] == 1_000


def test_a_commit_above_the_estimate_is_capped_at_what_is_left_and_flags_the_budget(acme, probe):
    acme.app.hold(880)
    answer = acme.app.commit(acme.app.hold(100), 130)
    assert answer.json()["charged"] == {"unit": UNIT, "amount": 120}
    assert answer.json()["balances"][0]["is_over_limit"] is True
    assert acme.app.reserve(0).json()["error"] == "OVERDRAFT_LIMIT_EXCEEDED"
    probe.fund(acme.tenant_id, "CREDIT", 500)
    assert acme.app.reserve(400).status_code == 200


def test_an_overdraft_is_debt_up_to_its_limit(open_account, probe):
    acme = open_account("acme", 100)
    probe.admin.patch(
        "/v1/admin/budgets",
        params={"scope": acme.scope, "unit": UNIT},
        json={"overdraft_limit": {"unit": UNIT, "amount": 50}},
    )
    hold = acme.app.hold(100, overage_policy="ALLOW_WITH_OVERDRAFT")
    refused = acme.app.commit(hold, 151)
    assert (refused.status_code, refused.json()["error"]) == (409, "OVERDRAFT_LIMIT_EXCEEDED")
    assert acme.app.commit(hold, 150).status_code == 200
    assert acme.figures() | {"allocated": 100} == {
        "allocated": 100, "remaining": -50, "reserved": 0, "spent": 100, "debt": 50, "overdraft_limit": 50,
    }  # fmt: skip


def test_a_freeze_stops_new_holds_but_not_running_calls(acme, probe):
    committed, released = acme.app.hold(100), acme.app.hold(100)
    probe.freeze(acme.scope)
    assert acme.app.reserve(1).json()["error"] == "BUDGET_FROZEN"
    assert acme.app.event(1).json()["error"] == "BUDGET_FROZEN"
    assert acme.app.extend(committed, 1_000).status_code == 200
    assert acme.app.commit(committed, 60).status_code == 200
    assert acme.app.release(released).status_code == 200
    probe.freeze(acme.scope, frozen=False)
    assert acme.app.reserve(1).status_code == 200


def test_caps_reach_the_leaf_scope_only(acme, probe):
    probe.set_caps(acme.scope, {"max_tokens": 512})
    assert acme.app.decide(1).json()["caps"] == {"max_tokens": 512}
    assert acme.app.reserve(1).json()["decision"] == "ALLOW_WITH_CAPS"
    assert acme.app.decide(1, app="chat").json()["decision"] == "ALLOW"
    assert probe.set_caps(acme.scope, {})["caps"] == {}
    assert acme.app.decide(1).json()["decision"] == "ALLOW"


def test_an_expired_hold_cannot_be_committed_and_is_given_back_by_the_sweep(acme):
    hold = acme.app.hold(100, ttl_ms=1_000, grace_period_ms=0)
    time.sleep(1.1)
    assert acme.app.commit(hold, 50).status_code == 410
    assert acme.app.extend(hold, 1_000).status_code == 410
    assert acme.app.release(hold).status_code == 410
    assert eventually(lambda: acme.figures()["reserved"] == 0)
    assert acme.figures()["remaining"] == 1_000
    assert acme.app.http.get(f"/v1/reservations/{hold}").json()["error"] == "RESERVATION_EXPIRED"
    rows = acme.app.http.get("/v1/reservations", params={"status": "EXPIRED"}).json()["reservations"]
    assert [row["reservation_id"] for row in rows] == [hold]
    assert acme.app.event(50).status_code == 201


def test_grace_lets_a_late_commit_through_but_no_extension(acme):
    hold = acme.app.hold(100, ttl_ms=1_000, grace_period_ms=30_000)
    time.sleep(1.1)
    assert acme.app.extend(hold, 1_000).status_code == 410
    assert acme.app.commit(hold, 50).status_code == 200


def test_a_tenants_settings_bound_its_reservations(open_account):
    acme = open_account(
        "acme",
        default_commit_overage_policy="REJECT",
        max_reservation_ttl_ms=50_000,
        max_reservation_extensions=1,
    )
    answer = acme.app.reserve(100, ttl_ms=600_000).json()
    assert answer["remaining_ttl_ms"] == 50_000
    hold = answer["reservation_id"]
    assert acme.app.extend(hold, 1).status_code == 200
    assert acme.app.extend(hold, 1).json()["error"] == "MAX_EXTENSIONS_EXCEEDED"
    assert acme.app.commit(hold, 101).json()["error"] == "BUDGET_EXCEEDED"
    assert acme.app.commit(hold, 100).status_code == 200


def test_pages_of_reservations_follow_each_other_without_gap_or_overlap(acme):
    made = []
    for _ in range(7):
        made.append(acme.app.hold(1))
        time.sleep(0.002)  # two of one millisecond have no order
    seen: list[str] = []
    query = {"sort_by": "created_at_ms", "sort_dir": "asc", "limit": "3"}
    while True:
        page = acme.app.http.get("/v1/reservations", params=query).json()
        seen += [row["reservation_id"] for row in page["reservations"]]
        if not page["has_more"]:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == made
    query["sort_dir"] = "desc"
    assert acme.app.http.get("/v1/reservations", params=query).status_code == 400


@pytest.mark.parametrize("name", ["metadata", "committed_metadata"])
def test_metadata_comes_back_as_it_was_sent(acme, name):
    odd = {"text": 'naïve 🙂\n"quoted"', "nul": None, "zero": "\x00", "list": [1, 1.5, {"a": True}]}
    hold = acme.app.hold(1, metadata=odd)
    acme.app.commit(hold, 1, metadata=odd)
    assert acme.app.http.get(f"/v1/reservations/{hold}").json()[name] == odd
