"""Writing down in the trail that somebody failed to log in. What may be tried how often: tenants.users.guesses."""

from __future__ import annotations

from contextlib import suppress

from django.db import connection, transaction
from django.http import HttpRequest

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.context import tenant_or_public
from tenants.http import RateLimited
from tenants.limits import Rate, take
from tenants.spelling import normal_email
from tenants.users.models import User

# Of one address that was typed, and of all in one workspace: the trail is append-only, and strangers fill no disk by
# it. Each failure is in the log all the same.
OF_ONE = Rate("log-in-failed", burst=20, every=600.0)
OF_ALL = Rate("log-in-failed-all", burst=500, every=60.0)


def note_failure(request: HttpRequest, email: str) -> None:
    """A line for a member's address, none for any other; it takes as long for either, and the page says the same."""
    email = normal_email(email)
    tenant = tenant_or_public()
    if tenant is None:
        return
    with suppress(RateLimited):
        take(OF_ONE, tenant.pk, email)
        take(OF_ALL, tenant.pk)
        with transaction.atomic(durable=True):
            with connection.cursor() as cursor:
                # Who waited for the disk would be a member.
                cursor.execute("SET LOCAL synchronous_commit TO off")
            is_member = User.objects.with_email(email) is not None
            record(Event.LOG_IN_FAILED, request=request, target=email, step="password")
            transaction.set_rollback(not is_member)
