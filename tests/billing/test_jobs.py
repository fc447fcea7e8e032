"""The jobs process: none is lost when it stops or dies, and the sweep beside them goes on. Its first use: sign-ups."""

import signal
import time
import uuid
from contextlib import suppress
from datetime import timedelta

import pytest
from django.contrib.auth.hashers import make_password
from django.db import transaction
from django.utils import timezone
from procrastinate.exceptions import AlreadyEnqueued

from billing import provisioning, signing_up, tasks
from billing.engine.loop import here, run
from billing.health import JOBS, jobs_ready
from billing.models import Account, Process
from billing.tasks import finish_sign_ups
from tenants.jobs import UnknownQueue
from tests.support import job_tasks
from tests.support.cast import PASSWORD
from tests.support.crash import assert_made_once
from tests.support.job_tasks import read
from tests.support.jobs import JobsProcess, insert, job_state, rows, silence_workers, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("app")]


@pytest.fixture(autouse=True)
def _empty_queue(app):
    rows("DELETE FROM public.procrastinate_jobs")
    # But for pytest's own engine: tests of other files, on the same database, look for it.
    Process.objects.filter(kind=JOBS).delete()


def processes():
    """Those that are known, but for pytest's own engine, which says every few seconds that it is there."""

    async def ours():
        return here().process_id

    return list(Process.objects.exclude(pk=run(ours())))


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "notes")


@pytest.fixture
def process(database_url, authority):
    return lambda **variables: JobsProcess(database_url=database_url, authority=authority, **variables)


@pytest.fixture
def jobs(process):
    with process() as running:
        yield running


# --- the process ----------------------------------------------------------------------------------------------------


def test_told_to_stop_it_finishes_what_runs(acme, process, path):
    with process() as jobs, acme.scope():
        job = job_tasks.linger.defer(path=path, seconds=3)
        until(lambda: read(path), said=lambda: jobs.output)
        assert jobs.terminate() == 0
    assert [line.split()[0] for line in read(path)] == ["began", "ended"]
    assert job_state(job) is None
    assert processes() == []


def test_told_to_stop_it_gives_back_what_lasts_too_long(acme, process, path):
    with process() as first, acme.scope():
        job = job_tasks.linger.defer(path=path, seconds=60)
        until(lambda: read(path), said=lambda: first.output)
        asked = time.monotonic()
        assert first.terminate() == 0
        assert 7 < time.monotonic() - asked < 50
        assert job_state(job) == "todo"
        rows("UPDATE public.procrastinate_jobs SET args = args || '{\"seconds\": 0}'")
        with process() as second:
            until(lambda: job_state(job) is None, said=lambda: second.output)
    assert read(path) == [f"began {first.process.pid}", f"began {second.process.pid}", f"ended {second.process.pid}"]
    assert processes() == []


def test_what_a_killed_process_ran_is_done_by_another_and_once(acme, process, path):
    with process() as second, process() as third:
        with process() as first, acme.scope():
            second.process.send_signal(signal.SIGSTOP)  # so that the first takes it
            third.process.send_signal(signal.SIGSTOP)
            job = job_tasks.linger.defer(path=path, seconds=60)
            until(lambda: read(path) == [f"began {first.process.pid}"], said=lambda: first.output)
            first.kill()
        rows("UPDATE public.procrastinate_jobs SET args = args || '{\"seconds\": 0}'")
        for each in (second, third):
            each.process.send_signal(signal.SIGCONT)
        silence_workers()
        until(lambda: job_state(job) is None, said=lambda: second.output + third.output)
        assert len(read(path)) == 3
        assert read(path)[1].split()[1] in (str(second.process.pid), str(third.process.pid))


def test_a_job_that_kills_its_process_each_time_is_given_up(acme, jobs, path):
    with transaction.atomic():  # seen before it says so, the job would be taken and run
        job = insert("note", acme.tenant.pk)
        rows("UPDATE public.procrastinate_jobs SET status = 'doing', attempts = 5 WHERE id = %s", job)
    until(lambda: job_state(job) == "failed", said=lambda: jobs.output)
    until(lambda: "given up" in jobs.output)


def test_a_job_that_is_to_be_tried_until_it_works_is_not_given_up_when_its_process_is_killed(acme, jobs):
    """A mail had failed five times, while its server was away, and the next process that tried it was killed."""
    insertion = """INSERT INTO public.procrastinate_jobs (queue_name, task_name, args, status, attempts)
        VALUES ('mails', 'tenants.mail.tasks.send_mail', %s, 'doing', 6) RETURNING id"""
    ((job,),) = rows(insertion, f'{{"tenant_id": {acme.tenant.pk}, "mail_id": 0}}')
    until(lambda: job_state(job) != "doing", said=lambda: jobs.output)
    ((state, waits),) = rows(
        "SELECT status::text, scheduled_at > now() + interval '1 hour' FROM public.procrastinate_jobs WHERE id = %s",
        job,
    )
    assert (state, waits) == ("todo", True)


def test_a_job_for_a_queue_that_no_worker_looks_into_is_refused(acme, path):
    with acme.scope(), pytest.raises(UnknownQueue, match="'nobodys'"):
        job_tasks.note.configure(queue="nobodys").defer(path=path)


def test_two_processes_side_by_side_do_each_job_once(acme, process, path):
    with process() as first, process() as second:
        both, deferred = {str(first.process.pid), str(second.process.pid)}, 0
        # One may be held up, and the other quick.
        while {line.split()[1] for line in read(path)} != both and deferred < 400:
            with acme.scope():
                job_tasks.linger.batch_defer(*({"path": path, "seconds": 0.1} for _ in range(40)))
            deferred += 40
            until(lambda most=2 * deferred: len(read(path)) >= most, said=lambda: first.output)
            until(lambda: rows("SELECT count(*) FROM public.procrastinate_jobs WHERE args ? 'seconds'") == [(0,)])
            assert len(read(path)) == 2 * deferred
    assert {line.split()[1] for line in read(path)} == both


def test_the_sweep_and_sign_ups_go_on_after_an_exception_and_while_every_thread_is_taken(acme, process, path, tmp_path):
    swept = tmp_path / "swept"
    with process(SWEEP_NOTES=str(swept)) as jobs:
        with acme.scope():
            job_tasks.linger.batch_defer(*({"path": path, "seconds": 60} for _ in range(8)))
        until(lambda: len(read(path)) == 4, said=lambda: jobs.output)
        account = ask()
        before = len(read(swept))
        until(lambda: len(read(swept)) >= before + 2, said=lambda: jobs.output)
        until(lambda: is_active(account), said=lambda: jobs.output)
        assert jobs.terminate() == 0
    assert "failed on purpose" in jobs.output


def test_the_process_outlives_a_database_that_drops_all_its_connections(acme, process, path):
    with process(PGAPPNAME="dropped") as jobs:
        those = "FROM pg_stat_activity WHERE application_name = 'dropped' AND datname = current_database()"
        until(lambda: rows(f"SELECT count(*) {those}")[0][0] >= 2, said=lambda: jobs.output)
        assert len(rows(f"SELECT pg_terminate_backend(pid) {those}")) >= 2
        with acme.scope():
            job_tasks.note.defer(path=path)
        until(lambda: read(path), said=lambda: jobs.output)
        assert jobs.process.poll() is None


def test_readyz_says_whether_jobs_run(client, process, settings):
    settings.READINESS_CHECKS = ["billing.health.jobs_ready"]
    assert jobs_ready() == "jobs: no process has been seen for 15 s"
    assert "jobs: no process has been seen for 15 s" in client.get("/readyz").json()["not_ready"]
    with process() as jobs:
        until(lambda: jobs_ready() is None, said=lambda: jobs.output)
        jobs.kill()
    assert jobs_ready() is None
    Process.objects.update(seen_at=timezone.now() - timedelta(seconds=16))
    assert jobs_ready() == "jobs: no process has been seen for 15 s"


# --- sign-ups --------------------------------------------------------------------------------------------------


def interrupted(**changes):
    slug = f"new-{uuid.uuid4().hex[:10]}"
    account = provisioning.sign_up(name="New", slug=slug, email="owner@new.example", password=PASSWORD, plan="trial")
    changes = {"created_at": timezone.now() - timedelta(seconds=31), **changes}
    Account.objects.filter(pk=account.pk).update(**changes)
    return account


def asked():
    slug = f"new-{uuid.uuid4().hex[:10]}"
    return {"name": "New", "slug": slug, "email": "owner@new.example", "plan": "trial"}


def ask():
    return signing_up.ask(**asked(), password=PASSWORD, mark=signing_up.new_mark(), address="192.0.2.1")


def is_active(account):
    account.refresh_from_db(fields=["status"])
    return account.status == Account.Status.ACTIVE


def test_a_sign_up_whose_jobs_process_is_killed_is_finished_by_the_next(process):
    """Killed where everything is made but the owner, who waits for the password."""
    with process() as first:
        account = signing_up._claim(**asked(), asked_by="x" * 64)
        until(lambda: Account.objects.exclude(sealed_key="").filter(pk=account.pk).exists(), said=lambda: first.output)
        first.kill()
    signing_up._keep_password(account, make_password(PASSWORD))
    assert not is_active(account)
    silence_workers()
    with process() as second:
        until(lambda: is_active(account), said=lambda: second.output)
        account.refresh_from_db()
        assert_made_once(account)


def test_an_interrupted_sign_up_is_finished(jobs):
    account = interrupted()

    def finished():
        # Other tests leave accounts behind too, and a run takes some of all.
        with suppress(AlreadyEnqueued):
            finish_sign_ups.defer(timestamp=int(time.time()))
        account.refresh_from_db()
        return account.status == Account.Status.ACTIVE

    until(finished, said=lambda: jobs.output)


def test_a_run_finishes_all_that_go_well_and_ends_after_enough_that_fail(monkeypatch):
    """After an outage of the authority customers wait: twenty a minute were few, and while it lasts all fail alike."""
    # None of another test's becomes old enough between the count and the run.
    Account.objects.filter(status=Account.Status.PENDING).update(created_at=timezone.now())
    for _ in range(3):
        interrupted()
    waiting = provisioning.unfinished().filter(created_at__lt=timezone.now() - tasks.INTERRUPTED_AFTER).count()
    tried = []
    monkeypatch.setattr(tasks, "FAILURES_A_RUN", 2)
    for goes_well, most in ((True, waiting), (False, 2)):
        monkeypatch.setattr(tasks, "try_to_provision", lambda account, told=goes_well: tried.append(account) or told)
        finish_sign_ups(timestamp=0)
        assert len(tried) == most
        tried.clear()


def test_a_sign_up_that_fails_does_not_stop_the_others_and_a_young_one_is_left_to_its_page():
    Account.objects.filter(status=Account.Status.PENDING).update(created_at=timezone.now())
    failing, other = interrupted(plan="no-such-plan"), interrupted()
    young = interrupted(created_at=timezone.now())
    finish_sign_ups(timestamp=0)
    for account in (failing, other, young):
        account.refresh_from_db()
    assert (failing.status, other.status, young.status) == ("pending", "active", "pending")
    # It would fail whoever finishes all accounts after us.
    Account.objects.filter(pk=failing.pk).update(plan="trial")
