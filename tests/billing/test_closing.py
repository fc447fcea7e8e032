"""A workspace is deleted: at once for its people, later for good, and never for its neighbour."""

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models.functions import Now
from django.test import Client

from billing import admin_client, closing, confirming, deleting, periods
from billing.errors import AuthorityUnavailable, OnHold
from billing.guard import reserve
from billing.models import Account, Hold
from billing.provisioning import status_token
from billing.settlement import sweep
from billing.tasks import forget_repeats_everywhere, purge_closed, roll_budgets, shut_account
from tenants import services
from tenants.audit.models import AuditEvent
from tenants.jobs import TenantNotServed, in_its_tenant
from tenants.mail.models import OutgoingMail
from tenants.models import Domain, Membership, Tenant
from tenants.roles import Role
from tenants.sealing import unseal
from tenants.tasks import catch_up_all
from tenants.users.directory import workspaces_of
from tenants.users.handoff import issue_token
from tenants.users.links import look_at, make_link
from tenants.users.models import ApiKey, Invitation, Link, MemberSession
from tests.support.cast import PASSWORD
from tests.support.factories import WorkspaceFactory
from tests.support.jobs import rows
from tests.support.lossy import LossyProxy
from tests.support.money import eventually

pytestmark = pytest.mark.usefixtures("app", "upstream")
DELETE = "/settings/workspace/delete/"
ASK = {"app": "test", "action_kind": "test.call", "action_name": "unit"}


@pytest.fixture
def owned(workspace):
    """A workspace and its owner's browser."""
    return workspace, workspace.client(workspace.owner)


def delete(client, slug, password=PASSWORD):
    return client.post(DELETE, {"slug": slug, "password": password})


def deleted(days=0, **fields):
    """A workspace that its owner has deleted so many days ago."""
    workspace = WorkspaceFactory(**fields)
    assert delete(workspace.client(workspace.owner), workspace.slug).status_code == 200
    return long_ago(workspace, days=days)


def long_ago(workspace, **time):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(closed_at=Now() - timedelta(minutes=2, **time))
    workspace.account.refresh_from_db()
    workspace.tenant.refresh_from_db()
    return workspace


def at_the_authority(workspace):
    return admin_client.tenant_status(workspace.account.subject_tenant)


def schema_of(workspace):
    (found,) = rows("SELECT to_regnamespace(%s) IS NOT NULL", workspace.tenant.schema_name)
    return found[0]


def mails_to(email):
    mails = OutgoingMail.objects.filter(to=email)
    return [json.loads(unseal(mail.sealed_body)) | {"subject": mail.subject} for mail in mails]


def counts_of(workspace):
    """What the neighbour has."""
    with workspace.scope():
        return {
            "trail": AuditEvent.objects.count(),
            "sessions": MemberSession.objects.count(),
            "members": Membership.objects.filter(tenant=workspace.tenant).count(),
            "status": (Tenant.objects.get(pk=workspace.tenant.pk).status, at_the_authority(workspace)),
        }


# --- at once --------------------------------------------------------------------------------------------------------


def test_everything_that_opens_a_door_ends_at_once(owned, globex, bob):
    workspace, client = owned
    owner, member = workspace.owner, workspace.member("m@deleted.example")
    other = workspace.client(member)
    api, bare = workspace.api(key := workspace.key()), workspace.api(key, bare=True)
    with workspace.scope():
        link = make_link(owner, Link.Purpose.RESET, email=owner.email)
        times = {"sent_at": Now(), "expires_at": Now() + timedelta(days=7)}
        Invitation.objects.create(email="x@y.example", role=Role.MEMBER, digest=uuid.uuid4().hex, **times)
    token = issue_token(workspace.tenant, user_id=member.pk)
    neighbour = globex.client(bob)
    before = counts_of(globex)

    page = delete(client, workspace.slug)
    assert page.status_code == 200
    assert b"is deleted" in page.content

    nowhere = Client(headers={"host": "never-was.localhost"}).get("/")
    for one in (client, other, Client(headers={"host": workspace.host})):
        gone = one.get("/")
        assert gone.status_code == 404
        assert gone.content == nowhere.content
    assert api.get("/api/budget/").json() == Client(headers={"host": "never-was.localhost"}).get("/api/budget/").json()
    assert api.chat().status_code == 404
    assert (bare.get("/api/budget/").status_code, bare.chat().status_code) == (401, 401)
    welcome = Client(headers={"host": workspace.host}).post(
        "/welcome/", {"token": token}, headers={"origin": "http://localhost:8000"}
    )
    assert welcome.status_code == 404
    with workspace.scope():
        assert look_at(link, Link.Purpose.RESET) is None
        assert not MemberSession.objects.exists()
        assert not Invitation.objects.filter(revoked_at=None).exists()
        event = AuditEvent.objects.get(event="settings.deleted")
        assert (event.actor, event.target) == (owner.email, workspace.slug)
    assert not workspaces_of(owner.email).exists()
    assert counts_of(globex) == before
    assert neighbour.get("/").status_code == 200


def test_everybody_who_was_in_gets_a_mail_and_owners_are_told_what_can_be_done(owned):
    workspace, client = owned
    workspace.member("reader@deleted.example", role="viewer")
    workspace.member("second@deleted.example", role="owner")
    assert delete(client, workspace.slug).status_code == 200
    until = f"{closing.purged_on(Tenant.objects.get(pk=workspace.tenant.pk)):%-d %B %Y}"
    for email in (workspace.account.owner_email, "second@deleted.example"):
        (mail,) = mails_to(email)
        assert until in mail["txt"]
        assert workspace.account.owner_email in mail["html"]
    (mail,) = mails_to("reader@deleted.example")
    assert until not in mail["txt"]
    assert workspace.slug in mail["txt"]
    # In the site's name, for jobs of a closed workspace end.
    task = "SELECT count(*) FROM public.procrastinate_jobs WHERE task_name = 'tenants.mail.tasks.send_site_mail'"
    assert rows(task)[0][0] >= 3


@pytest.mark.parametrize("role", ["admin", "member", "viewer"])
def test_who_is_no_owner_may_not(workspace, role):
    client = workspace.client(workspace.member(f"{role}@deleted.example", role=role))
    assert (client.get(DELETE).status_code, delete(client, workspace.slug).status_code) == (403, 403)


def test_it_takes_the_address_and_the_password(owned, globex):
    workspace, client = owned
    assert client.get(DELETE).status_code == 200
    for slug, password in ((globex.slug, PASSWORD), ("", PASSWORD), (workspace.slug, ""), (workspace.slug, "wrong")):
        page = delete(client, slug, password)
        assert page.status_code == 400
        assert b"autofocus" in page.content
        assert f'value="{slug}"'.encode() in page.content or not slug
        assert PASSWORD.encode() not in page.content
    assert Tenant.objects.get(pk=workspace.tenant.pk).status == "active"


def test_guesses_are_limited_as_log_ins_are(owned):
    workspace, client = owned
    answers = [delete(client, workspace.slug, "wrong").status_code for _ in range(7)]
    assert answers[0] == 400
    assert answers[-1] == 429
    # The right one has to wait, too, and nothing that was typed is lost.
    page = delete(client, workspace.slug)
    assert page.status_code == 429
    assert f'value="{workspace.slug}"'.encode() in page.content


def test_who_has_no_password_is_told_how_to_get_one(owned):
    workspace, client = owned
    owner = workspace.owner
    owner.set_unusable_password()
    with workspace.scope():
        owner.save(update_fields=["password"])
    # The hash is part of the session: they log in by another way.
    client = Client(headers={"host": workspace.host})
    token = issue_token(workspace.tenant, user_id=owner.pk)
    client.post("/welcome/", {"token": token}, headers={"origin": "http://localhost:8000"})
    page = client.get(DELETE)
    assert b"/settings/account/" in page.content
    assert b'name="password"' not in page.content
    assert delete(client, workspace.slug, "").status_code == 400
    assert Tenant.objects.get(pk=workspace.tenant.pk).status == "active"


def test_an_account_on_hold_is_not_deleted_from_under_whoever_froze_it(owned):
    workspace, client = owned
    Account.objects.filter(pk=workspace.account.pk).update(status=Account.Status.FROZEN)
    page = delete(client, workspace.slug)
    assert page.status_code == 400
    assert b"on hold" in page.content
    assert Tenant.objects.get(pk=workspace.tenant.pk).status == "active"


def test_deleted_twice_at_once_both_are_told_that_it_is_deleted(owned, monkeypatch):
    workspace, client = owned
    other = workspace.client()
    other.cookies.load(client.cookies.output(header=""))
    shut, waiting = deleting.shut_everybody_out, [other]

    def shut_after_the_other():
        if waiting:
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(delete, waiting.pop(), workspace.slug).result().status_code == 200
                pool.submit(lambda: connection.close()).result()
        shut()

    monkeypatch.setattr(deleting, "shut_everybody_out", shut_after_the_other)
    page = delete(client, workspace.slug)
    assert (page.status_code, b"is deleted." in page.content) == (200, True)
    with workspace.scope():
        assert AuditEvent.objects.filter(event="settings.deleted").count() == 1


def confirmed_meanwhile(user):
    """A confirmation has its link, and wants the account, just as an owner deletes the workspace."""
    begin_to_delete.pop()()
    assert eventually(lambda: rows("SELECT 1 FROM pg_locks WHERE NOT granted"))
    confirming.on_confirmed(user)


begin_to_delete: list[Callable[[], object]] = []


def test_deleting_and_confirming_do_not_wait_for_each_other(owned, settings):
    workspace, client = owned
    Account.objects.filter(pk=workspace.account.pk).update(allowance_granted_at=None)
    with workspace.scope():
        path = f"/confirm/{make_link(workspace.owner, Link.Purpose.CONFIRM, email=workspace.owner.email)}/"
    settings.ON_EMAIL_CONFIRMED = f"{__name__}.confirmed_meanwhile"
    with ThreadPoolExecutor(1) as pool:
        deletions = []
        begin_to_delete.append(
            lambda: deletions.append(pool.submit(lambda: delete(client, workspace.slug).status_code))
        )
        assert workspace.client().post(path).status_code == 302
        assert deletions[0].result() == 200
        pool.submit(lambda: connection.close()).result()
    workspace.account.refresh_from_db()
    assert (workspace.account.status, workspace.account.allowance_granted_at is not None) == ("closed", True)


def test_all_of_it_or_nothing(owned, monkeypatch):
    workspace, client = owned

    def fail(*args, **kwargs):
        raise RuntimeError("the outbox is broken")

    monkeypatch.setattr(deleting, "send", fail)
    client.raise_request_exception = False
    assert delete(client, workspace.slug).status_code == 500
    assert client.get(DELETE).status_code == 200
    account = Account.objects.select_related("tenant").get(pk=workspace.account.pk)
    assert (account.status, account.tenant.status, account.tenant.closed_at) == ("active", "active", None)
    assert workspaces_of(account.owner_email).count() == 1
    with workspace.scope():
        assert not AuditEvent.objects.filter(event="settings.deleted").exists()


# --- then -----------------------------------------------------------------------------------------------------------


def test_calls_under_way_are_settled_before_the_authority_shuts(owned):
    """Its answer goes on after the doors are shut, and is paid for by what it used."""
    workspace, client = owned
    pk = workspace.account.pk
    with reserve(workspace.tenant, **ASK, estimate=1_000) as paid:
        paid.dispatch(lambda: None)
        assert delete(client, workspace.slug).status_code == 200
        with pytest.raises(closing.NotYet, match="let in"):
            shut_account(account_id=pk)
        long_ago(workspace)
        with pytest.raises(closing.NotYet, match="under way"):
            shut_account(account_id=pk)
        assert at_the_authority(workspace) == "ACTIVE"
        paid.record(cost=300)
    assert [line.cost for line in workspace.settled(lines=1)] == [300]
    shut_account(account_id=pk)
    shut_account(account_id=pk)
    assert at_the_authority(workspace) == "SUSPENDED"


def test_money_that_is_held_for_a_call_yet_to_be_made_keeps_the_authority_open(owned):
    """It has no row before its model is called. Suspended, the authority would refuse what the call then costs."""
    workspace, client = owned
    with reserve(workspace.tenant, **ASK, estimate=1_000, ttl_ms=600_000) as paid:
        assert delete(client, workspace.slug).status_code == 200
        long_ago(workspace)
        with pytest.raises(closing.NotYet, match="is held"):
            shut_account(account_id=workspace.account.pk)
        paid.dispatch(lambda: None)
        paid.record(cost=300)
    assert [line.cost for line in workspace.settled(lines=1)] == [300]
    shut_account(account_id=workspace.account.pk)
    assert at_the_authority(workspace) == "SUSPENDED"


def test_no_new_call_is_made_for_a_deleted_workspace():
    workspace = deleted()
    with pytest.raises(OnHold), reserve(workspace.tenant, **ASK, estimate=1_000):
        pass


def test_its_jobs_end_as_aborted_and_the_clocks_pass_it_over():
    workspace = deleted()
    job = SimpleNamespace(id=1, task_kwargs={"tenant_id": workspace.tenant.pk})
    task = SimpleNamespace(name="notes", func=lambda: None, retry_strategy=None)
    with pytest.raises(TenantNotServed):
        in_its_tenant(task.func, SimpleNamespace(job=job, task=task), None)
    for task in (roll_budgets, catch_up_all, forget_repeats_everywhere):
        task(timestamp=0)
    mine = "SELECT task_name FROM public.procrastinate_jobs WHERE args ->> 'tenant_id' = %s"
    assert not rows(mine, str(workspace.tenant.pk))
    assert not periods.due(Now()).filter(pk=workspace.account.pk).exists()


# --- undone ---------------------------------------------------------------------------------------------------------


def test_reopened_its_people_log_in_anew_and_it_can_pay():
    workspace = deleted()
    shut_account(account_id=workspace.account.pk)
    key = None
    with workspace.scope():
        key = ApiKey.objects.count()
    out = StringIO()
    call_command("reopen_workspace", workspace.slug.upper(), stdout=out)
    assert f"http://{workspace.host}:8000/" in out.getvalue()
    client = workspace.client(workspace.owner)
    assert client.get("/budget/").status_code == 200
    assert workspace.api().chat(max_tokens=8).status_code == 200
    assert workspaces_of(workspace.account.owner_email).count() == 1
    with workspace.scope():
        assert ApiKey.objects.filter(revoked_at=None).count() == 1  # the one just made
        assert ApiKey.objects.count() == key + 1
        assert AuditEvent.objects.filter(event="settings.reopened", actor="operator").count() == 1
    with pytest.raises(CommandError, match="not closed"):
        call_command("reopen_workspace", workspace.slug)


def test_what_is_not_there_or_already_dropped_cannot_be_reopened():
    with pytest.raises(CommandError, match="There is no workspace"):
        call_command("reopen_workspace", "never-was")
    workspace = deleted(days=31)
    admin_client.set_tenant_status(workspace.account.subject_tenant, "CLOSED")
    with pytest.raises(CommandError, match="for good"):
        call_command("reopen_workspace", workspace.slug)
    closing.purge(workspace.account)
    with pytest.raises(CommandError, match="dropped already"):
        call_command("reopen_workspace", workspace.slug)


# --- for good -------------------------------------------------------------------------------------------------------


def assert_purged(workspace):
    account = Account.objects.select_related("tenant").get(pk=workspace.account.pk)
    assert (account.status, account.tenant.status) == ("closed", "closed")
    assert (account.owner_email, account.sealed_key, account.tenant.name) == ("", "", "")
    assert account.tenant.purged_at is not None
    assert not schema_of(workspace)
    assert at_the_authority(workspace) == "CLOSED"
    # What was used is never used again.
    assert (account.tenant.slug, account.tenant.schema_name) == (workspace.slug, workspace.tenant.schema_name)
    assert Domain.objects.filter(domain=workspace.host, tenant=account.tenant).exists()


def test_when_its_time_is_over_its_rows_and_files_go_and_the_neighbours_stay(globex, settings):
    early, late = deleted(days=29), deleted(days=31)
    for one in (late, globex):
        with one.scope():
            kept = default_storage.save("notes.txt", ContentFile(b"words"))
    folder = Path(settings.STORAGES["default"]["OPTIONS"]["location"])
    before = counts_of(globex)
    for _ in range(2):
        purge_closed(timestamp=0)
    assert_purged(late)
    assert not (folder / late.tenant.schema_name).exists()
    with globex.scope():
        assert default_storage.open(kept).read() == b"words"
        default_storage.delete(kept)
    assert schema_of(early)
    assert schema_of(globex)
    assert counts_of(globex) == before
    # Its address is nobody's, to strangers as to whoever would sign up for it.
    form = {"name": "New", "slug": late.slug, "email": "new@ws.example", "password": PASSWORD}
    bare = Client(headers={"host": "localhost"})
    assert Client(headers={"host": late.host}).get("/").status_code == 404
    assert bare.post("/api/signup/", form, content_type="application/json").status_code == 409
    assert bare.get(f"/api/signup/{status_token(late.account)}/").status_code < 500
    call_command("reconcile", early.slug)


@pytest.mark.parametrize("tables", [0, 2])
def test_killed_between_two_tables_it_is_gone_on_with(monkeypatch, tables):
    workspace = deleted(days=31)
    looks, some_tables_of = [], services._some_tables_of

    def killed(tenant):
        if len(looks) == tables:
            raise KeyboardInterrupt
        looks.append(tenant.pk)
        return some_tables_of(tenant)

    monkeypatch.setattr(services, "_some_tables_of", killed)
    with pytest.raises(KeyboardInterrupt):
        closing.purge(workspace.account)
    monkeypatch.undo()
    assert schema_of(workspace)
    assert Client(headers={"host": workspace.host}).get("/").status_code == 404
    closing.purge(workspace.account)
    assert_purged(workspace)


def test_killed_after_the_rows_are_gone_it_is_gone_on_with(monkeypatch):
    workspace = deleted(days=31)

    def killed(tenant):
        raise KeyboardInterrupt

    monkeypatch.setattr(services, "_drop_files", killed)
    with pytest.raises(KeyboardInterrupt):
        closing.purge(workspace.account)
    monkeypatch.undo()
    assert not schema_of(workspace)
    closing.purge(workspace.account)
    assert_purged(workspace)


def test_an_answer_of_the_authority_that_is_lost_loses_nothing(authority, settings):
    workspace = deleted(days=31)
    with LossyProxy(authority.admin_url) as proxy:
        settings.CYCLES_ADMIN_URL = proxy.url
        proxy.lose[f"/{workspace.account.subject_tenant}"] = 1
        with pytest.raises(AuthorityUnavailable):
            closing.purge(workspace.account)
        assert schema_of(workspace)
        closing.purge(workspace.account)
    assert_purged(workspace)


def test_a_call_that_nobody_could_settle_gets_its_line_before_the_rows_go():
    """Its process died, and the authority was suspended before the sweep came to it."""
    workspace = WorkspaceFactory()
    client = workspace.client(workspace.owner)
    paid = reserve(workspace.tenant, **ASK, estimate=1_000)
    paid.dispatch(lambda: None)
    assert delete(client, workspace.slug).status_code == 200
    Hold.objects.filter(account=workspace.account).update(process=uuid.uuid4())
    admin_client.set_tenant_status(workspace.account.subject_tenant, "SUSPENDED")
    long_ago(workspace, days=31)
    with pytest.raises(closing.NotYet, match="under way"):
        closing.purge(workspace.account)
    sweep(at_once=True)
    assert [line.outcome for line in workspace.lines()] == ["swept"]
    paid.settle()  # this process is not dead in truth: it finds that all is done
    closing.purge(workspace.account)
    assert_purged(workspace)


def test_a_schema_that_is_not_ours_is_never_dropped():
    workspace = deleted(days=31)
    schema = workspace.tenant.schema_name
    rows(f"COMMENT ON SCHEMA \"{schema}\" IS 'tenant:0'")
    with pytest.raises(services.SchemaNotOurs):
        services.purge(workspace.tenant)
    with workspace.scope():
        assert AuditEvent.objects.exists()
    rows(f"COMMENT ON SCHEMA \"{schema}\" IS 'tenant:{workspace.tenant.pk}'")
    closing.purge(workspace.account)


def test_only_what_is_closed_is_dropped(workspace):
    with pytest.raises(services.NotClosed):
        services.purge(workspace.tenant)
    closing.purge(workspace.account)
    assert schema_of(workspace)
    assert at_the_authority(workspace) == "ACTIVE"


def test_one_that_fails_keeps_no_other_waiting(monkeypatch):
    workspaces = [deleted(days=31), deleted(days=31)]
    purge = services.purge

    def fails(tenant):
        if tenant.pk == workspaces[0].tenant.pk:
            raise RuntimeError("its disk is broken")
        purge(tenant)

    monkeypatch.setattr(services, "purge", fails)
    purge_closed(timestamp=0)
    assert schema_of(workspaces[0])
    assert_purged(workspaces[1])
    monkeypatch.undo()
    purge_closed(timestamp=0)
