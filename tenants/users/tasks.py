"""The jobs of a workspace's people, as procrastinate runs them. Each may run twice.

What a request only asks for, so that its answer tells nobody who is a member; and what goes by itself. Must not know
what a mail says (tenants.users.finding), how the directory is kept (tenants.users.directory), nor what a session is
(tenants.users.browsers).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils.crypto import constant_time_compare
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app
from procrastinate.exceptions import AlreadyEnqueued

from tenants.context import current_tenant
from tenants.jobs import without_tenant
from tenants.models import Membership, Tenant
from tenants.schema_versions import is_current
from tenants.sealing import unseal_facts
from tenants.users import addresses, browsers, directory, finding, links, setting_passwords
from tenants.users.models import User

logger = logging.getLogger(__name__)

RETRY = RetryStrategy(max_attempts=5, exponential_wait=2)
WORKSPACES_A_RUN = 200
RUN_SECONDS = 40.0


@app.task
@without_tenant
def mail_workspaces(*, sealed: str) -> None:
    finding.mail_workspaces(sealed)


@app.task
def mail_log_in_link(*, sealed: str) -> None:
    tenant = current_tenant()
    assert tenant is not None
    finding.mail_log_in_link(tenant, sealed)


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="fill_directory", lock="fill_directory")
@without_tenant
def fill_directory(timestamp: int) -> None:
    """Workspaces of before there was a directory: after an upgrade this finds them, so many a minute.

    In random order: with a fixed one, as many that always fail, or that nobody is in, would keep all others waiting.
    """
    missing = _current().filter(~Exists(Membership.objects.filter(tenant=OuterRef("pk"))))
    _refresh(missing.order_by("?")[:WORKSPACES_A_RUN])


@app.periodic(cron="29 4 * * *")
@app.task(queueing_lock="refresh_directory", lock="refresh_directory")
@without_tenant
def refresh_directory(timestamp: int) -> None:
    """Once a day all of them, a job for so many and then the next."""
    with suppress(AlreadyEnqueued):
        refresh_directory_after.defer(pk=0)


@app.task(queueing_lock="refresh_directory_after", lock="refresh_directory_after")
@without_tenant
def refresh_directory_after(*, pk: int) -> None:
    some = list(_current().filter(pk__gt=pk).order_by("pk")[:WORKSPACES_A_RUN])
    if not some:
        return
    last = _refresh(some)
    with suppress(AlreadyEnqueued):
        refresh_directory_after.defer(pk=last)


@app.periodic(cron="41 3 * * *")
@app.task(queueing_lock="forget_sessions_everywhere", lock="forget_sessions_everywhere")
@without_tenant
def forget_sessions_everywhere(timestamp: int) -> None:
    """Once a day, a job for each workspace."""
    tenants = Tenant.objects.filter(status=Tenant.Status.ACTIVE).values_list("pk", flat=True)
    if jobs := [{"tenant_id": pk} for pk in tenants]:
        forget_sessions.batch_defer(*jobs)


@app.task
def forget_sessions() -> None:
    """Sessions and links that have ended by themselves: nothing else deletes those."""
    browsers.forget_old()
    links.forget_old()


@app.task(retry=RETRY)
def mail_reset(*, sealed: str) -> None:
    email, address = unseal_facts(sealed)
    with transaction.atomic(durable=True):
        setting_passwords.ask_to_reset(email, address=address)


@app.task(retry=RETRY)
def mail_change(*, sealed: str) -> None:
    user_id, email, password_then = unseal_facts(sealed)
    with transaction.atomic(durable=True):
        user = User.objects.select_for_update(no_key=True).filter(pk=user_id, is_active=True).first()
        # A new password ends such links, and so also one that was asked for and is not made yet.
        if user and constant_time_compare(user.get_session_auth_hash(), password_then):
            addresses.ask_to_change(user, email)


def _current() -> QuerySet[Tenant]:
    found: QuerySet[Tenant] = Tenant.objects.filter(is_current(), status=Tenant.Status.ACTIVE)
    return found


def _refresh(tenants: Iterable[Tenant]) -> int:
    """The last one that there was time for. One that fails is logged, and does not stop the others."""
    until, last = time.monotonic() + RUN_SECONDS, 0
    for tenant in tenants:
        last = tenant.pk
        try:
            directory.refresh(tenant)
        except Exception:  # the edge of a job: whatever is wrong with one workspace, the others are in the directory
            logger.exception("The directory cannot be refreshed: workspace=%s", tenant.slug)
        if time.monotonic() > until:
            break
    return last
