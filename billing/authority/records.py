"""The tables beside the money: what was told, to whom, who did what, and policies that are kept but never applied.

Written in the transaction of the operation they belong to. They hold a tenant's public id, not its key: an operator's
own rows belong to no tenant, and a subscription may wait for a tenant that is not made yet.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

SYSTEM = "__system__"  # the owner of what belongs to no tenant


class EmittedEvent(models.Model):
    """Something that happened, as listeners are told. Not to be mixed up with Event, which is spend."""

    event_id = models.TextField(unique=True)
    event_type = models.TextField()
    category = models.TextField()
    tenant_id = models.TextField(db_collation="C")
    scope = models.TextField(null=True, db_collation="C")  # noqa: DJ001
    actor = models.JSONField()
    source = models.TextField()
    data = models.JSONField()
    correlation_id = models.TextField(null=True)  # noqa: DJ001
    request_id = models.TextField(null=True)  # noqa: DJ001
    trace_id = models.TextField(null=True)  # noqa: DJ001
    created_at = models.DateTimeField(db_default=Now())

    objects: ClassVar[models.Manager[EmittedEvent]] = models.Manager()

    class Meta:
        db_table = "emitted_event"
        indexes = [
            models.Index(fields=["tenant_id", "id"], name="emitted_event_by_tenant"),
            models.Index(fields=["created_at"], name="emitted_event_by_age"),
        ]

    def __str__(self) -> str:
        return f"{self.event_type} {self.event_id}"


class Subscription(models.Model):
    """A webhook: which events go where. Its secret and its headers' values lie sealed (`sealing.py`)."""

    class Status(models.TextChoices):
        ACTIVE = "ACTIVE"
        PAUSED = "PAUSED"
        DISABLED = "DISABLED"

    subscription_id = models.TextField(unique=True)
    tenant_id = models.TextField(db_collation="C")
    url = models.TextField()
    name = models.TextField(null=True)  # noqa: DJ001
    description = models.TextField(null=True)  # noqa: DJ001
    event_types = models.JSONField(default=list)
    event_categories = models.JSONField(null=True)
    scope_filter = models.TextField(null=True)  # noqa: DJ001
    thresholds = models.JSONField(null=True)
    sealed_secret = models.TextField()
    sealed_headers = models.JSONField(null=True)  # by name; only the values are sealed
    retry_policy = models.JSONField()
    disable_after_failures = models.BigIntegerField(default=10)
    consecutive_failures = models.BigIntegerField(default=0)
    metadata = models.JSONField(null=True)
    status = models.TextField(choices=Status.choices, default=Status.ACTIVE)
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(null=True)
    last_triggered_at = models.DateTimeField(null=True)
    last_success_at = models.DateTimeField(null=True)
    last_failure_at = models.DateTimeField(null=True)

    objects: ClassVar[models.Manager[Subscription]] = models.Manager()

    class Meta:
        db_table = "subscription"
        indexes = [models.Index(fields=["tenant_id"], name="subscription_by_tenant")]

    def __str__(self) -> str:
        return self.subscription_id


class Delivery(models.Model):
    """One event on its way to one subscription. No foreign keys: an operation that emits must not wait for an operator
    who is changing the subscription."""

    class Status(models.TextChoices):
        PENDING = "PENDING"
        RETRYING = "RETRYING"
        SUCCESS = "SUCCESS"
        FAILED = "FAILED"

    delivery_id = models.TextField(unique=True)
    subscription = models.ForeignKey(
        Subscription, on_delete=models.DO_NOTHING, related_name="deliveries", db_constraint=False
    )
    event = models.ForeignKey(
        EmittedEvent, on_delete=models.DO_NOTHING, related_name="+", db_constraint=False, db_index=False
    )
    status = models.TextField(choices=Status.choices)
    attempts = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(db_default=Now())
    due_at = models.DateTimeField()
    completed_at = models.DateTimeField(null=True)
    response_status = models.BigIntegerField(null=True)
    response_time_ms = models.BigIntegerField(null=True)
    error_message = models.TextField(null=True)  # noqa: DJ001
    trace_flags = models.TextField(default="01")
    traceparent_inbound_valid = models.BooleanField(default=False)

    objects: ClassVar[models.Manager[Delivery]] = models.Manager()

    class Meta:
        db_table = "delivery"
        indexes = [
            models.Index(fields=["due_at"], condition=Q(status__in=["PENDING", "RETRYING"]), name="delivery_due"),
            models.Index(fields=["created_at"], name="delivery_by_age"),
        ]

    def __str__(self) -> str:
        return self.delivery_id


class AuditEntry(models.Model):
    """Who did what, and how it ended."""

    log_id = models.TextField(unique=True)
    tenant_id = models.TextField(db_collation="C")
    key_id = models.TextField(null=True)  # noqa: DJ001
    operation = models.TextField()
    status = models.BigIntegerField()
    resource_type = models.TextField(null=True)  # noqa: DJ001
    resource_id = models.TextField(null=True)  # noqa: DJ001
    error_code = models.TextField(null=True)  # noqa: DJ001
    metadata = models.JSONField(null=True)
    user_agent = models.TextField(null=True)  # noqa: DJ001
    source_ip = models.TextField(null=True)  # noqa: DJ001
    request_id = models.TextField(null=True)  # noqa: DJ001
    trace_id = models.TextField(null=True)  # noqa: DJ001
    created_at = models.DateTimeField(db_default=Now())

    objects: ClassVar[models.Manager[AuditEntry]] = models.Manager()

    class Meta:
        db_table = "audit_entry"
        indexes = [
            models.Index(fields=["tenant_id", "id"], name="audit_entry_by_tenant"),
            models.Index(fields=["created_at"], name="audit_entry_by_age"),
        ]

    def __str__(self) -> str:
        return f"{self.operation} {self.log_id}"


class KeptPolicy(models.Model):
    """A policy as an operator wrote it down. Nothing applies it: the protocol's policies are records only."""

    class Status(models.TextChoices):
        ACTIVE = "ACTIVE"
        DISABLED = "DISABLED"

    policy_id = models.TextField(unique=True)
    tenant = models.ForeignKey("authority.Tenant", on_delete=models.PROTECT, related_name="policies")
    name = models.TextField()
    description = models.TextField(null=True)  # noqa: DJ001
    scope_pattern = models.TextField(db_collation="C")
    priority = models.BigIntegerField(default=0)
    status = models.TextField(choices=Status.choices, default=Status.ACTIVE)
    settings = models.JSONField(default=dict)  # caps, overage policy, ttl override, rate limits, effective_*
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(null=True)

    objects: ClassVar[models.Manager[KeptPolicy]] = models.Manager()

    class Meta:
        db_table = "policy"

    def __str__(self) -> str:
        return self.policy_id


class Setting(models.Model):
    """A setting of the whole authority that an operator may change while it runs."""

    name = models.TextField(primary_key=True)
    value = models.JSONField()

    objects: ClassVar[models.Manager[Setting]] = models.Manager()

    class Meta:
        db_table = "setting"

    def __str__(self) -> str:
        return self.name
