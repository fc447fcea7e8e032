"""The authority's tables: who may ask, what each budget holds, what was promised and what was answered.

They live in a Postgres schema of their own, `authority`. Ledgers are written by the functions in `sql/` and by nothing
else: no code here or in the planes saves a Ledger or a Reservation through the ORM. The constraints below are the last
line: a wrong function fails instead of losing money.

Rows written by running calls carry no foreign key to their tenant: its check locks the tenant's row, and every call of
a tenant would write to that one row. Tenants are never deleted, so there is nothing for it to catch.
"""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q, Value
from django.db.models.functions import Least, Now
from django.db.models.lookups import Exact, GreaterThanOrEqual, IsNull


class Policy(models.TextChoices):
    """What a commit above its estimate may do."""

    REJECT = "REJECT"
    ALLOW_IF_AVAILABLE = "ALLOW_IF_AVAILABLE"
    ALLOW_WITH_OVERDRAFT = "ALLOW_WITH_OVERDRAFT"


class Tenant(models.Model):
    """A customer of the authority. Its id is never given to another, not even after it was closed."""

    class Status(models.TextChoices):
        ACTIVE = "ACTIVE"
        SUSPENDED = "SUSPENDED"
        CLOSED = "CLOSED"

    tenant_id = models.TextField(unique=True, db_collation="C")
    name = models.TextField(db_collation="C")
    status = models.TextField(choices=Status.choices, default=Status.ACTIVE)
    parent_tenant_id = models.TextField(null=True)  # noqa: DJ001 - absent and empty differ on the wire
    metadata = models.JSONField(null=True)
    default_commit_overage_policy = models.TextField(choices=Policy.choices, default=Policy.ALLOW_IF_AVAILABLE)
    default_reservation_ttl_ms = models.BigIntegerField(default=60_000)
    max_reservation_ttl_ms = models.BigIntegerField(default=3_600_000)
    max_reservation_extensions = models.BigIntegerField(default=10)
    reservation_expiry_policy = models.TextField(null=True)  # noqa: DJ001
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(null=True)
    suspended_at = models.DateTimeField(null=True)
    closed_at = models.DateTimeField(null=True)

    objects: ClassVar[models.Manager[Tenant]] = models.Manager()

    class Meta:
        db_table = "tenant"

    def __str__(self) -> str:
        return self.tenant_id


class ApiKey(models.Model):
    """A key of one tenant. Only the SHA-256 of the secret is kept; the secret has 192 random bits, so no salt is
    needed and a look-up costs microseconds where a password hash would cost a quarter of a second."""

    class Status(models.TextChoices):
        ACTIVE = "ACTIVE"
        REVOKED = "REVOKED"

    key_id = models.TextField(unique=True)
    prefix = models.TextField(unique=True)
    digest = models.BinaryField()
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="keys")
    name = models.TextField(db_collation="C")
    description = models.TextField(null=True)  # noqa: DJ001
    permissions = models.JSONField(default=list)
    scope_filter = models.JSONField(null=True)
    metadata = models.JSONField(null=True)
    status = models.TextField(choices=Status.choices, default=Status.ACTIVE)
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)
    revoked_reason = models.TextField(null=True)  # noqa: DJ001

    objects: ClassVar[models.Manager[ApiKey]] = models.Manager()

    class Meta:
        db_table = "api_key"

    def __str__(self) -> str:
        return self.key_id


class Ledger(models.Model):
    """One budget: a scope in one unit. `remaining` is computed by the database, so it cannot drift."""

    class Status(models.TextChoices):
        ACTIVE = "ACTIVE"
        FROZEN = "FROZEN"
        CLOSED = "CLOSED"

    ledger_id = models.UUIDField(unique=True, default=uuid.uuid4)
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="ledgers")
    scope = models.TextField(db_collation="C")  # byte order: a parent sorts before its children, the lock order
    unit = models.TextField()
    status = models.TextField(choices=Status.choices, db_default=Status.ACTIVE)
    allocated = models.BigIntegerField()
    reserved = models.BigIntegerField(db_default=0)
    spent = models.BigIntegerField(db_default=0)
    debt = models.BigIntegerField(db_default=0)
    overdraft_limit = models.BigIntegerField(db_default=0)
    remaining = models.GeneratedField(
        expression=F("allocated") - F("spent") - F("reserved") - F("debt"),
        output_field=models.BigIntegerField(),
        db_persist=True,
    )
    is_over_limit = models.BooleanField(db_default=False)
    caps = models.JSONField(null=True)
    commit_overage_policy = models.TextField(null=True)  # noqa: DJ001
    rollover_policy = models.TextField(null=True)  # noqa: DJ001
    period_start = models.DateTimeField(null=True)
    period_end = models.DateTimeField(null=True)
    metadata = models.JSONField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(null=True)

    objects: ClassVar[models.Manager[Ledger]] = models.Manager()

    class Meta:
        db_table = "ledger"
        constraints = [
            models.UniqueConstraint(fields=["scope", "unit"], name="ledger_once_per_scope_and_unit"),
            # One for all: Postgres reads each constraint anew for each statement.
            models.CheckConstraint(
                condition=GreaterThanOrEqual(Least("allocated", "reserved", "spent", "debt", "overdraft_limit"), 0),
                name="ledger_nothing_negative",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.scope} {self.unit}"


class Reservation(models.Model):
    """A hold: what was set aside, on which ledgers, until when, and how it ended.

    `finish_*` is the answer of the commit or release that ended it, given again to whoever repeats that call.
    JSON that came from outside is kept as text: Postgres' jsonb refuses the character U+0000, which JSON allows.
    """

    class Status(models.TextChoices):
        ACTIVE = "ACTIVE"
        COMMITTED = "COMMITTED"
        RELEASED = "RELEASED"
        EXPIRED = "EXPIRED"

    id = models.UUIDField(primary_key=True)
    tenant = models.ForeignKey(
        Tenant, on_delete=models.PROTECT, related_name="reservations", db_index=False, db_constraint=False
    )
    idempotency_key = models.TextField()
    status = models.TextField(choices=Status.choices, db_default=Status.ACTIVE)
    unit = models.TextField()
    reserved = models.BigIntegerField()
    committed = models.BigIntegerField(null=True)
    overage_policy = models.TextField(choices=Policy.choices)
    scopes = ArrayField(models.TextField())
    budgeted = ArrayField(models.TextField())  # the scopes that had a ledger then: later ledgers do not join
    subject = models.TextField()
    action = models.TextField()
    metadata = models.TextField(null=True)  # noqa: DJ001
    committed_metadata = models.TextField(null=True)  # noqa: DJ001
    metrics = models.TextField(null=True)  # noqa: DJ001
    release_reason = models.TextField(null=True)  # noqa: DJ001
    created_at_ms = models.BigIntegerField()
    expires_at_ms = models.BigIntegerField()
    deadline_ms = models.BigIntegerField()  # expiry plus grace: later than this nothing can be committed
    finalized_at_ms = models.BigIntegerField(null=True)
    extension_count = models.BigIntegerField(db_default=0)
    max_extensions = models.BigIntegerField()
    finish_key = models.TextField(null=True)  # noqa: DJ001
    finish_digest = models.BinaryField(null=True)
    finish_body = models.JSONField(null=True)

    objects: ClassVar[models.Manager[Reservation]] = models.Manager()

    class Meta:
        db_table = "reservation"
        constraints = [
            models.CheckConstraint(
                # As few terms as can be, for the same reason.
                condition=Exact(IsNull(F("committed"), False), Exact(F("status"), Value("COMMITTED")))
                & GreaterThanOrEqual(Least("reserved", "committed"), 0),  # LEAST leaves a null out
                name="reservation_amount_if_committed",
            ),
        ]
        indexes = [
            models.Index(fields=["deadline_ms"], condition=Q(status="ACTIVE"), name="reservation_due"),
            models.Index(fields=["tenant", "created_at_ms"], name="reservation_by_tenant"),
        ]

    def __str__(self) -> str:
        return str(self.id)


class Replay(models.Model):
    """The finished answer of an operation, by idempotency key. The unique constraint decides who did it."""

    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False)
    operation = models.TextField()
    key = models.TextField()
    digest = models.BinaryField()
    body = models.JSONField()
    expires_at_ms = models.BigIntegerField(db_index=True)

    objects: ClassVar[models.Manager[Replay]] = models.Manager()

    class Meta:
        db_table = "replay"
        constraints = [
            models.UniqueConstraint(fields=["tenant", "operation", "key"], name="replay_once_per_key"),
        ]

    def __str__(self) -> str:
        return f"{self.operation} {self.key}"


class FundOperation(models.Model):
    """One movement of a budget by an operator, as it was: the figures before and after are in `answer`."""

    ledger = models.ForeignKey(Ledger, on_delete=models.PROTECT, related_name="fund_operations")
    operation = models.TextField()
    amount = models.BigIntegerField()
    reason = models.TextField(null=True)  # noqa: DJ001
    idempotency_key = models.TextField(null=True)  # noqa: DJ001
    answer = models.JSONField()
    created_at = models.DateTimeField(db_default=Now())

    objects: ClassVar[models.Manager[FundOperation]] = models.Manager()

    class Meta:
        db_table = "fund_operation"

    def __str__(self) -> str:
        return f"{self.operation} {self.amount}"


class Event(models.Model):
    """Spend that was booked without a hold before it."""

    id = models.UUIDField(primary_key=True)
    tenant = models.ForeignKey(Tenant, on_delete=models.PROTECT, related_name="+", db_constraint=False)
    idempotency_key = models.TextField()
    unit = models.TextField()
    charged = models.BigIntegerField()
    actual = models.BigIntegerField()
    budgeted = ArrayField(models.TextField())
    details = models.TextField()
    created_at_ms = models.BigIntegerField()

    objects: ClassVar[models.Manager[Event]] = models.Manager()

    class Meta:
        db_table = "event"
        constraints = [
            models.CheckConstraint(
                condition=Q(charged__gte=0, charged__lte=F("actual")), name="event_charged_in_range"
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)


# The rest of the tables, which Django looks for here.
from billing.authority.records import (  # noqa: E402
    AuditEntry,
    Delivery,
    EmittedEvent,
    KeptPolicy,
    Setting,
    Subscription,
)

__all__ = [
    "ApiKey", "AuditEntry", "Delivery", "EmittedEvent", "Event", "FundOperation", "KeptPolicy", "Ledger", "Policy",
    "Replay", "Reservation", "Setting", "Subscription", "Tenant",
]  # fmt: skip
