"""A tenant whose schema is behind the code is brought up to date before it is served; its neighbour never notices."""

import psycopg
import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.test import Client

from chat.models import Conversation
from tenants import health, resolve, schema_versions, services
from tenants.migrating import TablesMissing
from tenants.models import SchemaVersion, Tenant
from tenants.tasks import catch_up, catch_up_all
from tests.support import job_tasks
from tests.support.factories import WorkspaceFactory
from tests.support.job_tasks import read
from tests.support.jobs import JobsProcess, job_state, rows, until

pytestmark = pytest.mark.usefixtures("app")

CATCH_UP = "tenants.tasks.catch_up"


@pytest.fixture(autouse=True)
def _empty_queue(app):
    rows("DELETE FROM public.procrastinate_jobs")


@pytest.fixture
def behind(workspace):
    """As a release with one migration less has left it; and the key of its owner."""
    workspace.secret = workspace.key()
    take_back_the_last_migration(workspace.tenant)
    return workspace


def take_back_the_last_migration(tenant):
    call_command("migrate_schemas", "users", "0001", schema_name=tenant.schema_name, verbosity=0)


def is_current(tenant):
    return Tenant.objects.filter(schema_versions.is_current(), pk=tenant.pk).exists()


def queued():
    """The tenants that a job waits or works for."""
    sql = "SELECT (args ->> 'tenant')::int FROM public.procrastinate_jobs WHERE task_name = %s"
    return [tenant for (tenant,) in rows(sql, CATCH_UP)]


def not_ready(answer):
    assert (answer.status_code, answer.json()["error"]) == (503, "tenant_not_ready")
    assert answer["Retry-After"] == "2"
    assert "brought up to date" in answer.json()["message"]
    return True


def test_it_is_refused_at_both_doors_until_it_has_caught_up_and_its_jobs_wait(
    behind, acme, alice, upstream, database_url, authority, tmp_path
):
    assert not is_current(behind.tenant)
    api, neighbour = behind.api(behind.secret), acme.api(acme.key(alice))
    for _ in range(2):
        assert not_ready(api.get("/api/budget/"))
        assert not_ready(api.chat("hello"))
        assert neighbour.get("/api/budget/").status_code == 200
        assert neighbour.chat("hello").status_code == 200
    assert behind.client().get("/login/").status_code == 503
    assert len(upstream.calls) == 2
    # However many asked, one job waits.
    assert queued() == [behind.tenant.pk]
    with JobsProcess(database_url=database_url, authority=authority) as jobs:
        until(lambda: is_current(behind.tenant), said=lambda: jobs.output)
        assert api.get("/api/budget/").status_code == 200
        assert api.chat("hello").status_code == 200
        assert behind.client().get("/login/").status_code == 200
        take_back_the_last_migration(behind.tenant)
        path = str(tmp_path / "notes")
        waiting = job_tasks.note.defer(path=path, tenant_id=behind.tenant.pk)
        other = job_tasks.note.defer(path=path, tenant_id=acme.tenant.pk)
        until(lambda: job_state(waiting) is None and job_state(other) is None, said=lambda: jobs.output)
        # A job that does not wait would have ended with nobody having asked for the schema.
        assert is_current(behind.tenant)
    # In whatever order: on a busy machine the one that waits may be over first.
    assert {line.split()[0] for line in read(path)} == {str(acme.tenant.pk), str(behind.tenant.pk)}


def test_by_header_or_by_key_alone_it_is_told_only_to_who_has_a_key(behind, caplog):
    """To anybody else the answer is that of a name that does not exist, and nothing is begun for them."""
    by_header = {"host": "localhost", "x-tenant-id": behind.slug}
    wrong = {"authorization": f"Bearer {behind.secret[:-1]}x"}
    unknown = Client(headers={**by_header, "x-tenant-id": "nobody-here", **wrong}).get("/api/budget/")
    for stranger in ({**by_header, **wrong}, by_header, {"host": "localhost", **wrong}):
        answer = Client(headers=stranger).get("/api/budget/")
        assert (answer.status_code, answer.content) == (401, unknown.content)
    assert queued() == []
    right = {"authorization": f"Bearer {behind.secret}"}
    for named in (by_header, by_header, {"host": "localhost"}):
        assert not_ready(Client(headers={**named, **right}).get("/api/budget/"))
    assert len(queued()) == 1
    # Once a job, and what to do where no jobs process of this code runs, as beside `runserver`.
    assert caplog.text.count("run `manage.py migrate_schemas`") == 1


def test_a_schema_that_is_newer_than_the_code_is_served(workspace):
    newer = schema_versions.ensure_version().pk + 1
    Tenant.objects.filter(pk=workspace.tenant.pk).update(schema_version=newer)
    assert workspace.api().get("/api/budget/").status_code == 200
    services.ensure_schema(workspace.tenant)
    assert Tenant.objects.get(pk=workspace.tenant.pk).schema_version == newer


def test_who_signed_up_under_other_code_is_brought_to_this_one_when_it_is_released_again(behind):
    """Another branch, or a rollback that was migrated to: its numbers are higher, and it had other migrations."""
    other = SchemaVersion.objects.create(fingerprint=f"other code {behind.slug}")
    Tenant.objects.filter(pk=behind.tenant.pk).update(schema_version=other.pk)
    assert is_current(behind.tenant)  # nothing that serves can know it
    call_command("migrate_schemas", verbosity=0)
    assert is_current(behind.tenant)
    assert schema_versions.has_all_migrations(behind.tenant.schema_name)
    assert schema_versions.ensure_version().pk > other.pk
    before = schema_versions.ensure_version().pk
    call_command("migrate_schemas", verbosity=0)
    assert schema_versions.ensure_version().pk == before


def test_a_model_that_stands_beside_a_view_keeps_nobody_waiting():
    """It is there in web alone, and no command would ever migrate to such a state."""
    before = schema_versions.fingerprint()
    meta = type("Meta", (), {"app_label": "chat", "proxy": True})
    type("Beside", (Conversation,), {"__module__": "chat.views", "Meta": meta})
    schema_versions.fingerprint.cache_clear()
    try:
        assert schema_versions.fingerprint() == before
    finally:
        del apps.all_models["chat"]["beside"]
        apps.clear_cache()


def test_code_that_nobody_has_migrated_to_serves_no_tenant_and_is_not_ready(acme, client, monkeypatch):
    for module in (schema_versions, resolve):
        monkeypatch.setattr(module, "fingerprint", lambda: "of a release to come")
    monkeypatch.setattr(health, "_migrated", False)
    assert not_ready(acme.api().get("/api/budget/"))
    assert "database: not migrated" in client.get("/readyz").json()["not_ready"]


def test_each_minute_those_that_nobody_asks_for_are_caught_up(behind, acme):
    suspended, closed, pending = (WorkspaceFactory(provisioned=False).tenant for _ in range(3))
    for tenant, status in ((suspended, "suspended"), (closed, "closed")):
        Tenant.objects.filter(pk=tenant.pk).update(status=status)
    catch_up_all(timestamp=0)
    asked = set(queued())
    assert asked & {each.pk for each in (behind.tenant, acme.tenant, suspended, closed, pending)} == {
        behind.tenant.pk,
        suspended.pk,
    }


def test_catching_up_gives_way_to_a_lock_that_lasts(behind, database_url, monkeypatch):
    """A backup's, for example. Its job comes again, and keeps no worker from the others until then."""
    with psycopg.connect(database_url) as backup, monkeypatch.context() as patch:
        patch.setattr(services, "LOCK_SECONDS", 0.2)
        backup.execute(f"LOCK TABLE {behind.tenant.schema_name}.users_apikey IN ACCESS SHARE MODE")
        backup.execute(f"LOCK TABLE {behind.tenant.schema_name}.users_user IN ACCESS SHARE MODE")
        with pytest.raises(OperationalError, match="lock timeout"):
            services.catch_up(behind.tenant)
    assert rows("SHOW lock_timeout") == [("0",)]
    assert not is_current(behind.tenant)
    services.catch_up(behind.tenant)
    assert is_current(behind.tenant)


def test_a_schema_that_is_gone_is_not_made_again(behind, caplog):
    rows(f'DROP SCHEMA "{behind.tenant.schema_name}" CASCADE')
    catch_up(tenant=behind.tenant.pk)
    assert rows("SELECT 1 FROM pg_namespace WHERE nspname = %s", behind.tenant.schema_name) == []
    assert f"tenant={behind.tenant.pk}" in caplog.text


def test_migrating_all_leaves_out_who_is_current_and_one_that_fails_stops_no_other(behind, acme, settings, capsys):
    settings.TENANT_MIGRATION_ORDER = ["pk"]
    failing, after_it = behind.tenant, WorkspaceFactory().tenant
    take_back_the_last_migration(after_it)
    rows(f'ALTER TABLE "{failing.schema_name}".users_apikey ADD COLUMN sealed_secret text')  # as the migration would
    unbuilt = services.register_tenant(f"unbuilt-{failing.pk}", name="Without a schema")
    with pytest.raises(CommandError, match=rf"^Failed for {failing.slug}; the others are done\.$"):
        call_command("migrate_schemas")
    said = capsys.readouterr().out
    assert said.index(failing.schema_name) < said.index(after_it.schema_name)
    assert acme.tenant.schema_name not in said
    assert unbuilt.schema_name not in said
    assert (is_current(failing), is_current(after_it)) == (False, True)
    rows(f'ALTER TABLE "{failing.schema_name}".users_apikey DROP COLUMN sealed_secret')
    call_command("migrate_schemas", verbosity=0)
    assert is_current(failing)


def test_a_schema_that_lacks_a_table_of_its_own_is_not_served_publics_in_its_place(behind, caplog):
    """As an app that is moved into TENANT_APPS leaves it, whose migrations are written down in each schema already."""
    schema = behind.tenant.schema_name
    rows(f'ALTER TABLE "{schema}".chat_savedprompt RENAME TO elsewhere')
    with pytest.raises(CommandError, match=f"^Failed for {behind.slug};"):
        call_command("migrate_schemas", verbosity=0)
    assert f"chat_savedprompt: not in schema {schema}" in caplog.text
    assert "manage.py migrate_schemas --tenant --fake chat zero; then" in caplog.text
    with pytest.raises(TablesMissing):
        services.ensure_schema(behind.tenant)
    assert not is_current(behind.tenant)
    rows(f'ALTER TABLE "{schema}".elsewhere RENAME TO chat_savedprompt')
    call_command("migrate_schemas", verbosity=0)
    assert is_current(behind.tenant)
