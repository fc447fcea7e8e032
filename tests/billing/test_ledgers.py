"""Ledgers: which one refuses and why, at the real authority; the neighbour is in the room."""

import asyncio

import httpx
import pytest

from billing import admin_client
from billing.admin_client import Refused
from billing.client import default_client
from billing.errors import AuthorityUnavailable, BudgetDenied, OnHold
from billing.ledgers import (
    Ledger,
    adenied,
    aledgers_of,
    all_ledgers,
    denied,
    ensure_ledger,
    figures_for,
    ledgers_of,
    limits_of,
    parse,
    refusal,
    room_in,
    unmeetable,
    worth_waiting_for,
)
from billing.models import Account
from billing.money import UNIT
from billing.preflight import decide
from billing.subjects import NoCallMeets, scopes_of, subject_for
from tests.support.authority import AuthorityProbe

ACTION = {"action_kind": "test", "action_name": "unit"}


@pytest.fixture
def probe(authority, app):
    probe = AuthorityProbe(authority)
    yield probe
    probe.close()


@pytest.fixture
def subject_in():
    def make(workspace, **levels):
        return subject_for(**{"tenant": workspace.account.subject_tenant, "user_id": 7, "app": "chat", **levels})

    return make


def reserve(subject, amount):
    """What the authority answers a call of this subject: the very body that the product sends."""
    return default_client().create_reservation(
        {
            "idempotency_key": f"k-{subject}-{amount}",
            "subject": subject,
            "action": {"kind": "test", "name": "unit"},
            "estimate": {"unit": UNIT, "amount": amount},
            "ttl_ms": 60_000,
        }
    )


def hold(workspace, subject, amount):
    figures_for(workspace.tenant)
    decide(workspace.tenant, user_id=7, app="chat", **ACTION, estimate=0)  # makes the key known
    answer = reserve(subject, amount)
    assert answer.status == 200, answer.body
    return answer.body["reservation_id"]


# --- which scope refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "levels", [{}, {"key_id": 5}, {"workflow": "conversation-3"}, {"workflow": "conversation-3", "key_id": 5}]
)
def test_the_scope_that_refuses_is_named_whatever_its_level(workspace, globex, subject_in, levels):
    subject = subject_in(workspace, **levels)
    for scope in scopes_of(subject)[1:]:
        admin_client.ensure_budget(workspace.account.subject_tenant, scope, allocated=1_000, overdraft_limit=0)
    leaf = scopes_of(subject)[-1]
    with pytest.raises(BudgetDenied) as refused:
        decide(workspace.tenant, user_id=7, app="chat", **levels, **ACTION, estimate=1_001)
    assert refused.value.budget == {
        "scope": scopes_of(subject)[1],
        "allocated": 1_000,
        "spent": 0,
        "reserved": 0,
        "remaining": 1_000,
        "unit": UNIT,
        "needed": 1_001,
        "affordable_max_tokens": None,
    }
    decide(workspace.tenant, user_id=7, app="chat", **levels, **ACTION, estimate=1_000)
    # The seat next door, another feature and the neighbour have limits of their own, or none.
    decide(workspace.tenant, user_id=8, app="chat", **ACTION, estimate=1_001)
    decide(globex.tenant, user_id=7, app="chat", **levels, **ACTION, estimate=1_001)
    assert leaf in [one.scope for one in all_ledgers(workspace.account.subject_tenant)]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_decide_and_reserve_meet_the_same_ledger_and_name_it(workspace, subject_in, level):
    subject = subject_in(workspace, key_id=5)
    scope = scopes_of(subject)[level]
    admin_client.ensure_budget(workspace.account.subject_tenant, scope, allocated=10, overdraft_limit=0)
    with pytest.raises(BudgetDenied) as refused:
        decide(workspace.tenant, user_id=7, key_id=5, app="chat", **ACTION, estimate=11)
    answer = reserve(subject, 11)
    assert (answer.status, answer.body["error"]) == (409, "BUDGET_EXCEEDED")
    error = denied("BUDGET_EXCEEDED", subject, needed=11, affordable=lambda amount: amount // 2)
    assert refused.value.budget["scope"] == error.budget["scope"] == scope
    assert error.budget["affordable_max_tokens"] == 5
    assert error.reason == "does_not_fit"


def test_a_key_cannot_spend_more_than_its_members_seat(workspace, subject_in):
    seat = scopes_of(subject_in(workspace))[1]
    admin_client.ensure_budget(workspace.account.subject_tenant, seat, allocated=10, overdraft_limit=0)
    for key_id in (None, 1, 2):
        with pytest.raises(BudgetDenied) as refused:
            decide(workspace.tenant, user_id=7, key_id=key_id, app="anything", **ACTION, estimate=11)
        assert refused.value.budget["scope"] == seat
        assert refused.value.message.endswith("ask an owner or an admin to raise it.")
        assert "your budget" in refused.value.message


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_frozen_ledger_is_on_hold_and_named_at_any_level(workspace, globex, probe, subject_in, level):
    subject = subject_in(workspace)
    scope = scopes_of(subject)[level]
    admin_client.ensure_budget(workspace.account.subject_tenant, scope, allocated=10, overdraft_limit=0)
    probe.freeze(scope)
    with pytest.raises(OnHold) as held:
        decide(workspace.tenant, user_id=7, app="chat", **ACTION, estimate=1)
    assert (held.value.status, held.value.code, held.value.extra) == (403, "account_on_hold", {"scope": scope})
    assert ("this workspace's account" in held.value.message.lower()) == (level == 0)
    if level:
        decide(workspace.tenant, user_id=8, app="chat", **ACTION, estimate=1)
    decide(globex.tenant, user_id=7, app="chat", **ACTION, estimate=1)


@pytest.mark.on_standin
def test_what_went_over_its_limit_says_so_and_not_that_others_hold_it(workspace, subject_in):
    workspace.leave(1_000)
    first, second = (hold(workspace, subject_in(workspace, workflow=f"w{n}"), 500 - n) for n in (1, 2))
    answer = default_client().commit_reservation(
        second, {"idempotency_key": "over", "actual": {"unit": UNIT, "amount": 900}}
    )
    assert answer.status == 200
    with pytest.raises(BudgetDenied) as refused:
        decide(workspace.tenant, user_id=7, app="chat", **ACTION, estimate=1)
    assert refused.value.reason == "over_limit"
    assert refused.value.budget["scope"] == workspace.account.scope
    assert first


@pytest.mark.on_standin
def test_money_held_by_others_is_worth_waiting_for_and_decide_leaves_it_to_the_reserve(workspace, subject_in):
    workspace.leave(1_000)
    subject = subject_in(workspace)
    hold(workspace, subject, 800)
    decide(workspace.tenant, user_id=7, app="chat", **ACTION, estimate=900)
    assert denied("BUDGET_EXCEEDED", subject, needed=900).reason == "held_by_others"
    found = ledgers_of(scopes_of(subject))
    assert worth_waiting_for(found, needed=900) == workspace.account.scope
    assert worth_waiting_for(found, needed=1_001) is None
    with pytest.raises(BudgetDenied) as refused:
        decide(workspace.tenant, user_id=7, app="chat", **ACTION, estimate=1_001)
    assert refused.value.reason == "does_not_fit"


@pytest.mark.caps
def test_caps_of_a_leaf_reach_every_message_of_a_conversation(workspace, probe, subject_in):
    leaf = scopes_of(subject_in(workspace))[-1]
    admin_client.ensure_budget(workspace.account.subject_tenant, leaf, allocated=1_000, overdraft_limit=0)
    probe.set_caps(leaf, {"max_tokens": 7})
    decide(workspace.tenant, user_id=7, app="chat", **ACTION, estimate=1)
    for message in (1, 2, 3):
        # No conversation with a limit of its own: each message has the same subject, so the same leaf.
        answer = reserve(subject_in(workspace), message)
        assert answer.body["caps"] == {"max_tokens": 7}, message


# --- the same, pure -------------------------------------------------------------------------------------------------


def ledger(remaining, reserved=0, *, scope="tenant:x", status="ACTIVE", over=False):
    return Ledger(scope, UNIT, status, 1_000, 1_000 - remaining - reserved, reserved, remaining, 0, over)


@pytest.mark.parametrize(
    ("root", "seat", "reason", "scope"),
    [
        (ledger(0), ledger(500), "exhausted", "tenant:x"),
        (ledger(500), ledger(0), "exhausted", "seat"),
        (ledger(99), ledger(0), "does_not_fit", "tenant:x"),
        (ledger(10, 90), ledger(500), "held_by_others", "tenant:x"),
        (ledger(10, 89), ledger(500), "does_not_fit", "tenant:x"),
        (ledger(500), ledger(10, 90), "held_by_others", "seat"),
        # Waiting for the tenant's money would not fill the seat: the one that waiting cannot change is named.
        (ledger(10, 90), ledger(0), "exhausted", "seat"),
        (ledger(10, 90), ledger(20, 100), "held_by_others", "tenant:x"),
        (ledger(500), ledger(500, over=True), "over_limit", "seat"),
        (ledger(-5, 0), ledger(500), "exhausted", "tenant:x"),
        # Given back between the refusal and the look-up.
        (ledger(500), ledger(200), "held_by_others", "seat"),
    ],
)
def test_the_first_scope_from_the_root_that_stays_short_is_named(root, seat, reason, scope):
    both = [root, Ledger("seat", *(getattr(seat, name) for name in Ledger.__slots__[1:]))]
    error = refusal("BUDGET_EXCEEDED", both, needed=100, affordable=lambda amount: amount)
    assert (error.reason, error.budget["scope"]) == (reason, scope)
    assert (worth_waiting_for(both, needed=100) is not None) == (reason == "held_by_others")
    assert error.budget["affordable_max_tokens"] == error.room == room_in(both)


@pytest.mark.parametrize("unknown", [None, []])
def test_unknown_figures_are_null_and_nothing_is_claimed_of_them(unknown):
    error = refusal("BUDGET_EXCEEDED", unknown, needed=100, affordable=lambda amount: amount)
    assert (error.reason, error.room) == ("does_not_fit", None)
    assert error.budget.pop("needed") == 100
    assert error.budget.pop("unit") == UNIT
    assert error.budget == dict.fromkeys(
        ("scope", "allocated", "spent", "reserved", "remaining", "affordable_max_tokens")
    )
    assert refusal("OVERDRAFT_LIMIT_EXCEEDED", unknown, needed=1).reason == "over_limit"
    assert refusal("BUDGET_FROZEN", unknown, needed=1).body()["scope"] is None
    assert worth_waiting_for(unknown, needed=1) is None


def test_without_a_known_need_nothing_is_promised():
    assert refusal("BUDGET_EXCEEDED", [ledger(0, 50)], needed=None).reason == "does_not_fit"
    assert refusal("BUDGET_EXCEEDED", [ledger(0)], needed=None).reason == "exhausted"


def test_a_tenant_on_hold_is_named_at_its_root():
    seat = ledger(5, scope="tenant:x/workspace:user-7")
    for code in ("TENANT_CLOSED", "TENANT_SUSPENDED"):
        assert refusal(code, [seat], needed=1).extra == {"scope": "tenant:x"}


@pytest.mark.parametrize("body", [None, [], "ledger", {}, {"scope": "tenant:x"}, {"ledgers": []}])
def test_what_is_no_ledger_is_not_read_as_one(body):
    assert parse(body) is None


def test_an_amount_that_is_no_whole_number_is_not_read():
    amount = {"unit": UNIT, "amount": 5}
    body = {"scope": "tenant:x", "unit": UNIT, "status": "ACTIVE", **dict.fromkeys(Ledger.__slots__[3:8], amount)}
    assert parse(body) == Ledger("tenant:x", UNIT, "ACTIVE", 5, 5, 5, 5, 5, False)
    for wrong in (5.0, "5", True, None):
        assert parse({**body, "spent": {"unit": UNIT, "amount": wrong}}) is None


# --- reading --------------------------------------------------------------------------------------------------------


def test_only_the_scopes_that_have_a_ledger_are_found_root_first(workspace, subject_in):
    subject = subject_in(workspace, key_id=5)
    scopes = scopes_of(subject)
    admin_client.ensure_budget(workspace.account.subject_tenant, scopes[2], allocated=5, overdraft_limit=0)
    assert [one.scope for one in ledgers_of(scopes)] == [scopes[0], scopes[2]]


def test_an_event_loop_reads_the_same(workspace, subject_in, settings):
    subject = subject_in(workspace)
    admin_client.ensure_budget(workspace.account.subject_tenant, scopes_of(subject)[2], allocated=5, overdraft_limit=0)
    headers = {"X-Admin-API-Key": settings.CYCLES_ADMIN_API_KEY}

    async def read():
        async with httpx.AsyncClient(base_url=settings.CYCLES_ADMIN_URL, headers=headers) as http:

            async def get(path, params):
                answer = await http.get(path, params=params)
                return answer.status_code, answer.json()

            found = await aledgers_of(scopes_of(subject), get=get)
            return found, await adenied("BUDGET_EXCEEDED", subject, needed=6, get=get)

    found, error = asyncio.run(read())
    assert found == ledgers_of(scopes_of(subject))
    assert error.body() == denied("BUDGET_EXCEEDED", subject, needed=6).body()


@pytest.mark.parametrize("answer", [(500, {}), (401, {"error": "UNAUTHORIZED"}), (404, {}), (200, {"odd": 1})])
def test_an_event_loop_that_reads_no_ledger_knows_nothing(answer):
    async def get(path, params):
        return answer

    with pytest.raises(AuthorityUnavailable):
        asyncio.run(aledgers_of(["tenant:x"], get=get))
    error = asyncio.run(adenied("BUDGET_EXCEEDED", {"tenant": "x"}, needed=1, get=get))
    assert error.budget["remaining"] is None


def test_figures_are_none_where_nobody_answers_and_a_refusal_keeps_its_null_figures(workspace, settings, subject_in):
    settings.CYCLES_ADMIN_URL = "http://127.0.0.1:9"
    assert figures_for(workspace.tenant) is None
    error = denied("BUDGET_EXCEEDED", subject_in(workspace), needed=5)
    assert (error.status, error.reason, error.budget["scope"]) == (402, "does_not_fit", None)


def test_figures_of_a_frozen_account_can_still_be_read(workspace):
    Account.objects.filter(pk=workspace.account.pk).update(status=Account.Status.FROZEN)
    assert figures_for(workspace.tenant).remaining == 100_000_000


def test_every_ledger_is_listed_past_a_page_and_none_of_the_neighbours(workspace, globex):
    mine = workspace.account.subject_tenant
    for user_id in range(101):
        scope = f"tenant:{mine}/workspace:user-{user_id}"
        admin_client.ensure_budget(mine, scope, allocated=user_id, overdraft_limit=0)
    found = [one.scope for one in all_ledgers(mine)]
    assert len(found) == len(set(found)) == 102
    assert found == sorted(found)
    assert all(f"{scope}/".startswith(f"tenant:{mine}/") for scope in found)
    assert [one.scope for one in limits_of(mine, user_id=1)] == [f"tenant:{mine}/workspace:user-1"]
    rows = workspace.api().get("/api/budget/").json()["balances"]
    assert [row["scope_path"] for row in rows] == found
    assert rows[-1]["scope"] == "workspace:user-99"


# --- making ---------------------------------------------------------------------------------------------------------


def test_a_conversations_limit_is_made_once_and_met_with_and_without_a_key(workspace, subject_in):
    subject = subject_in(workspace, workflow="conversation-3")
    made = ensure_ledger(workspace.account, subject, 500)
    assert (made.scope, made.allocated, made.remaining) == (scopes_of(subject)[-1], 500, 500)
    assert ensure_ledger(workspace.account, subject, 900) == made
    for key_id in (None, 5):
        with pytest.raises(BudgetDenied, match="this conversation's budget"):
            decide(
                workspace.tenant,
                user_id=7,
                key_id=key_id,
                app="chat",
                workflow="conversation-3",
                **ACTION,
                estimate=501,
            )
    decide(workspace.tenant, user_id=7, app="chat", workflow="conversation-4", **ACTION, estimate=501)


def test_a_ledger_that_no_call_can_meet_is_not_made(workspace):
    tenant = workspace.account.subject_tenant
    with pytest.raises(NoCallMeets, match=r"No call can meet a ledger at tenant:.*app:summarize"):
        admin_client.ensure_budget(tenant, f"tenant:{tenant}/app:summarize", allocated=5, overdraft_limit=0)
    with pytest.raises(NoCallMeets):
        ensure_ledger(workspace.account, {"tenant": tenant, "app": "summarize"}, 5)
    assert len(all_ledgers(tenant)) == 1


def test_a_ledger_that_somebody_else_made_in_vain_is_reported(workspace, probe):
    tenant = workspace.account.subject_tenant
    probe.create_budget(tenant, 5, scope=f"tenant:{tenant}/app:summarize")
    probe.create_budget(tenant, 5, scope=f"tenant:{tenant}", unit="TOKENS")
    found = unmeetable(all_ledgers(tenant))
    assert {(one.scope, one.unit) for one in found} == {
        (f"tenant:{tenant}/app:summarize", UNIT),
        (f"tenant:{tenant}", "TOKENS"),
    }


def test_a_hold_of_a_new_tenant_may_be_extended_a_hundred_times(workspace):
    tenant = admin_client.call("GET", f"/v1/admin/tenants/{workspace.account.subject_tenant}")
    assert tenant["max_reservation_extensions"] == 100


def test_another_refusal_of_the_look_up_is_not_taken_for_no_ledger(settings, app):
    settings.CYCLES_ADMIN_API_KEY = "wrong"
    with pytest.raises(Refused):
        ledgers_of(["tenant:x"])
