"""An allowance that waits for the owner's confirmed e-mail: 402 before, granted once, and the books right after."""

import json
import threading
import uuid
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import Client
from django.utils import timezone

from billing import allowance, periods, provisioning, signing_up, trials
from billing.errors import TrialsExhausted
from billing.models import Account
from billing.plans import PLANS
from billing.topups import top_up
from tenants.audit.models import AuditEvent
from tenants.models import Tenant
from tenants.threads import TenantExecutor
from tenants.users import addresses
from tenants.users.links import make_link
from tenants.users.models import Link
from tests.support.cast import PASSWORD, Workspace
from tests.support.mails import mails_of
from tests.support.money import fund_path
from tests.support.periods import Killed, Steps, age, killed, periods_of

pytestmark = pytest.mark.usefixtures("app")

ALLOWANCE = PLANS["trial"].allowance


def signed_up(*, provisioned=True, **fields):
    """A workspace whose owner has confirmed nothing yet."""
    slug = f"al-{uuid.uuid4().hex[:10]}"
    given = {"name": "Al", "slug": slug, "email": f"a@{slug}.example", "plan": "trial", **fields}
    with transaction.atomic(durable=True):
        account = provisioning.register(**given, owner_password="!", waits=True)
    if provisioned:
        provisioning.provision(account)
    return Workspace(account)


@pytest.fixture
def waiting(app):
    return signed_up()


def link_of(workspace):
    return mails_of(workspace)[-1].path


def confirm(workspace, client=None):
    return (client or workspace.client()).post(link_of(workspace))


def allocated(workspace):
    return workspace.ledger()["allocated"]


def account_of(workspace):
    workspace.account.refresh_from_db()
    return workspace.account


# --- end to end -----------------------------------------------------------------------------------------------------


@pytest.fixture
def by_api(sign_ups, settings):
    """Signed up by the API where the e-mail has to be confirmed: (the answer, the workspace)."""
    settings.SIGNUP_CONFIRM_EMAIL = True
    slug = f"al-{uuid.uuid4().hex[:10]}"
    body = {"name": "Al", "slug": slug, "email": f"a@{slug}.example", "password": PASSWORD}
    bare = Client(headers={"host": "localhost"})
    answer = bare.post("/api/signup/", json.dumps(body), content_type="application/json")
    return answer, Workspace(Account.objects.select_related("tenant").get(tenant__slug=slug))


def test_nothing_can_be_bought_before_the_owner_has_confirmed_and_all_of_it_after(by_api, upstream):
    answer, workspace = by_api
    assert (answer.status_code, answer.json()["confirm_email"]) == (201, True)
    api = workspace.api(answer.json()["api_key"])
    for refused in (api.chat(), api.summarize()):
        body = refused.json()
        assert (refused.status_code, body["error"], body["reason"]) == (402, "budget_exceeded", "exhausted")
        assert body["confirm_email"] is True
        assert "confirmed their e-mail" in body["message"]
        # The page says whose figures it shows: "Left in …".
        assert body["budget_name"] == "this workspace's budget"
    assert not upstream.calls
    (mail,) = mails_of(workspace)
    assert mail.to == workspace.account.owner_email
    assert workspace.client().get(mail.path).status_code == 200
    assert allocated(workspace) == 0  # to look is not to confirm
    assert confirm(workspace).status_code == 302
    assert allocated(workspace) == ALLOWANCE
    assert api.chat().status_code == 200


def test_where_nothing_has_to_be_confirmed_a_sign_up_says_and_mails_nothing(sign_ups):
    slug = f"al-{uuid.uuid4().hex[:10]}"
    body = {"name": "Al", "slug": slug, "email": f"a@{slug}.example", "password": PASSWORD}
    bare = Client(headers={"host": "localhost"})
    answer = bare.post("/api/signup/", json.dumps(body), content_type="application/json")
    assert "confirm_email" not in answer.json()
    workspace = Workspace(Account.objects.select_related("tenant").get(tenant__slug=slug))
    assert (allocated(workspace), mails_of(workspace)) == (ALLOWANCE, [])


def test_a_sign_up_says_so_while_it_is_built_and_after(monkeypatch):
    monkeypatch.setattr(signing_up, "READY_SECONDS", 0.01)
    workspace = signed_up(provisioned=False)
    bare = Client(headers={"host": "localhost"})
    status = f"/api/signup/{provisioning.status_token(workspace.account)}/"
    assert bare.get(status).json() == {"status": "pending", "confirm_email": True}
    session = bare.session
    session["signup_account"] = workspace.account.pk
    session.save()
    bare.cookies["sessionid"] = session.session_key
    assert "once you have followed its link" in bare.get("/signup/wait/").content.decode()
    provisioning.provision(workspace.account)
    assert bare.get(status).json()["confirm_email"] is True


def test_a_workspace_is_opened_with_its_mail_or_not_at_all(monkeypatch):
    workspace = signed_up(provisioned=False)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(provisioning, "ask_to_confirm", lambda user: killed())
        provisioning.provision(workspace.account)
    workspace.account.refresh_from_db()
    assert (workspace.account.status, mails_of(workspace)) == ("pending", [])
    provisioning.provision(workspace.account)
    assert (len(mails_of(workspace)), allocated(workspace)) == (1, 0)


def test_an_operator_can_grant_it(waiting, capsys):
    for said in ("granted", "it has its allowance"):
        call_command("grant_allowance", waiting.slug)
        assert said in capsys.readouterr().out
        assert allocated(waiting) == ALLOWANCE
    with pytest.raises(CommandError, match="no workspace"):
        call_command("grant_allowance", "nobody-s")


def test_pages_say_what_is_missing_to_the_owner_and_to_everybody_else(waiting):
    owner, other = waiting.client(waiting.owner), waiting.client(waiting.member("m@al.example"))
    for path in ("/", "/budget/", "/settings/account/"):
        page = owner.get(path).content.decode()
        assert "begins once you have confirmed" in page, path
        assert "Send the link again" in page
    assert "once its owner has confirmed" in other.get("/budget/").content.decode()
    confirm(waiting, owner)
    for path in ("/", "/budget/", "/settings/account/"):
        assert "confirmed your e-mail address. Follow" not in owner.get(path).content.decode()
    assert "$1.00" in owner.get("/budget/").content.decode()


def test_a_link_that_is_sent_again_ends_the_one_before_and_is_limited(waiting):
    owner, first = waiting.client(waiting.owner), link_of(waiting)
    assert owner.post("/settings/account/confirm/").status_code == 302
    assert owner.post(first).status_code == 404
    assert [owner.post("/settings/account/confirm/").status_code for _ in range(3)] == [302, 302, 429]
    assert confirm(waiting).status_code == 302
    assert allocated(waiting) == ALLOWANCE


def test_a_link_confirms_once_and_at_its_own_workspace_alone(waiting, acme):
    path = link_of(waiting)
    neighbour = signed_up()
    for door in (acme, neighbour):
        assert door.client().get(path).status_code == door.client().post(path).status_code == 404
    assert allocated(neighbour) == allocated(waiting) == 0
    assert waiting.client().post(path).status_code == 302
    assert waiting.client().post(path).status_code == 404


def test_a_members_confirmed_address_releases_nothing_until_they_are_an_owner(waiting):
    member = waiting.member("m@al.example")
    with waiting.scope(), transaction.atomic(durable=True):
        assert addresses.confirm(member, member.email)
    assert account_of(waiting).allowance_granted_at is None
    owner = waiting.client(waiting.owner)
    assert owner.post("/settings/members/hand-over/", {"member": member.pk}).status_code == 302
    assert allocated(waiting) == ALLOWANCE


@pytest.mark.parametrize("purpose", [Link.Purpose.LOG_IN, Link.Purpose.RESET])
def test_a_link_of_another_kind_confirms_as_well(waiting, purpose):
    with waiting.scope(), transaction.atomic(durable=True):
        secret = make_link(waiting.owner, purpose, email=waiting.account.owner_email)
    door = {"log_in": "/login/link/", "reset": "/password/"}[purpose]
    assert waiting.client().post(f"{door}{secret}/", {"new_password": PASSWORD}).status_code == 302
    assert allocated(waiting) == ALLOWANCE


def test_who_is_invited_as_an_owner_releases_it(waiting):
    waiting.client(waiting.owner).post("/settings/invitations/", {"emails": "new@al.example", "role": "owner"})
    path = mails_of(waiting, "new@al.example")[-1].path
    assert waiting.client().post(path, {"password": "a new long passphrase"}).status_code == 302
    assert allocated(waiting) == ALLOWANCE


def test_a_confirmation_that_is_rolled_back_grants_nothing(waiting):
    owner = waiting.owner
    with waiting.scope(), pytest.raises(ZeroDivisionError), transaction.atomic(durable=True):
        addresses.confirm(owner, owner.email)
        raise ZeroDivisionError
    assert (waiting.owner.email_confirmed_at, allocated(waiting)) == (None, 0)
    assert account_of(waiting).allowance_granted_at is None


def test_many_confirmations_at_once_grant_once(waiting):
    owner, start = waiting.owner, threading.Barrier(4)

    def act():
        start.wait(10)
        with waiting.scope(), transaction.atomic(durable=True):
            addresses.confirm(owner, owner.email)

    with TenantExecutor(4) as pool:
        for each in [pool.submit(act) for _ in range(4)]:
            each.result()
    assert allocated(waiting) == ALLOWANCE
    with waiting.scope():
        assert AuditEvent.objects.filter(event="budgets.allowance_granted").count() == 1
        assert AuditEvent.objects.filter(event="sign_in.email_confirmed").count() == 1


def test_who_signed_up_by_the_operators_hand_waits_for_nothing(workspace):
    assert account_of(workspace).allowance_granted_at is not None
    assert allocated(workspace) == ALLOWANCE


# --- killed, lost, repeated -----------------------------------------------------------------------------------------


def test_an_answer_that_was_lost_is_not_paid_twice(waiting, lossy_admin):
    lossy_admin.lose[fund_path(waiting)] = 1
    assert confirm(waiting).status_code == 302
    assert account_of(waiting).allowance_owed == ALLOWANCE
    assert "is being credited" in waiting.client(waiting.owner).get("/budget/").content.decode()
    assert waiting.account in list(periods.due(timezone.now()))
    assert periods.roll_over(waiting.account, now=timezone.now()).problem is None
    assert (allocated(waiting), account_of(waiting).allowance_owed) == (ALLOWANCE, 0)
    assert waiting.account not in list(periods.due(timezone.now()))


def test_an_authority_that_is_away_keeps_nobody_from_confirming(waiting, lossy_admin):
    lossy_admin.refuse[fund_path(waiting)] = 1
    assert confirm(waiting).status_code == 302
    assert allocated(waiting) == 0
    assert periods.roll_over(waiting.account, now=timezone.now()).problem is None
    assert allocated(waiting) == ALLOWANCE


@pytest.mark.parametrize("place", range(4))
def test_a_kill_at_any_step_of_the_payment_is_made_good(waiting, monkeypatch, place):
    steps = Steps(monkeypatch)
    steps.begin({place: killed})
    with pytest.raises(Killed):
        confirm(waiting)
    steps.begin({})
    assert waiting.owner.email_confirmed_at is not None
    for _ in range(2):
        assert periods.roll_over(waiting.account, now=timezone.now()).problem is None
    assert allocated(waiting) == ALLOWANCE


# --- periods --------------------------------------------------------------------------------------------------------


def figures(workspace):
    """(allocated, allowances and top-ups that are the period's): what must be the same."""
    last = periods_of(workspace)[-1]
    return workspace.ledger()["allocated"], last.allowance + last.carried


def test_a_roll_over_before_the_confirmation_gives_nothing_and_keeps_top_ups(waiting):
    top_up(waiting.account, amount=7_000_000, key="t")
    age(waiting, days=32)
    assert periods.roll_over(waiting.account, now=timezone.now()).problem is None
    assert figures(waiting) == (7_000_000, 7_000_000)
    confirm(waiting)
    assert figures(waiting) == (ALLOWANCE + 7_000_000,) * 2
    age(waiting, days=32)
    periods.roll_over(account_of(waiting), now=timezone.now())
    assert figures(waiting) == (ALLOWANCE + 7_000_000,) * 2


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("place", range(6))
def test_a_confirmation_amid_a_roll_over_is_worth_the_allowance_once(waiting, monkeypatch, place, is_killed):
    """At each step of the roll-over: before or after the authority is asked, or its answer is written down.

    `is_killed`: whoever confirms is, before the allowance is paid.
    """
    topped_up = 7_000_000
    top_up(waiting.account, amount=topped_up, key="t")
    if is_killed:
        monkeypatch.setattr(allowance, "pay_after_commit", lambda account: None)
    age(waiting, days=32)
    steps = Steps(monkeypatch)
    steps.begin({place: lambda: confirm(waiting)})
    periods.roll_over(waiting.account, now=timezone.now())
    assert not steps.acts, "there are fewer steps than this test thinks"
    steps.begin({})
    for _ in range(2):
        assert periods.roll_over(account_of(waiting), now=timezone.now()).problem is None
    assert len(periods_of(waiting)) == 2
    assert (waiting.ledger()["allocated"], account_of(waiting).allowance_owed) == (ALLOWANCE + topped_up, 0)
    age(waiting, days=32)
    assert periods.roll_over(waiting.account, now=timezone.now()).problem is None
    assert figures(waiting) == (ALLOWANCE + topped_up,) * 2


# --- the pool of trials ---------------------------------------------------------------------------------------------


def promised(settings):
    """How many microcents are promised, by the largest pool that one more does not fit into."""
    low, high = 0, 10**15
    while high - low > 1:
        settings.TRIAL_POOL = (low + high) // 2
        try:
            with transaction.atomic():
                trials.check_room("trial")
            high = settings.TRIAL_POOL
        except TrialsExhausted:
            low = settings.TRIAL_POOL
    return low


def test_who_confirms_nothing_for_a_week_holds_no_money_and_is_counted_anew(waiting, settings):
    before = promised(settings)
    Account.objects.filter(pk=waiting.account.pk).update(created_at=timezone.now() - timedelta(days=8))
    assert before - promised(settings) == ALLOWANCE
    settings.TRIAL_POOL = 0
    confirm(waiting)
    assert account_of(waiting).allowance_granted_at is None
    owner = waiting.client(waiting.owner)
    assert "no room for a further trial" in owner.get("/budget/").content.decode()
    settings.TRIAL_POOL = 10**15
    owner.post("/settings/account/confirm/")
    assert allocated(waiting) == ALLOWANCE


def test_what_its_owner_deletes_is_counted_for_a_period_where_it_had_its_allowance(waiting, settings):
    before = promised(settings)
    Account.objects.filter(pk=waiting.account.pk).update(status="closed")
    Tenant.objects.filter(pk=waiting.tenant.pk).update(closed_at=timezone.now())
    assert before - promised(settings) == ALLOWANCE
    Account.objects.filter(pk=waiting.account.pk).update(allowance_granted_at=timezone.now())
    assert before == promised(settings)
    Tenant.objects.filter(pk=waiting.tenant.pk).update(closed_at=timezone.now() - timedelta(days=32))
    assert before - promised(settings) == ALLOWANCE


def test_accounts_of_before_are_granted(waiting):
    """The column's own default, which fills it for rows that were there, and for code that does not know it."""
    tenant = Tenant.objects.create(slug=f"old-{uuid.uuid4().hex[:8]}", name="Old", schema_name=f"t_{uuid.uuid4().hex}")
    old = Account.objects.create(tenant=tenant, plan="trial", subject_tenant=f"ws-{uuid.uuid4().hex}", status="closed")
    old.refresh_from_db()
    assert not allowance.waits(old)
