"""Whose a job is: each runs in its own tenant, is refused without one, and is never what was rolled back."""

import time
import uuid
from contextlib import suppress

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from procrastinate import App
from procrastinate.contrib.django import app as jobs_app
from procrastinate.exceptions import TaskNotFound
from procrastinate.testing import InMemoryConnector

from tenants.jobs import UNKNOWN_TRIES, AsyncTask, JobOfAnotherTenant, JobWithoutTenant, install, without_tenant
from tenants.models import Tenant
from tenants.users.models import User
from tests.support import job_tasks
from tests.support.factories import WorkspaceFactory
from tests.support.job_tasks import read
from tests.support.jobs import JobsProcess, insert, job_state, rows, until

pytestmark = pytest.mark.usefixtures("app")


@pytest.fixture(autouse=True)
def _empty_queue(app):
    rows("DELETE FROM public.procrastinate_jobs")


def of_ours() -> int:
    """How many jobs of these tests are in the queue: the jobs process adds its own, those of each minute."""
    return int(rows("SELECT count(*) FROM public.procrastinate_jobs WHERE task_name LIKE 'tests.%%'")[0][0])


@pytest.fixture(scope="module")
def jobs(app, database_url, authority):
    with JobsProcess(database_url=database_url, authority=authority) as running:
        yield running


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "notes")


def test_a_job_runs_in_its_tenant_and_not_in_the_neighbours(acme, globex, jobs):
    email = f"{uuid.uuid4().hex}@acme.example"
    with acme.scope():
        job_tasks.add_member.defer(email=email)
    until(lambda: email in members(acme), said=lambda: jobs.output)
    assert email not in members(globex)
    assert not User.objects.filter(email=email).exists()


def members(workspace):
    with workspace.scope():
        return set(User.objects.values_list("email", flat=True))


def test_jobs_of_many_tenants_on_few_threads_never_meet(acme, globex, jobs, path):
    for _ in range(15):
        for workspace in (acme, globex):
            with workspace.scope():
                job_tasks.note.defer(path=path)
        job_tasks.note_public.defer(path=path)
    until(lambda: len(read(path)) == 45, said=lambda: jobs.output)
    expected = [f"{each.tenant.pk} {each.tenant.schema_name}" for each in (acme, globex)] + ["None public"]
    assert {line: read(path).count(line) for line in set(read(path))} == dict.fromkeys(expected, 15)


def test_on_a_pool_too_a_job_finds_no_other_tenants_connection(acme, globex, database_url, authority, path):
    with JobsProcess(database_url=database_url, authority=authority, DB_POOL_MAX="4") as jobs:
        for workspace in (acme, globex) * 10:
            with workspace.scope():
                job_tasks.note.defer(path=path)
        until(lambda: len(read(path)) == 20, said=lambda: jobs.output)
        assert jobs.terminate() == 0
    expected = [f"{each.tenant.pk} {each.tenant.schema_name}" for each in (acme, globex)]
    assert sorted(read(path)) == sorted(expected * 10)


def test_enqueued_without_a_tenant_it_fails_at_once(path):
    with pytest.raises(JobWithoutTenant):
        job_tasks.note.defer(path=path)
    with pytest.raises(JobWithoutTenant):
        job_tasks.note.configure(schedule_in={"hours": 1}).defer(path=path)
    with pytest.raises(JobWithoutTenant):
        job_tasks.note.batch_defer({"path": path})
    with pytest.raises(JobWithoutTenant):
        jobs_app.configure_task("tests.support.job_tasks.note").defer(path=path)
    assert of_ours() == 0


@pytest.mark.parametrize("named", [None, "1", "acme"])
def test_what_is_no_tenants_id_is_no_tenant(path, named):
    with pytest.raises(JobWithoutTenant):
        job_tasks.note.defer(path=path, tenant_id=named)


def test_outside_any_tenant_a_job_may_name_one(acme, globex, jobs, path):
    job_tasks.note.batch_defer(*({"path": path, "tenant_id": each.tenant.pk} for each in (acme, globex)))
    until(lambda: len(read(path)) == 2, said=lambda: jobs.output)
    assert {line.split()[0] for line in read(path)} == {str(acme.tenant.pk), str(globex.tenant.pk)}


def test_inside_one_tenant_a_job_cannot_name_another(acme, globex, path):
    with acme.scope(), pytest.raises(JobOfAnotherTenant):
        job_tasks.note.defer(path=path, tenant_id=globex.tenant.pk)


def test_a_task_that_nobody_declared_is_refused(acme):
    with acme.scope(), pytest.raises(TaskNotFound):
        jobs_app.configure_task("chat.tasks.misspelt").defer()


def test_a_job_that_a_newer_release_put_there_goes_back_until_it_has_had_time(jobs):
    with transaction.atomic():
        new, old = insert("of_a_newer_release"), insert("of_a_release_long_gone")
        rows("UPDATE public.procrastinate_jobs SET attempts = %s WHERE id = %s", UNKNOWN_TRIES, old)
    until(lambda: job_state(old) == "failed", said=lambda: jobs.output)
    state = "SELECT status::text, attempts, scheduled_at > now() FROM public.procrastinate_jobs WHERE id = %s"
    until(lambda: rows(state, new) == [("todo", 1, True)], said=lambda: jobs.output)


def test_an_async_task_is_refused_when_it_is_declared_enqueued_or_run(acme, jobs):
    declaring = App(connector=InMemoryConnector())

    @declaring.task
    async def is_async() -> None: ...

    with pytest.raises(ImproperlyConfigured, match="async def"):
        install(declaring)
    with acme.scope(), pytest.raises(AsyncTask):
        job_tasks.is_async.defer()
    smuggled = insert("is_async", acme.tenant.pk)
    with acme.scope():
        lazy = job_tasks.is_lazy.defer()
    until(lambda: job_state(smuggled) == job_state(lazy) == "failed", said=lambda: jobs.output)
    assert jobs.output.count("tasks are plain functions") >= 2


def test_a_job_that_carries_no_tenant_does_not_run(jobs):
    job = insert("note")
    until(lambda: job_state(job) == "aborted", said=lambda: jobs.output)


def test_a_periodic_task_must_belong_to_no_tenant():
    declaring = App(connector=InMemoryConnector())

    @declaring.periodic(cron="* * * * *")
    @declaring.task
    def each_minute(timestamp: int) -> None: ...

    with pytest.raises(ImproperlyConfigured, match="without_tenant"):
        install(declaring)
    without_tenant(each_minute.func)
    install(declaring)


@pytest.mark.parametrize("state", ["suspended", "closed", "pending", "gone", "without a schema"])
def test_a_job_of_a_tenant_that_is_not_served_ends_without_a_retry(app, jobs, path, state):
    tenant = WorkspaceFactory(provisioned=state != "without a schema").tenant
    job_id = job_tasks.note.defer(path=path, tenant_id=10**9) if state == "gone" else None
    if state == "without a schema":
        Tenant.objects.filter(pk=tenant.pk).update(status="active")
    elif state != "gone":
        Tenant.objects.filter(pk=tenant.pk).update(status=state)
    job_id = job_id or job_tasks.note.defer(path=path, tenant_id=tenant.pk)
    until(lambda: job_state(job_id) == "aborted", said=lambda: jobs.output)
    assert rows("SELECT attempts FROM public.procrastinate_jobs WHERE id = %s", job_id) == [(1,)]
    assert read(path) == []


def test_the_queue_lives_in_public_alone(acme):
    found = rows("SELECT DISTINCT table_schema FROM information_schema.tables WHERE table_name LIKE 'procrastinate%%'")
    functions = rows(
        "SELECT DISTINCT pronamespace::regnamespace::text FROM pg_proc WHERE proname LIKE 'procrastinate%%'"
    )
    assert found == functions == [("public",)]


# --- transactions ---------------------------------------------------------------------------------------------------


def test_enqueued_in_a_transaction_that_is_rolled_back_it_never_was(acme, path):
    with suppress(ZeroDivisionError), acme.scope(), transaction.atomic():
        job_tasks.note.defer(path=path)
        raise ZeroDivisionError
    assert of_ours() == 0


def test_a_job_enqueues_another_in_its_own_transaction_and_for_its_own_tenant(acme, jobs, path):
    with acme.scope():
        failing = job_tasks.enqueue_and_fail.defer(path=path)
        until(lambda: job_state(failing) == "failed", said=lambda: jobs.output)
        job_tasks.enqueue.defer(path=path)
    until(lambda: read(path), said=lambda: jobs.output)
    time.sleep(0.5)
    assert read(path) == [f"{acme.tenant.pk} {acme.tenant.schema_name}"]
