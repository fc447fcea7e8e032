"""Limits of members and keys: who may set them, that they bind at every door, and that no lost answer loosens them."""

import threading

import pytest
from django.test import RequestFactory
from django.utils import timezone

from billing import admin_client, periods, seats
from billing.client import default_client
from billing.errors import BudgetDenied, OutsideItsLimit
from billing.guard import guarded
from billing.ledgers import ledgers_of, limits_of
from billing.money import UNIT
from billing.subjects import seat_of, subject_for
from billing.templatetags.money import usd_short_filter
from chat import calls
from chat.models import Conversation
from tenants.audit.models import AuditEvent
from tenants.users.models import ApiKey
from tests.support.cast import events_of
from tests.support.factories import UserFactory
from tests.support.lossy import LossyProxy
from tests.support.money import eventually, is_settled, side_by_side
from tests.support.periods import Killed, Steps, age, killed
from tests.support.threads import at_once

pytestmark = pytest.mark.usefixtures("upstream", "patient")

CENT = 1_000_000
ROOM = "0.10"  # more than a call of these tests holds, less than the workspace has
SENTENCE = "Your budget in this workspace is used up. An owner or an admin can raise it."


@pytest.fixture
def owner(workspace):
    return workspace.client(workspace.owner)


@pytest.fixture
def member(workspace):
    return workspace.member("mia@acme.example")


def set_limit(browser, whose, amount):
    kind = "keys" if isinstance(whose, ApiKey) else "members"
    return browser.post(f"/settings/{kind}/{whose.pk}/limit/", {"amount": amount})


def remove_limit(browser, whose):
    kind = "keys" if isinstance(whose, ApiKey) else "members"
    return browser.post(f"/settings/{kind}/{whose.pk}/limit/remove/")


def seat(workspace, user):
    return f"{workspace.account.scope}/workspace:{seat_of(user.pk)}"


def at(scope):
    (ledger,) = ledgers_of([scope])
    return ledger


def key_of(workspace, user):
    secret = workspace.key(user)
    with workspace.scope():
        return secret, ApiKey.objects.latest("pk")


def use_up(workspace, user, *, app="chat", key=None):
    """As if a call had cost all that the seat, or the key in this feature, has left."""
    subject = subject_for(
        tenant=workspace.account.subject_tenant, user_id=user.pk, app=app, key_id=key.spender if key else None
    )
    scope = seats.key_scope(workspace.account, key, app) if key else seat(workspace, user)
    left = at(scope).remaining
    workspace.api().get("/api/budget/")  # makes the authority's key known
    answer = default_client().create_event(
        {
            "idempotency_key": f"use-up-{scope}-{left}-{at(scope).spent}",
            "subject": subject,
            "action": {"kind": "test", "name": "spend"},
            "actual": {"unit": "USD_MICROCENTS", "amount": left},
        }
    )
    assert answer.status == 201, answer.body
    return scope


def told(workspace, event="budgets."):
    with workspace.scope():
        return [
            (row.event, row.target, row.details["limit"])
            for row in AuditEvent.objects.filter(event__startswith=event).order_by("pk")
        ]


# --- seats ----------------------------------------------------------------------------------------------------------


def test_a_members_limit_refuses_at_every_door_and_raising_it_lets_them_go_on(
    workspace, globex, owner, member, upstream
):
    other = workspace.member("noah@acme.example")
    assert set_limit(owner, member, ROOM).status_code == 302
    api, others = workspace.api(workspace.key(member)), workspace.api(workspace.key(other))
    assert api.chat().status_code == 200
    scope = use_up(workspace, member)
    asked = len(upstream.calls)

    @guarded(100, user_id=member.pk)
    def work():
        pytest.fail("called past the limit")

    refused = [api.chat(), api.chat(stream=True), api.summarize()]
    for answer in refused:
        body = answer.json()
        assert (answer.status_code, body["reason"], body["budget"]["scope"]) == (402, "exhausted", scope)
        assert body["message"].startswith(SENTENCE)
        assert body["raised_by"] == ["owner", "admin"]
    with workspace.scope():
        for buy in (work, lambda: calls.complete([{"role": "user", "content": "hi"}], user_id=member.pk)):
            with pytest.raises(BudgetDenied) as denied:
                buy()
            assert denied.value.budget["scope"] == scope
    page = workspace.client(member).post("/", {"prompt": "hello"})
    assert page.status_code == 402
    assert SENTENCE in page.content.decode()
    assert len(upstream.calls) == asked

    # Nobody else is touched: another member, and a neighbour's member of the same number.
    assert others.chat().status_code == 200
    assert limits_of(globex.account.subject_tenant, user_id=member.pk) == []

    assert set_limit(owner, member, "0.20").status_code == 302
    assert api.chat().status_code == 200
    assert events_of(api.chat(stream=True))[-1][0] == "done"


def test_the_workspaces_own_budget_is_the_operators_to_raise(workspace):
    workspace.leave(0)
    body = workspace.api().chat().json()
    assert body["message"].startswith("This workspace's budget is used up. It goes on with a top-up")
    assert body["raised_by"] == ["operator"]


def test_twenty_calls_at_once_never_spend_past_a_seats_limit(workspace, owner, member, upstream):
    set_limit(owner, member, "0.01")
    api = workspace.api(workspace.key(member))
    answers = side_by_side(api, 20, max_tokens=64)
    assert {answer.status_code for answer in answers} <= {200, 402}
    assert eventually(lambda: is_settled(workspace))
    ledger = at(seat(workspace, member))
    assert 0 < ledger.spent <= CENT == ledger.allocated
    assert ledger.spent == sum(line.cost for line in workspace.lines())


def test_what_was_spent_before_there_was_a_limit_counts(workspace, owner, member):
    api = workspace.api(workspace.key(member))
    assert api.chat().status_code == 200
    (line,) = workspace.settled(lines=1)
    set_limit(owner, member, ROOM)
    ledger = at(seat(workspace, member))
    assert (ledger.spent, ledger.allocated) == (line.cost, 10 * CENT)


def test_a_first_limit_of_nothing_that_is_taken_away_forgets_nothing_either(workspace, owner, member):
    workspace.api(workspace.key(member)).chat()
    (line,) = workspace.settled(lines=1)
    set_limit(owner, member, "0")
    assert at(seat(workspace, member)).spent == line.cost
    remove_limit(owner, member)
    set_limit(owner, member, ROOM)
    assert at(seat(workspace, member)).spent == line.cost


def test_a_first_limit_below_what_is_spent_refuses_until_it_is_raised(workspace, owner, member):
    api = workspace.api(workspace.key(member))
    api.chat()
    (line,) = workspace.settled(lines=1)
    assert set_limit(owner, member, "0.0000001").status_code == 302
    ledger = at(seat(workspace, member))
    assert (ledger.spent, ledger.allocated, ledger.remaining) == (line.cost, 10, 10 - line.cost)
    assert api.chat().json()["reason"] == "exhausted"
    set_limit(owner, member, ROOM)
    assert at(seat(workspace, member)).spent == line.cost
    assert api.chat().status_code == 200


def test_a_limit_below_what_is_spent_refuses_all_and_what_is_spent_stays(workspace, owner, member):
    set_limit(owner, member, ROOM)
    api = workspace.api(workspace.key(member))
    api.chat()
    (line,) = workspace.settled(lines=1)
    assert set_limit(owner, member, "0.0000001").status_code == 302
    ledger = at(seat(workspace, member))
    assert (ledger.spent, ledger.allocated, ledger.remaining) == (line.cost, 10, 10 - line.cost)
    assert api.chat().json()["reason"] == "exhausted"


def test_a_limit_that_is_taken_away_binds_no_more_is_on_no_page_and_can_be_set_again(workspace, owner, member):
    set_limit(owner, member, ROOM)
    scope = use_up(workspace, member)
    assert remove_limit(owner, member).status_code == 302
    api = workspace.api(workspace.key(member))
    assert api.chat().status_code == 200
    assert limits_of(workspace.account.subject_tenant, user_id=member.pk) == []
    assert scope not in api.get("/api/budget/").content.decode()
    spent = at(scope).spent
    # A new period leaves it so.
    age(workspace, days=32)
    periods.roll_over(workspace.account, now=timezone.now())
    assert (at(scope).spent, at(scope).is_limit) == (0, False)
    assert spent > 10 * CENT
    set_limit(owner, member, "2")
    assert (at(scope).allocated, at(scope).is_limit) == (200 * CENT, True)
    assert told(workspace) == [
        ("budgets.limit_set", member.email, "0.10"),
        ("budgets.limit_removed", member.email, None),
        ("budgets.limit_set", member.email, "2.00"),
    ]


def test_a_limit_sent_twice_or_repeated_after_a_lost_answer_is_set_once_and_loses_nothing(
    workspace, owner, member, authority, settings
):
    api = workspace.api(workspace.key(member))
    api.chat()
    (first,) = workspace.settled(lines=1)
    with LossyProxy(authority.admin_url) as proxy:
        before, settings.CYCLES_ADMIN_URL = settings.CYCLES_ADMIN_URL, proxy.url
        proxy.lose["/budgets"] = 1
        answer = set_limit(owner, member, ROOM)
        settings.CYCLES_ADMIN_URL = before
        assert proxy.lose["/budgets"] == 0
    assert answer.status_code == 503
    assert "not known whether" in answer.content.decode()
    assert 'value="0.10"' in answer.content.decode()  # what was typed
    # Half-way it refuses, and does not let pass.
    assert at(seat(workspace, member)).allocated == 0
    for _ in range(2):
        assert set_limit(owner, member, ROOM).status_code == 302
    ledger = at(seat(workspace, member))
    assert (ledger.allocated, ledger.spent) == (10 * CENT, first.cost)
    assert told(workspace) == [("budgets.limit_set", member.email, "0.10")]


def test_the_second_of_two_first_limits_does_not_write_over_what_was_spent_between_them(workspace, owner, member):
    api = workspace.api(workspace.key(member))
    api.chat()
    (first,) = workspace.settled(lines=1)
    set_limit(owner, member, ROOM)
    api.chat()
    workspace.settled(lines=2)
    spent = at(seat(workspace, member)).spent
    # What the other of the two does once it comes through.
    seats._begin_with(workspace.account, seat(workspace, member), 10 * CENT, first.cost)
    seats._begin_with(workspace.account, seat(workspace, member), 200 * CENT, first.cost)
    assert at(seat(workspace, member)).spent == spent > first.cost


def test_a_limit_is_not_called_set_while_a_period_is_being_opened(workspace, owner, member, monkeypatch):
    set_limit(owner, member, "2")
    monkeypatch.setattr(periods, "is_turning", lambda account: True)
    answer = set_limit(owner, member, ROOM)
    assert answer.status_code == 409
    assert "new period is being opened" in answer.content.decode()
    assert told(workspace) == [("budgets.limit_set", member.email, "2.00")]


def test_a_limit_is_not_called_set_where_a_period_began_and_was_over_with_meanwhile(
    workspace, owner, member, monkeypatch
):
    """The roll-over had read the limit of before, and set it once more before it was looked at again."""
    set_limit(owner, member, "2")
    age(workspace, days=32)
    renewing, fund = threading.Event(), seats._fund

    def late(*given, **how):
        """Between what the roll-over has read and what it writes."""
        monkeypatch.setattr(seats, "_fund", fund)
        steps = Steps(monkeypatch)
        steps.begin({8: lambda: (fund(*given, **how), renewing.set())})
        assert periods.roll_over(workspace.account, now=timezone.now()).problem is None

    monkeypatch.setattr(seats, "_fund", late)
    answer = set_limit(owner, member, ROOM)
    assert renewing.is_set()
    assert at(seat(workspace, member)).allocated == 200 * CENT
    assert answer.status_code == 409
    assert set_limit(owner, member, ROOM).status_code == 302
    assert at(seat(workspace, member)).allocated == 10 * CENT


def test_of_two_who_change_one_limit_at_once_one_is_heard_and_the_other_is_told(workspace, owner, member, monkeypatch):
    _, key = key_of(workspace, member)
    other, answers = workspace.client(workspace.member("ada@acme.example", role="admin")), []
    allocate = seats._allocate

    def amid(*given):
        monkeypatch.setattr(seats, "_allocate", allocate)
        answers.extend(at_once(lambda: set_limit(other, key, "0.20"), lambda: remove_limit(other, key)))
        allocate(*given)

    monkeypatch.setattr(seats, "_allocate", amid)
    assert set_limit(owner, key, ROOM).status_code == 302
    for answer in answers:
        assert answer.status_code == 409
        assert "Somebody else is changing this limit" in answer.content.decode()
    assert {part.ledger.allocated for part in limit_of(workspace, key).parts} == {10 * CENT}
    assert [limit for _, _, limit in told(workspace)] == ["0.10"]


# --- who may --------------------------------------------------------------------------------------------------------


def test_only_who_may_sets_limits_and_an_admin_sets_none_on_an_owner(workspace, globex, member):
    admin = workspace.member("ada@acme.example", role="admin")
    _, key = key_of(workspace, workspace.owner)
    with globex.scope():
        foreign = UserFactory(pk=member.pk + 1_000).pk
    for person, whose, status in [
        (member, member, 403),
        (workspace.member("vera@acme.example", role="viewer"), member, 403),
        (admin, workspace.owner, 403),
        (admin, key, 403),
        (admin, member, 302),
    ]:
        browser = workspace.client(person)
        assert set_limit(browser, whose, ROOM).status_code == status
        assert remove_limit(browser, whose).status_code == status
    browser = workspace.client(admin)
    assert browser.post(f"/settings/members/{foreign}/limit/", {"amount": "1"}).status_code == 404
    assert ledgers_of([seat(workspace, workspace.owner)]) == []


def test_what_is_no_amount_is_said_at_the_field_and_kept(workspace, owner, member):
    for typed in ("", "1,50", "-1", "1e3", "NaN", "0.000000001", "1000000", "two", "١"):
        answer = set_limit(owner, member, typed)
        shown = answer.content.decode()
        assert answer.status_code == 400, typed
        assert f'value="{typed}"' in shown or not typed
        assert "autofocus" in shown
    assert ledgers_of([seat(workspace, member)]) == []


# --- keys -----------------------------------------------------------------------------------------------------------


def test_a_keys_limit_is_for_each_feature_and_no_call_of_it_escapes(workspace, owner, member, upstream):
    secret, key = key_of(workspace, member)
    assert set_limit(owner, key, ROOM).status_code == 302
    with workspace.scope():
        key = ApiKey.objects.get(pk=key.pk)
    assert key.has_limit
    assert key.limited_apps == ["api", "chat", "summarize", "app"]
    api = workspace.api(secret)
    assert api.chat().status_code == api.summarize().status_code == 200
    scope = use_up(workspace, member, key=key)
    body = api.chat().json()
    assert (body["budget"]["scope"], body["raised_by"]) == (scope, ["owner", "admin"])
    assert body["message"].startswith("This API key's budget is used up. An owner or an admin can raise it.")
    assert api.summarize().status_code == 200
    use_up(workspace, member, app="summarize", key=key)
    assert api.summarize().status_code == 402
    # The member, and their other key, go on.
    assert workspace.api(workspace.key(member)).chat().status_code == 200

    # A builder's feature that the limit does not know is refused, and so is a conversation with a limit of its own.
    asked = len(upstream.calls)

    @guarded(100, app="translate", user_id=member.pk, key_id=key.pk)
    def translate():
        pytest.fail("called past the limit")

    with workspace.scope():
        for buy in (
            translate,
            lambda: calls.complete(
                [{"role": "user", "content": "x"}], app="translate", user_id=member.pk, key_id=key.pk
            ),
        ):
            with pytest.raises(OutsideItsLimit):
                buy()
        conversation = Conversation.objects.create(owner=member, title="t", has_limit=True)
    refused = api.chat(conversation_id=conversation.pk)
    assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")
    assert "so has this conversation" in refused.json()["message"]
    assert len(upstream.calls) == asked

    # Once the feature was used by somebody, the limit can be set for it as well.
    with workspace.scope():
        calls.complete([{"role": "user", "content": "x"}], app="translate", user_id=member.pk)
    workspace.settled()
    set_limit(owner, key, ROOM)
    assert at(seats.key_scope(workspace.account, key, "translate")).allocated == 10 * CENT
    remove_limit(owner, key)
    with workspace.scope():
        assert not ApiKey.objects.get(pk=key.pk).has_limit
    assert api.chat().status_code == 200


def test_a_rotated_key_and_the_one_before_share_one_limit(workspace, owner, member):
    old_secret, old = key_of(workspace, member)
    set_limit(owner, old, ROOM)
    new_secret, new = key_of(workspace, member)
    third_secret, third = key_of(workspace, member)
    with workspace.scope():
        old.refresh_from_db()
        seats.key_rotated(old, new)
        seats.key_rotated(new, third)
    for secret in (old_secret, new_secret, third_secret):
        assert workspace.api(secret).chat().status_code == 200
    lines = workspace.settled(lines=3)
    assert {line.key_id for line in lines} == {old.pk}
    scope = use_up(workspace, member, key=third)
    for secret in (old_secret, new_secret, third_secret):
        assert workspace.api(secret).chat().json()["budget"]["scope"] == scope

    # A guarded function that is given the new key's own number is counted in the same place.
    @guarded(100, app="chat", user_id=member.pk, key_id=third.pk)
    def work():
        pytest.fail("called past the limit")

    with workspace.scope(), pytest.raises(BudgetDenied):
        work()
    set_limit(owner, third, "2")
    assert workspace.api(old_secret).chat().status_code == 200
    with workspace.scope():
        assert [key.has_limit for key in ApiKey.objects.filter(user=member)] == [True] * 3


def test_a_keys_limit_that_was_half_set_refuses_and_its_row_asks_to_set_it_again(workspace, owner, member, monkeypatch):
    secret, key = key_of(workspace, member)
    with monkeypatch.context() as patch:
        patch.setattr(seats, "_mark", lambda *given: killed())
        with pytest.raises(Killed):
            set_limit(owner, key, ROOM)
    use_up(workspace, member, key=key)
    assert workspace.api(secret).chat().status_code == 402
    shown = beside(workspace, workspace.owner, [key])[key.pk]
    assert "Changing this limit was interrupted" in shown
    assert set_limit(owner, key, ROOM).status_code == 302
    with workspace.scope():
        key.refresh_from_db()
    assert "interrupted" not in beside(workspace, workspace.owner, [key])[key.pk]


def test_a_limit_of_before_v1_says_what_to_do_and_set_again_is_for_it_too(workspace, owner, member, upstream):
    secret, key = key_of(workspace, member)
    assert set_limit(owner, key, ROOM).status_code == 302
    with workspace.scope():
        ApiKey.objects.filter(pk=key.pk).update(limited_apps=["chat", "summarize", "app"])
    api, ask = workspace.api(secret), {"model": "test-model", "messages": [{"role": "user", "content": "hello"}]}
    refused = api.post("/v1/chat/completions", ask)
    assert (refused.status_code, "set the same limit again" in refused.json()["error"]["message"]) == (403, True)
    assert upstream.calls == []
    assert api.chat().status_code == 200
    spent = ledgers_of([seats.key_scope(workspace.account, key, "chat")])[0].spent
    assert set_limit(owner, key, ROOM).status_code == 302
    assert api.post("/v1/chat/completions", ask).status_code == 200
    assert workspace.settled(lines=2)
    chat, v1 = (ledgers_of([seats.key_scope(workspace.account, key, app)])[0] for app in ("chat", "api"))
    assert (chat.spent, v1.spent) == (spent, spent)
    assert spent > 0


def test_a_keys_limit_that_was_half_removed_says_so_and_can_be_removed(workspace, owner, member, monkeypatch):
    _, key = key_of(workspace, member)
    set_limit(owner, key, ROOM)
    with monkeypatch.context() as patch:
        patch.setattr(seats, "_mark", lambda *given: killed())
        with pytest.raises(Killed):
            remove_limit(owner, key)
    with workspace.scope():
        key.refresh_from_db()
    shown = beside(workspace, workspace.owner, [key])[key.pk]
    assert "was interrupted" in shown
    assert "no limit" not in shown
    assert "Change the limit" in shown
    assert "Remove the limit" in owner.get(f"/settings/keys/{key.pk}/limit/").content.decode()
    remove_limit(owner, key)
    with workspace.scope():
        key.refresh_from_db()
    assert key.limited_apps is None
    assert "no limit" in beside(workspace, workspace.owner, [key])[key.pk]


def test_a_key_that_has_expired_has_no_limit_to_set(workspace, owner, member):
    _, key = key_of(workspace, member)
    with workspace.scope():
        ApiKey.objects.filter(pk=key.pk).update(expires_at=timezone.now())
    assert set_limit(owner, key, ROOM).status_code == 404


def test_a_limit_that_is_frozen_is_said_to_be_on_hold(workspace, owner, member):
    set_limit(owner, member, ROOM)
    params = {"scope": seat(workspace, member), "unit": UNIT}
    admin_client.call("POST", "/v1/admin/budgets/freeze", params=params, body={})
    answer = set_limit(owner, member, "0.20")
    assert answer.status_code == 409
    assert "This limit is on hold" in answer.content.decode()
    assert ", on hold" in beside(workspace, workspace.owner, [member])[member.pk]
    assert workspace.api(workspace.key(member)).chat().json()["error"] == "account_on_hold"


# --- pages ----------------------------------------------------------------------------------------------------------


def as_asked(workspace, person):
    request = RequestFactory().get("/settings/members/", headers={"host": workspace.host})
    request.tenant, request.user = workspace.tenant, person
    return request


def limit_of(workspace, key):
    request = as_asked(workspace, workspace.owner)
    with workspace.scope():
        return seats.read_keys(request, [key])[0]


def beside(workspace, person, rows):
    """What the pages' hooks are given, and give."""
    request = as_asked(workspace, person)
    with workspace.scope():
        hook = seats.beside_keys if isinstance(rows[0], ApiKey) else seats.beside_members
        return {pk: " ".join(html.split()) for pk, html in hook(request, rows).items()}


def test_the_rows_say_what_was_spent_and_the_limit_and_offer_it_to_who_may(workspace, owner, member, monkeypatch):
    other = workspace.member("noah@acme.example")
    secret, key = key_of(workspace, member)
    workspace.api(secret).chat()
    (line,) = workspace.settled(lines=1)
    set_limit(owner, member, "2")
    looks = []
    call = admin_client.call
    monkeypatch.setattr(admin_client, "call", lambda *given, **how: looks.append(given) or call(*given, **how))
    shown = beside(workspace, workspace.owner, [workspace.owner, member, other])
    assert len(looks) == 1
    assert f"{usd_short_filter(line.cost)} of $2.00 spent this period" in shown[member.pk]
    assert "Change the limit" in shown[member.pk]
    assert "$0.00 spent this period, no limit" in shown[other.pk]
    keys = beside(workspace, workspace.owner, [key])
    assert "spent this period, no limit" in keys[key.pk]
    set_limit(owner, key, ROOM)
    with workspace.scope():
        key.refresh_from_db()
    keys = beside(workspace, workspace.owner, [key])
    assert all(f"{name}: $" in keys[key.pk] for name in ("Chat", "Summaries"))
    for html in (*beside(workspace, member, [member, other]).values(), *beside(workspace, member, [key]).values()):
        assert "<form" not in html
    # The member reads their own on the budget page.
    assert "Your own limits" in workspace.client(member).get("/budget/").content.decode()


def test_without_the_authority_the_rows_say_that_limits_cannot_be_shown(workspace, owner, member, settings):
    set_limit(owner, member, "2")
    before, settings.CYCLES_ADMIN_URL = settings.CYCLES_ADMIN_URL, "http://127.0.0.1:9"
    try:
        shown = beside(workspace, workspace.owner, [member])[member.pk]
        answer = set_limit(owner, member, ROOM)
        page = owner.get(f"/settings/members/{member.pk}/limit/")
    finally:
        settings.CYCLES_ADMIN_URL = before
    assert "$0.00 spent this period" in shown
    assert "cannot be shown" in shown
    assert answer.status_code == 503
    assert "not known whether" in answer.content.decode()
    assert page.status_code == 200
    assert at(seat(workspace, member)).allocated == 200 * CENT
