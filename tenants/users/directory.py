"""Which workspaces an address is in: what find-my-workspaces looks up, on the public side.

Owns the table Membership. A row is written in the transaction that lets a member in, moves their address or shows them
out, so that the two cannot differ; `refresh` mends what a restored backup or another SECRET_KEY has parted. The digest
is keyed: the table is no list of who is where.
"""

from __future__ import annotations

from django.db.models import QuerySet
from django.utils.crypto import salted_hmac

from tenants.context import public_scope, tenant_scope
from tenants.models import Membership, Tenant
from tenants.spelling import normal_email
from tenants.users.models import User


def note(tenant: Tenant, email: str) -> None:
    """Somebody with this address is in."""
    Membership.objects.get_or_create(tenant=tenant, email_digest=_digest(email))


def forget(tenant: Tenant, email: str) -> None:
    """Nobody with this address is in any more."""
    Membership.objects.filter(tenant=tenant, email_digest=_digest(email)).delete()


def workspaces_of(email: str) -> QuerySet[Tenant]:
    """The active workspaces in which somebody has this address, by name."""
    found: QuerySet[Tenant] = Tenant.objects.filter(
        memberships__email_digest=_digest(email), status=Tenant.Status.ACTIVE
    )
    return found.order_by("name", "pk")


def refresh(tenant: Tenant) -> None:
    """Make the tenant's rows say what its schema says.

    What is known is read first: read last, a row of somebody who came in between would be taken for too much.
    """
    rows = Membership.objects.filter(tenant=tenant)
    with public_scope():
        known = {bytes(digest) for digest in rows.values_list("email_digest", flat=True)}
    with tenant_scope(tenant, alone=True):
        there = {_digest(email) for email in User.objects.filter(is_active=True).values_list("email", flat=True)}
    with public_scope():
        rows.filter(email_digest__in=known - there).delete()
        Membership.objects.bulk_create(
            [Membership(tenant=tenant, email_digest=digest) for digest in there - known], ignore_conflicts=True
        )


def _digest(email: str) -> bytes:
    return salted_hmac("tenants.directory", normal_email(email), algorithm="sha256").digest()
