"""The jobs process as production runs it, with tasks made for tests, against the test's own parts."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Self

from django.db import connection
from procrastinate.contrib.django import app as procrastinate_app
from procrastinate.periodic import PeriodicRegistry

from billing import jobs
from tests.support.authority import authority_variables
from tests.support.roles import command_variables
from tests.support.said import said_so_far
from tests.support.web import ROOT


class JobsProcess:
    """`with JobsProcess(database_url=…, authority=…) as jobs:` works until the block ends."""

    def __init__(self, *, database_url: str, authority, **variables: str) -> None:
        self._env = {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.support.settings_jobs",
            **command_variables(database_url),
            **authority_variables(authority),
            **variables,
        }

    def __enter__(self) -> Self:
        self._log: Any = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "jobs"], cwd=ROOT, env=self._env, stdout=self._log, stderr=self._log
        )
        until(lambda: "Jobs: started" in self.output, said=lambda: self.output)
        return self

    @property
    def output(self) -> str:
        return said_so_far(self._log)

    def terminate(self) -> int:
        """Ask it to end, as a supervisor does; give its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            try:
                self.terminate()
            except subprocess.TimeoutExpired:
                self.kill()


class SignUpWorker(threading.Thread):
    """The worker of sign-ups alone, in this process: it sees what a test patches, and starts in a moment."""

    def __init__(self) -> None:
        super().__init__(name="sign-ups", daemon=True)
        self._begun = threading.Event()

    def run(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        # An app beside the real one, without its clock: that would enqueue what no test has asked for.
        app = procrastinate_app.with_connector(jobs.own_connector())
        app.periodic_registry = PeriodicRegistry()
        async with app.open_async():
            self._worker = jobs.sign_up_worker(app)
            self._begun.set()
            await self._worker.run()

    def __enter__(self) -> Self:
        procrastinate_app.perform_import_paths()
        self.start()
        assert self._begun.wait(60)
        return self

    def __exit__(self, *exc: object) -> None:
        self._worker.stop()
        self.join(60)
        assert not self.is_alive()


def until(seen, *, seconds: float = 60, said=lambda: "") -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, f"not seen in {seconds} s: {said()[-3000:]}"
        time.sleep(0.05)


def rows(sql: str, *values) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


def job_state(job_id: int) -> str | None:
    """None once it has succeeded: such jobs are deleted."""
    found = rows("SELECT status::text FROM public.procrastinate_jobs WHERE id = %s", job_id)
    return found[0][0] if found else None


def insert(task: str, tenant_id: int | None = None) -> int:
    """A job that comes into the queue past all that would refuse it."""
    args = f'{{"tenant_id": {tenant_id}}}' if tenant_id else "{}"
    sql = "INSERT INTO public.procrastinate_jobs (queue_name, task_name, args) VALUES ('default', %s, %s) RETURNING id"
    return int(rows(sql, f"tests.support.job_tasks.{task}", args)[0][0])


def silence_workers() -> None:
    """As if all that has happened until now were a minute ago: who is alive writes again within 5 s."""
    rows("UPDATE public.procrastinate_workers SET last_heartbeat = last_heartbeat - interval '1 minute'")
