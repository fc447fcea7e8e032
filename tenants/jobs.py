"""Whose a job is: it carries its tenant from where it is enqueued to where it runs.

Owns what every task has in common, whatever app declares it. Must not know a task, nor what a tenant may spend.
Tasks stand in an app's `tasks.py`, are plain functions, and are declared with procrastinate's own decorators:

    @app.task
    def send_report(*, month: str) -> None: ...            # current_tenant() is the one it was enqueued for

    with tenant_scope(acme):
        send_report.defer(month="2026-11")                 # in the caller's transaction: rolled back, it never was

    send_report.batch_defer(*({"tenant_id": pk, "month": "2026-11"} for pk in everybody))      # outside any tenant

Enqueued without a tenant it fails there and then; `@without_tenant`, below `@app.task`, marks those that have none.
A job may run more than once: what a killed process left is done again.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.db.models.expressions import RawSQL
from procrastinate import App, BaseRetryStrategy, JobContext, RetryDecision
from procrastinate.exceptions import ConnectorException, JobAborted, TaskNotFound
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager
from procrastinate.tasks import Task
from procrastinate.utils import utcnow
from procrastinate.worker import Worker

from tenants.context import current_tenant, enter
from tenants.models import Tenant
from tenants.schema_versions import begin_catching_up, is_current

logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])

# After which a job whose tenant is being brought up to date is looked at again.
BEHIND_SECONDS = 2
# A job of a task that this code does not have is left for five minutes to the newer release that put it there.
UNKNOWN_SECONDS = 5
UNKNOWN_TRIES = 60

# The argument in which a job keeps its tenant; the task's function does not get it.
TENANT_ID = "tenant_id"


class JobWithoutTenant(Exception):
    """A job was enqueued outside any tenant and names none."""


class JobOfAnotherTenant(Exception):
    """A job was enqueued inside one tenant and names another."""


class AsyncTask(Exception):
    """A task is a coroutine function: those share one connection and met other tenants' rows on it."""


class UnknownQueue(Exception):
    """A job was enqueued for a queue that no task names: no worker would ever take it."""


class TenantNotServed(JobAborted):
    """The job's tenant is not active, is gone, or was never named. Never retried: the job ends as `aborted`."""


class TenantIsBehind(Exception):
    """The schema of the job's tenant is behind the code, or its version is not known. The job waits until it is not."""


class _WaitsForTheSchema(BaseRetryStrategy):
    """The task's own strategy, but for a job whose tenant is being brought up to date: that one comes back."""

    def __init__(self, own: BaseRetryStrategy | None) -> None:
        self._own = own

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        if isinstance(exception, TenantIsBehind):
            return RetryDecision(retry_in={"seconds": BEHIND_SECONDS})
        return self._own.get_retry_decision(exception=exception, job=job) if self._own else None


def without_tenant(function: F) -> F:
    """Mark a task that belongs to no tenant: it runs on the public schema."""
    function.without_tenant = True  # type: ignore[attr-defined]
    return function


def has_tenant(task: Task[Any, Any, Any]) -> bool:
    return not getattr(task.func, "without_tenant", False)


def queues_of(app: App) -> set[str]:
    """The queues that tasks name, which are those that workers look into."""
    return {task.queue for task in app.tasks.values()}


def install(app: App) -> None:
    """Teach procrastinate's app about tenants. For PROCRASTINATE_ON_APP_READY, so that no process starts without."""
    for task in app.tasks.values():
        # The package's own task is one; it cannot be enqueued here either.
        if _is_async(task) and task.func.__module__ != "procrastinate.builtin_tasks":
            raise ImproperlyConfigured(f"The task {task.name} is `async def`: tasks are plain functions.")
    for periodic in app.periodic_registry.periodic_tasks.values():
        if has_tenant(periodic.task):
            raise ImproperlyConfigured(f"The periodic task {periodic.task.name} needs @without_tenant.")
    app.job_manager = TenantJobManager(app)
    usual = app.worker_defaults.get("task_middleware") or []
    app.worker_defaults = {**app.worker_defaults, "task_middleware": [*usual, in_its_tenant, refuse_async]}


class TenantJobManager(JobManager):
    """Enqueues for a tenant, or refuses. Every way to enqueue a task comes by here.

    It writes through Django's connection in a worker too, where the rest of the queue's work goes over the worker's
    own: a job that enqueues another and is rolled back would leave it behind otherwise.
    """

    def __init__(self, app: App) -> None:
        super().__init__(connector=app.connector)
        self._app = app
        self._writer = JobManager(connector=app.connector)

    def batch_defer_jobs(self, jobs: list[Job], connection: Any | None = None) -> list[Job]:
        return self._writer.batch_defer_jobs([self._with_tenant(job) for job in jobs], connection)

    async def batch_defer_jobs_async(self, jobs: list[Job], connection: Any | None = None) -> list[Job]:
        return await self._writer.batch_defer_jobs_async([self._with_tenant(job) for job in jobs], connection)

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        """A worker's last word on a job. During a deploy the old release also takes what only the new one can do."""
        if status is Status.FAILED and job.task_name not in self._app.tasks and job.attempts < UNKNOWN_TRIES:
            try:
                return await self.retry_job(job, retry_at=utcnow() + timedelta(seconds=UNKNOWN_SECONDS))
            except ConnectorException:
                logger.info("Job not given back, for another waits in its place: task=%s", job.task_name)
        return await super().finish_job(job, status, delete_job)

    def _with_tenant(self, job: Job) -> Job:
        task = self._app.tasks.get(job.task_name)
        if task is None:
            raise TaskNotFound(f"There is no task {job.task_name}.")
        if _is_async(task):
            raise AsyncTask(f"{task.name} is `async def`: tasks are plain functions.")
        if job.queue not in queues_of(self._app):
            raise UnknownQueue(
                f"{task.name} was enqueued for {job.queue!r}: name the queue in some @app.task(queue=…)."
            )
        if not has_tenant(task):
            return job
        return job.evolve(task_kwargs={**job.task_kwargs, TENANT_ID: _tenant_id(job)})


def _tenant_id(job: Job) -> int:
    bound = current_tenant()
    named = job.task_kwargs.get(TENANT_ID)
    if bound is None and not isinstance(named, int):
        raise JobWithoutTenant(f"{job.task_name} was enqueued outside any tenant. Use tenant_scope, or {TENANT_ID}=.")
    if bound is not None and named not in (None, bound.pk):
        raise JobOfAnotherTenant(f"{job.task_name} was enqueued for tenant {named} inside tenant {bound.pk}.")
    return int(named if bound is None else bound.pk)  # type: ignore[arg-type]  # an int, as just seen


def _is_async(task: Task[Any, Any, Any]) -> bool:
    return inspect.iscoroutinefunction(task.func) or inspect.isasyncgenfunction(task.func)


# --- where it runs --------------------------------------------------------------------------------------------------


def in_its_tenant(call_next: Callable[[], Any], context: JobContext, worker: Worker) -> Any:
    """Run the task inside its tenant, then leave the thread on public and without a connection.

    The thread runs another tenant's job next.
    """
    try:
        enter(_tenant_of(context))
        result = call_next()
        if inspect.isawaitable(result):
            # The worker would await it on its loop, outside the tenant.
            raise AsyncTask(f"{context.job.task_name} returned an awaitable: tasks are plain functions.")
        return result
    finally:
        enter(None)
        connection.close()


async def refuse_async(call_next: Callable[[], Any], context: JobContext, worker: Worker) -> Any:
    """A job of an async task that got into the queue some other way: `in_its_tenant` wraps plain functions only."""
    raise AsyncTask(f"{context.job.task_name} is `async def`: tasks are plain functions.")


def _tenant_of(context: JobContext) -> Tenant | None:
    """The tenant to enter; None for a task that has none."""
    enter(None)
    if not has_tenant(context.task):
        return None
    tenant_id = context.job.task_kwargs.pop(TENANT_ID, None)
    # A schema that is not there is no error for Postgres: the job would read and write public's tables.
    there = RawSQL("EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = tenants_tenant.schema_name)", ())
    found = Tenant.objects.annotate(schema_exists=there, is_current=is_current())
    tenant: Tenant | None = found.filter(pk=tenant_id).first()
    if tenant is None or tenant.status != Tenant.Status.ACTIVE or not tenant.schema_exists:
        state = tenant.status if tenant and tenant.schema_exists else "not there"
        logger.warning("Job ended: task=%s job=%s tenant=%s is %s", context.task.name, context.job.id, tenant_id, state)
        raise TenantNotServed(f"Tenant {tenant_id} is {state}.")
    if not tenant.is_current:
        _wait_for_the_schema(context, tenant)
    return tenant


def _wait_for_the_schema(context: JobContext, tenant: Tenant) -> NoReturn:
    if not isinstance(context.task.retry_strategy, _WaitsForTheSchema):
        context.task.retry_strategy = _WaitsForTheSchema(context.task.retry_strategy)
    begin_catching_up(tenant.pk)
    raise TenantIsBehind(f"Tenant {tenant.pk} is being brought up to date; {context.task.name} waits for it.")
