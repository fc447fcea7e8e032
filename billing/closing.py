"""What happens to a deleted workspace after its doors are shut, and how an operator opens them again.

Owns the order of the steps. Each may be repeated, and killed anywhere; no HTTP is inside a transaction. `shut` comes
once no call is under way: the authority refuses a suspended tenant's commits, too, and what a call has used would be
lost. `purge` comes after WORKSPACE_PURGE_DAYS. Until then the tenant at the authority is suspended, which can be
undone; closed, it can not.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from billing import admin_client
from billing.ledgers import ledgers_of
from billing.models import Account, Hold
from tenants import services
from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.context import tenant_scope
from tenants.locks import if_nobody_is
from tenants.models import Tenant
from tenants.users import directory

logger = logging.getLogger(__name__)

# A request that was let in before the doors were shut has written its hold by then, or never will.
LAST_CALLS = timedelta(seconds=60)


class NotYet(Exception):
    """The step has to wait, for a reason that passes; the message says which."""


class CannotReopen(Exception):
    """It is too late, or there is nothing to reopen; the message says which."""


def closed() -> QuerySet[Account]:
    """The accounts of deleted workspaces of which anything is left."""
    return Account.objects.select_related("tenant").filter(
        status=Account.Status.CLOSED, tenant__closed_at__isnull=False, tenant__purged_at=None
    )


def due(now: datetime) -> QuerySet[Account]:
    """Those whose time is over."""
    return closed().filter(tenant__closed_at__lte=now - timedelta(days=settings.WORKSPACE_PURGE_DAYS))


def purged_on(tenant: Tenant) -> datetime:
    """Until when an operator can reopen it."""
    return _closed_at(tenant) + timedelta(days=settings.WORKSPACE_PURGE_DAYS)


def _closed_at(tenant: Tenant) -> datetime:
    assert tenant.closed_at is not None
    return tenant.closed_at


def shut(account: Account) -> None:
    """Suspend the closed account's tenant at the authority, once its calls are settled. Raises NotYet."""
    with if_nobody_is(_lock(account)) as alone:
        if not alone:
            raise NotYet("another process is at it")
        found = closed().filter(pk=account.pk).first()
        if found is None:  # reopened or purged meanwhile
            return
        if _closed_at(found.tenant) + LAST_CALLS > timezone.now():
            raise NotYet("a last call may have just been let in")
        _wait_for_calls(found)
        _wait_for_held_money(found)
        if admin_client.tenant_status(found.subject_tenant) == "ACTIVE":
            admin_client.set_tenant_status(found.subject_tenant, "SUSPENDED")


def purge(account: Account) -> None:
    """Close the tenant at the authority, then drop its rows and files, and what is personal in public. For good.

    Raises NotYet while a call is not settled: its line has to be written first. Of a closed tenant the sweep takes it
    off the books.
    """
    with if_nobody_is(_lock(account)) as alone:
        if not alone:
            raise NotYet("another process is at it")
        found = due(timezone.now()).filter(pk=account.pk).first()
        if found is None:
            return
        admin_client.set_tenant_status(found.subject_tenant, "CLOSED")
        _wait_for_calls(found)
        Account.objects.filter(pk=found.pk).update(owner_email="", owner_password="", sealed_key="")
        # Last, for what is marked as purged is not looked at again.
        services.purge(found.tenant)
    logger.info("purged tenant=%s account=%s", account.tenant_id, account.pk)


def reopen(account: Account) -> None:
    """Undo a deletion. Sessions, keys, links and invitations stay ended. Raises CannotReopen or a BudgetError."""
    with if_nobody_is(_lock(account)) as alone:
        if not alone:
            raise CannotReopen("It is being worked on just now: try again in a minute.")
        found = closed().filter(pk=account.pk).first()
        if found is None:
            raise CannotReopen("It is not closed, or its rows are dropped already.")
        if admin_client.tenant_status(found.subject_tenant) == "CLOSED":
            raise CannotReopen("It is being dropped: its budget at the authority is closed, and that is for good.")
        # First, so that its doors open only when it can pay.
        admin_client.set_tenant_status(found.subject_tenant, "ACTIVE")
        # Nobody has migrated it meanwhile.
        services.catch_up(found.tenant)
        with tenant_scope(found.tenant), transaction.atomic(durable=True):
            services.reopen(found.tenant)
            Account.objects.filter(pk=found.pk, status=Account.Status.CLOSED).update(status=Account.Status.ACTIVE)
            record(Event.REOPENED, via="command", target=found.tenant.slug)
            directory.refresh(found.tenant)
    account.refresh_from_db(fields=["status"])
    account.tenant.refresh_from_db(fields=["status", "closed_at"])


def _wait_for_calls(account: Account) -> None:
    if under_way := Hold.objects.filter(account=account).count():
        raise NotYet(f"calls are under way: {under_way}")


def _wait_for_held_money(account: Account) -> None:
    """A call has its row from the moment its model is called, and its money before: for as long as its lease."""
    if any(ledger.reserved for ledger in ledgers_of([account.scope])):
        raise NotYet("money is held for a call")


def _lock(account: Account) -> str:
    return f"closing:{account.pk}"
