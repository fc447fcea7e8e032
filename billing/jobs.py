"""The jobs process: procrastinate's workers, and two timers of its own outside the queue.

Owns how it starts, lives and ends. Must not know what a task or the sweep does. Sign-ups have a worker of their own:
a customer waits for each, and must not wait behind jobs that hang. So have mails: where the mail server hangs, they do.
Outside the queue are the sweep of holds (money must not wait behind a job that hangs, nor behind the lock of one that
was killed) and the heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection
from django.db.models.functions import Now
from django.utils.module_loading import import_string
from procrastinate import App, PsycopgConnector, RetryDecision
from procrastinate.contrib.django import app as procrastinate_app
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job, Status
from procrastinate.utils import utcnow
from procrastinate.worker import Worker

from billing.health import JOBS
from billing.models import Process
from billing.tasks import SIGN_UPS
from tenants.connections import own_connection_params
from tenants.context import enter
from tenants.jobs import queues_of
from tenants.mail.tasks import MAILS

logger = logging.getLogger(__name__)

CONCURRENCY = 4
SIGN_UPS_AT_ONCE = 3  # most of one is waiting for the password's hash, the authority and Postgres
MAILS_AT_ONCE = 2
INTERVAL = 5.0  # of the sweep, the heartbeat, and the look at stalled jobs
# How often the sign-ups' worker looks for what is to be tried again. New ones wake it by NOTIFY.
SIGN_UPS_INTERVAL = 1.0
GRACE = 8.0  # for what runs when SIGTERM comes
# A worker that ends stops its heartbeat, then takes up to GRACE: it must not be taken for dead within that.
WORKER_SILENT = 20.0
# A job that was tried so often and then left behind is taken to kill its process, unless it is to be tried for longer.
ATTEMPTS = 5
KEPT_HOURS = 30 * 24  # of jobs that failed; those that succeeded are deleted at once


def run() -> None:
    """Until SIGTERM or SIGINT. Then what runs is finished, or given back for another process."""
    procrastinate_app.perform_import_paths()  # type: ignore[no-untyped-call]  # theirs
    with procrastinate_app.replace_connector(own_connector()) as app:
        asyncio.run(_serve(app))


def own_connector() -> PsycopgConnector:
    """As Django's connector makes one for workers, but small, and without Django's pool among its parameters."""
    return PsycopgConnector(kwargs=own_connection_params(), min_size=1, max_size=3, timeout=5, configure=_autocommit)


async def _autocommit(own: psycopg.AsyncConnection[Any]) -> None:
    """One round trip a statement instead of three: most of what an idle process does."""
    await own.set_autocommit(True)


async def _serve(app: App) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A thread for each job that may run, and one for the wait at the end: by itself asyncio has six on two cores.
    threads = ThreadPoolExecutor(CONCURRENCY + SIGN_UPS_AT_ONCE + MAILS_AT_ONCE + 1)
    asyncio.get_running_loop().set_default_executor(threads)
    process = uuid.uuid4()
    sweep = Timer("sweep", lambda: import_string(settings.SWEEP)())
    heartbeat = Timer("heartbeat", lambda: beat(process), at_end=lambda: forget(process))
    async with app.open_async():
        logger.info("Jobs: started, process=%s", process)
        sweep.start()
        heartbeat.start()
        housekeeping = asyncio.create_task(_keep_house(app))
        working = (_work(partial(make, app), stop) for make in (general_worker, sign_up_worker, mail_worker))
        ended = await asyncio.gather(*working, _end_of(sweep, stop))
        housekeeping.cancel()
        heartbeat.stop()
        heartbeat.join(1)
        logger.info("Jobs: stopped")
        if not all(ended):
            # A thread cannot be stopped, and Python would wait for it.
            logging.shutdown()
            os._exit(0)


async def _work(make: Callable[[], Worker], stop: asyncio.Event) -> bool:
    """A worker, and another when it fails, until `stop` is set. Whether every job has ended by then."""
    while True:
        worker = make()
        running = asyncio.create_task(worker.run())  # type: ignore[no-untyped-call]  # theirs
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            worker.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait({running}, timeout=GRACE)
            if not running.done() and worker.worker_id is not None:
                await _give_back(worker.app, worker.worker_id)
            return running.done()
        # The database was away, for example. The timers go on meanwhile.
        logger.error("The worker ended by itself; another follows", exc_info=running.exception())
        await asyncio.wait({stopping}, timeout=INTERVAL)


def general_worker(app: App) -> Worker:
    """For every queue that a task names, but those that have a worker of their own."""
    return _worker(app, queues=sorted(queues_of(app) - {SIGN_UPS, MAILS}), concurrency=CONCURRENCY)


def sign_up_worker(app: App) -> Worker:
    return _worker(app, queues=[SIGN_UPS], concurrency=SIGN_UPS_AT_ONCE, fetch_job_polling_interval=SIGN_UPS_INTERVAL)


def mail_worker(app: App) -> Worker:
    return _worker(app, queues=[MAILS], concurrency=MAILS_AT_ONCE)


def _worker(app: App, **options: Any) -> Worker:
    return Worker(
        app=app,
        **options,
        delete_jobs="successful",
        install_signal_handlers=False,
        update_heartbeat_interval=INTERVAL,
        stalled_worker_timeout=WORKER_SILENT,
        task_middleware=app.worker_defaults.get("task_middleware"),
    )


async def _give_back(app: App, worker_id: int) -> None:
    """Put what this worker still runs back into the queue, to be started when this process is gone."""
    try:
        for job in await app.job_manager.list_jobs_async(status=Status.DOING.value, worker_id=worker_id):
            logger.warning("Job given back: task=%s job=%s", job.task_name, job.id)
            with contextlib.suppress(ConnectorException):  # it has ended just now
                await app.job_manager.retry_job(job, retry_at=utcnow() + timedelta(seconds=2))
        await app.job_manager.unregister_worker(worker_id)
    except Exception:  # the database is away: another process finds them left behind
        logger.exception("Jobs cannot be given back")


async def _end_of(sweep: Timer, stop: asyncio.Event) -> bool:
    """Whether the sweep that ran when `stop` was set has ended in time."""
    await stop.wait()
    sweep.stop()
    await asyncio.to_thread(sweep.join, GRACE)
    return not sweep.is_alive()


# --- jobs of processes that are gone --------------------------------------------------------------------------------


async def _keep_house(app: App) -> None:
    hours = 0.0
    while True:
        try:
            await retry_stalled(app)
            if time.monotonic() > hours:
                hours = time.monotonic() + 3600
                await app.job_manager.delete_old_jobs(
                    KEPT_HOURS, include_failed=True, include_cancelled=True, include_aborted=True
                )
        except Exception:  # the edge of the process: the database may be away, and comes back
            logger.exception("Stalled jobs cannot be looked for; the next look is in %s s", INTERVAL)
        await asyncio.sleep(INTERVAL)


async def retry_stalled(app: App) -> None:
    """Put jobs of silent workers back into the queue.

    One process at a time: of two, the second could put back a job that has been started again by then.
    """
    assert isinstance(app.connector, PsycopgConnector)
    async with app.connector.pool.connection() as own, own.transaction():
        found = await own.execute("SELECT pg_try_advisory_xact_lock(hashtextextended('jobs:stalled', 0))")
        if await found.fetchone() != (True,):
            return
        for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=WORKER_SILENT):
            again = _again(app, job)
            log = logger.warning if again else logger.error
            log("Job left behind%s: task=%s job=%s", "" if again else ", given up", job.task_name, job.id)
            with contextlib.suppress(ConnectorException):  # its worker was only slow, and has ended it
                if again:
                    await app.job_manager.retry_job(job, retry_at=again.retry_at)
                else:
                    await app.job_manager.finish_job(job, Status.FAILED, delete_job=False)


class LeftBehind(Exception):
    """The process that ran the job is gone. Why is not known."""


def _again(app: App, job: Job) -> RetryDecision | None:
    """When a job that was left behind is to be started again; None where it is given up.

    `attempts` counts tries that failed, too: a mail that had waited for its server was lost with the next process that
    was killed. So a task that goes on after so many failures goes on here, after the same wait.
    """
    if job.attempts < ATTEMPTS:
        return RetryDecision()
    strategy = app.tasks[job.task_name].retry_strategy if job.task_name in app.tasks else None
    return strategy.get_retry_decision(exception=LeftBehind(), job=job) if strategy else None


# --- the timers -----------------------------------------------------------------------------------------------------


class Timer(threading.Thread):
    """Calls `act` every few seconds until stopped, whatever it raises; each time on public and a fresh connection."""

    def __init__(self, name: str, act: Callable[[], Any], *, at_end: Callable[[], Any] | None = None) -> None:
        super().__init__(name=name, daemon=True)
        self._act, self._at_end = act, at_end
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            self._safely(self._act)
            self._over.wait(INTERVAL)
        if self._at_end:
            self._safely(self._at_end)

    def stop(self) -> None:
        self._over.set()

    def _safely(self, act: Callable[[], Any]) -> None:
        try:
            try:
                enter(None)
                act()
            finally:
                connection.close()
        except Exception:  # the edge of the process: a timer that ends is worse than any of its failures
            logger.exception("The %s failed; the next is in %s s", self.name, INTERVAL)


def beat(process: uuid.UUID) -> None:
    if not Process.objects.filter(pk=process).update(seen_at=Now()):
        Process.objects.create(pk=process, kind=JOBS)
        # What killed processes left. Old enough that nobody asks who they were.
        Process.objects.filter(kind=JOBS, seen_at__lt=Now() - timedelta(hours=1)).delete()


def forget(process: uuid.UUID) -> None:
    Process.objects.filter(pk=process).delete()
