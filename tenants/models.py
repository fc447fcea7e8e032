"""A tenant and its hosts, the states that schemas can be in, and what doors have counted (public schema).

Tenants are written by tenants.services and tenants.schema_versions alone, limits by tenants.limits.
"""

from __future__ import annotations

from typing import NoReturn

from django.contrib.postgres.functions import RandomUUID
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import Q
from django.db.models.functions import Cast, Left, Replace
from django_tenants.models import DomainMixin, TenantMixin


class Tenant(TenantMixin):  # type: ignore[misc]  # django-tenants carries no types
    """A customer's workspace: one slug, one Postgres schema.

    The schema's name is opaque and never used twice: a name used again after deletion would hand a new customer the
    old one's rows. Saving never makes a schema: `tenants.services.ensure_schema` does, and may be repeated.
    """

    class Status(models.TextChoices):
        PENDING = "pending", "Being set up"
        ACTIVE = "active", "Active"
        SUSPENDED = "suspended", "Suspended"
        CLOSED = "closed", "Closed"

    auto_create_schema = False
    auto_drop_schema = False

    id = models.BigAutoField(primary_key=True)
    slug = models.CharField(max_length=32, unique=True)
    name = models.CharField(max_length=100)
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    created_at = models.DateTimeField(auto_now_add=True)
    # A SchemaVersion's number, "at least this"; null is unknown, and taken for behind. No foreign key: a tenant is
    # read with each request, and its version is compared in that very statement.
    schema_version = models.BigIntegerField(null=True, editable=False)
    # What the workspace's keys call it: unlike its slug it never changes, and unlike its number it tells nothing.
    public_id = models.CharField(
        max_length=12,
        unique=True,
        editable=False,
        # 48 random bits in hex, made by the database: also for rows that code of before inserts.
        db_default=Left(
            Replace(Cast(RandomUUID(), models.TextField()), models.Value("-"), models.Value("")), models.Value(12)
        ),
    )
    time_zone = models.CharField(max_length=64, default="UTC", db_default="UTC")
    requires_second_step = models.BooleanField(default=False, db_default=False)
    # The models that its people and programs may call, by name; null: all that can be called here.
    allowed_models = models.JSONField(null=True)
    # The origins whose pages may ask its API from a browser, as browsers write them; null: none.
    allowed_origins = models.JSONField(null=True)
    # What its owner has set for its chat, by name, as chat.wishes reads it; empty: nothing.
    chat_settings = models.JSONField(default=dict, db_default=models.Value({}, models.JSONField()))
    closed_at = models.DateTimeField(null=True)
    # When its rows were dropped, some time after it was closed.
    purged_at = models.DateTimeField(null=True)

    class Meta:
        # A browser asks whether some workspace has named its page's origin, before it has a key to show.
        indexes = [
            GinIndex(fields=["allowed_origins"], condition=Q(allowed_origins__isnull=False), name="tenant_origins")
        ]

    def __str__(self) -> str:
        return self.slug

    def activate(self) -> NoReturn:
        """Also what `with tenant:` does. django-tenants' keeps what to go back to in one list for all threads, so that
        two at once end on each other's tenant; and it binds no tenant, only a connection.
        """
        raise TypeError(
            "Use tenants.context.tenant_scope(tenant), a block: it binds the tenant, and ends where it began."
        )

    __enter__ = activate


class Domain(DomainMixin):  # type: ignore[misc]
    """A host that leads to a tenant."""

    id = models.BigAutoField(primary_key=True)

    def __str__(self) -> str:
        return str(self.domain)


class Membership(models.Model):
    """That somebody with an address is in a workspace: where to look, for who has forgotten. Nothing is opened by it.

    Written with the member's own row, in one transaction (tenants.users.directory). The address is a keyed digest.
    """

    id = models.BigAutoField(primary_key=True)
    tenant = models.ForeignKey(Tenant, on_delete=models.CASCADE, related_name="memberships")
    email_digest = models.BinaryField(max_length=32)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["email_digest", "tenant"], name="membership_once_for_each_workspace")
        ]

    def __str__(self) -> str:
        return f"somebody in {self.tenant_id}"


class Limit(models.Model):
    """How often somebody whom only a keyed digest names did something; see tenants.limits, whose SQL alone reads it."""

    key = models.BinaryField(primary_key=True)
    free_at = models.DateTimeField()
    count = models.IntegerField()
    told = models.FloatField()
    kept_until = models.DateTimeField()

    def __str__(self) -> str:
        return bytes(self.key).hex()[:12]


class SchemaVersion(models.Model):
    """A state of the tenants' migrations that some process has migrated to; the later one has the higher number.

    `statements` make a new schema of that state (tenants.schema_template): null is not recorded yet, an empty list
    that they cannot be replayed and migrations are used.
    """

    id = models.BigAutoField(primary_key=True)
    fingerprint = models.CharField(max_length=64, unique=True)
    statements = models.JSONField(null=True)
    made_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.pk} ({self.fingerprint[:8]})"
