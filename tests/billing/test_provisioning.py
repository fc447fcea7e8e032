"""Sign-up: nothing is made twice, and what was interrupted is finished."""

import os
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from billing import admin_client, provisioning, signing_up
from billing.errors import SlugTaken
from billing.models import Account
from billing.tasks import provision_account
from tenants import services
from tenants.context import tenant_scope
from tenants.jobs import TenantJobManager
from tenants.models import Tenant
from tenants.threads import TenantExecutor
from tenants.users.models import User
from tests.support.authority import authority_variables
from tests.support.cast import PASSWORD, Workspace
from tests.support.crash import assert_made_once
from tests.support.jobs import rows

pytestmark = pytest.mark.usefixtures("app")
ROOT = Path(__file__).resolve().parents[2]


def new_slug():
    return f"new-{uuid.uuid4().hex[:10]}"


def sign_up(slug=None, email="owner@new.example", password=PASSWORD):
    return provisioning.sign_up(name="New", slug=slug or new_slug(), email=email, password=password, plan="trial")


def keys_of(account):
    return admin_client.active_key_ids(account.subject_tenant, name=f"account-{account.pk}")


def test_sign_up_makes_a_workspace_that_can_pay():
    account = sign_up()
    provisioning.provision(account)
    assert account.status == Account.Status.ACTIVE
    assert account.tenant.status == Tenant.Status.ACTIVE
    ledger = Workspace(account).ledger()
    assert (ledger["allocated"], ledger["remaining"]) == (100_000_000, 100_000_000)


def test_web_writes_rows_and_a_job_and_builds_nothing(monkeypatch):
    """Nor does the status address. Whoever runs the job later finishes it."""
    monkeypatch.setattr(signing_up, "READY_SECONDS", 0.02)
    monkeypatch.setattr(admin_client, "call", None)
    client, slug = Client(headers={"host": "localhost"}), new_slug()
    form = {"name": "New", "slug": slug, "email": "owner@new.example", "password": PASSWORD}
    made = client.post("/api/signup/", form, content_type="application/json")
    assert (made.status_code, made.json()["status"]) == (202, "pending")
    status = made.json()["status_url"].removeprefix("http://localhost:8000")
    assert client.get(status).json() == {"status": "pending"}
    account = Account.objects.select_related("tenant").get(tenant__slug=slug)
    assert rows("SELECT to_regnamespace(%s)", account.tenant.schema_name) == [(None,)]
    waiting = "SELECT queue_name, status::text, args ->> 'account_id' FROM public.procrastinate_jobs WHERE lock = %s"
    assert rows(waiting, f"provision_account:{account.pk}") == [("sign_ups", "todo", str(account.pk))]
    monkeypatch.undo()
    provision_account(account_id=account.pk)
    assert client.get(status).json()["api_key"].startswith("tk_")


def test_a_sign_up_that_cannot_be_enqueued_never_was(monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("the queue is broken")

    monkeypatch.setattr(TenantJobManager, "batch_defer_jobs", fail)
    form = {"name": "New", "slug": new_slug(), "email": "owner@new.example", "plan": "trial"}
    with pytest.raises(RuntimeError):
        signing_up.ask(**form, password=PASSWORD, mark=signing_up.new_mark(), address="192.0.2.1")
    assert not Tenant.objects.filter(slug=form["slug"]).exists()


def test_slug_schema_and_authority_id_are_three_different_names():
    account = sign_up()
    names = {account.tenant.slug, account.tenant.schema_name, account.subject_tenant}
    assert len(names) == 3
    assert not any(account.tenant.slug in name for name in (account.tenant.schema_name, account.subject_tenant))


def test_provisioning_again_makes_nothing_twice():
    account = sign_up()
    provisioning.provision(account)
    before = (account.authority_key_id, keys_of(account))
    Account.objects.filter(pk=account.pk).update(status=Account.Status.PENDING)
    account.refresh_from_db()
    provisioning.provision(account)
    assert (account.authority_key_id, keys_of(account)) == before
    assert Workspace(account).ledger()["allocated"] == 100_000_000


@pytest.mark.on_standin
def test_of_runs_at_once_one_builds_and_the_others_return_at_once(monkeypatch):
    account = sign_up()
    builds, ensure_schema = [], services.ensure_schema
    monkeypatch.setattr(services, "ensure_schema", lambda tenant: builds.append(ensure_schema(tenant)))

    def run():
        return provisioning.provision(Account.objects.select_related("tenant").get(pk=account.pk))

    with TenantExecutor(3) as pool:
        done = [pool.submit(run) for _ in range(3)]
        assert True in [one.result() for one in done]
    assert len(builds) == 1
    account.refresh_from_db()
    assert account.status == Account.Status.ACTIVE
    assert keys_of(account) == [account.authority_key_id]


def test_the_authority_key_lies_sealed():
    account = sign_up()
    provisioning.provision(account)
    assert "cyc_live_" not in account.sealed_key


def test_the_authority_key_lives_for_ten_years():
    from datetime import UTC, datetime

    account = sign_up()
    provisioning.provision(account)
    page = admin_client.call("GET", "/v1/admin/api-keys", params={"tenant_id": account.subject_tenant})
    (key,) = page["keys"]
    assert (datetime.fromisoformat(key["expires_at"]) - datetime.now(UTC)).days > 9 * 365


def test_a_key_whose_answer_was_lost_is_revoked():
    account = sign_up()
    provisioning.ensure_authority_tenant(account)
    lost, _ = admin_client.create_key(account.subject_tenant, name=f"account-{account.pk}")
    provisioning.provision(account)
    assert keys_of(account) == [account.authority_key_id]
    assert account.authority_key_id != lost


# Before each step, and after those whose answer can be lost.
KILLED = [
    "before services.ensure_schema", "after services.ensure_schema", "after admin_client.ensure_tenant",
    "after admin_client.create_key", "before admin_client.revoke_key", "after admin_client.ensure_budget",
    "before ensure_owner", "after ensure_owner", "before activate", "after activate",
]  # fmt: skip
KILLING = """
import django, os, sys; django.setup()
from django.db import connection
from django.utils.module_loading import import_string
from billing import provisioning
from billing.models import Account

def killed(when, step, account):
    *module, name = f"billing.provisioning.{step}".split(".")
    module = __import__("operator").attrgetter(".".join(module[2:]))(provisioning) if module[2:] else provisioning
    act = getattr(module, name)
    def instead(*args, **kwargs):
        when == "after" and act(*args, **kwargs)
        os.kill(os.getpid(), 9)
    setattr(module, name, instead)
    provisioning.provision(account)

for argument in sys.argv[1:]:
    pk, when, step = argument.split()
    connection.close()
    if not (child := os.fork()):
        killed(when, step, Account.objects.select_related("tenant").get(pk=pk))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_run_killed_at_any_step_is_finished_by_the_next_and_nothing_is_made_twice(database_url, authority):
    accounts = {point: sign_up() for point in KILLED}
    # There is something to revoke where an earlier run has lost the answer to its key.
    lost = accounts["before admin_client.revoke_key"]
    provisioning.ensure_authority_tenant(lost)
    admin_client.create_key(lost.subject_tenant, name=f"account-{lost.pk}")
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "DATABASE_URL": database_url,
        **authority_variables(authority),
    }
    points = [f"{account.pk} {point}" for point, account in accounts.items()]
    child = subprocess.run([sys.executable, "-c", KILLING, *points], cwd=ROOT, env=env, capture_output=True, text=True)
    assert child.stdout.split() == ["-9"] * len(KILLED), child.stderr
    for point, account in accounts.items():
        account.refresh_from_db()
        assert account.status == ("active" if point == "after activate" else "pending"), point
    with suppress(CommandError):  # another test's may be one that nobody can finish
        call_command("provision_accounts")
    for account in accounts.values():
        account.refresh_from_db()
        assert_made_once(account)


def test_a_taken_slug_is_refused():
    account = sign_up()
    with pytest.raises(SlugTaken):
        sign_up(account.tenant.slug, email="else@new.example")
    with pytest.raises(SlugTaken):
        sign_up(account.tenant.slug)


def test_a_schema_that_is_not_ours_stops_provisioning():
    account = sign_up()
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE SCHEMA "{account.tenant.schema_name}"')
    assert provisioning.try_to_provision(account) is False
    account.refresh_from_db()
    assert account.status == Account.Status.PENDING
    # It would fail whoever finishes all accounts after us.
    Account.objects.filter(pk=account.pk).update(status=Account.Status.CLOSED)


def test_an_owner_whom_the_release_before_wrote_without_a_role_is_the_owner():
    account = sign_up()
    services.ensure_schema(account.tenant)
    with tenant_scope(account.tenant, alone=True):
        User.objects.create(email=account.owner_email, password=account.owner_password)
    provisioning.provision(account)
    assert Workspace(account).owner.role == "owner"
