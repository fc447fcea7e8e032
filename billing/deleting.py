"""An owner deletes their workspace: everything that is so at once, in one transaction.

Owns what that is. What follows is done by jobs (billing.closing). Must not call the authority: nobody waits for it
here, and its answer could be lost with the doors half shut.
"""

from __future__ import annotations

import logging
from datetime import datetime

from django.contrib.auth import logout
from django.db import transaction
from django.utils import timezone

from billing.closing import LAST_CALLS, purged_on
from billing.models import Account
from billing.tasks import shut_account
from tenants import services
from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.context import public_scope
from tenants.http import TenantRequest
from tenants.mail.outbox import send
from tenants.models import Tenant
from tenants.roles import Action, may
from tenants.users.models import User
from tenants.users.shutting import shut_everybody_out

logger = logging.getLogger(__name__)


class OnHoldAlready(Exception):
    """The account is frozen or closed: whoever froze it decides what becomes of it."""


def delete_workspace(request: TenantRequest) -> None:
    """Doors, account, sessions, keys, links and invitations; the trail, the mails and the job. All of it or nothing.

    Raises OnHoldAlready. The request's own session is over, too. Of two at once the second does nothing more.
    """
    _delete(request, request.tenant, actor=request.user.email)
    logout(request)


def _delete(request: TenantRequest, tenant: Tenant, *, actor: str) -> None:
    with transaction.atomic(durable=True):
        # First: who confirms an address, or takes an invitation, has that row and may want the account after it.
        shut_everybody_out()
        account = Account.objects.get(tenant_id=tenant.pk)
        is_first = Account.objects.filter(pk=account.pk, status=Account.Status.ACTIVE).update(
            status=Account.Status.CLOSED
        )
        if not is_first or not services.close(tenant):
            tenant.refresh_from_db(fields=["status"])
            if tenant.status == Tenant.Status.CLOSED:
                return
            raise OnHoldAlready
        record(Event.DELETED, request=request, target=tenant.slug)
        people = list(User.objects.filter(is_active=True).values_list("email", "role", "email_confirmed_at"))
        _tell(tenant, people, actor)
        shut_account.configure(schedule_at=timezone.now() + LAST_CALLS).defer(account_id=account.pk)
    logger.warning("deleted tenant=%s by its owner; its rows stay for now", tenant.slug)


def _tell(tenant: Tenant, people: list[tuple[str, str, datetime | None]], actor: str) -> None:
    """Who was in hears of it by mail, for the address says nothing any more. In the site's name: a workspace that is
    closed sends nothing.
    """
    with public_scope():
        for email, role, confirmed_at in people:
            send(
                email,
                "workspace_deleted",
                subject=f"{tenant.name} was deleted",
                is_counted=confirmed_at is None,
                workspace_name=tenant.name,
                slug=tenant.slug,
                actor=actor,
                is_owner=may(role, Action.DELETE_WORKSPACE),
                undone_until=purged_on(tenant),
            )
