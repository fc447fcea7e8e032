"""Accounts, their top-ups, and the holds of calls under way (public schema).

Figures are microcents (USD). Movements are stored; balances are the authority's and are asked, never kept here.
"""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q

from tenants.models import Tenant


class Account(models.Model):
    """Who pays for a tenant: its plan, its ledger at the authority, and how far its setting-up has come."""

    class Status(models.TextChoices):
        PENDING = "pending", "Being set up"
        ACTIVE = "active", "Active"
        FROZEN = "frozen", "Frozen"
        CLOSED = "closed", "Closed"

    id = models.BigAutoField(primary_key=True)
    tenant = models.OneToOneField(Tenant, on_delete=models.PROTECT, related_name="account")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    plan = models.CharField(max_length=20)
    # The tenant's id at the authority: opaque, and never used again after a close.
    subject_tenant = models.CharField(max_length=64, unique=True)
    authority_key_id = models.CharField(max_length=64, blank=True)
    sealed_key = models.TextField(blank=True)
    owner_email = models.EmailField()
    # The hash, kept only until the owner's user exists in the tenant's schema.
    owner_password = models.CharField(max_length=128, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    activated_at = models.DateTimeField(null=True)
    first_key_given_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.subject_tenant

    @property
    def scope(self) -> str:
        """The ledger's path at the authority; the authority writes scopes in lower case."""
        return f"tenant:{self.subject_tenant}"


class TopUp(models.Model):
    """Money bought: one row for each key, written before the authority is asked and applied once."""

    id = models.BigAutoField(primary_key=True)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="top_ups")
    key = models.CharField(max_length=100)
    amount = models.BigIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)
    applied_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account", "key"], name="top_up_once_per_key"),
            models.CheckConstraint(condition=Q(amount__gt=0), name="top_up_is_positive"),
        ]

    def __str__(self) -> str:
        return f"{self.account_id}: {self.key}"


class Hold(models.Model):
    """A call under way. Written before the reserve, gone with the settled UsageLine in one transaction.

    A row that stays tells of a worker that died: without `dispatched_at` the model was not called, with it it was.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="holds")
    reservation_id = models.CharField(max_length=200, blank=True)
    subject = models.JSONField(default=dict)
    action_kind = models.CharField(max_length=64)
    action_name = models.CharField(max_length=256)
    estimate = models.BigIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)
    dispatched_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(estimate__gte=0), name="hold_is_not_negative")]
        indexes = [models.Index(fields=["account", "created_at"], name="hold_by_account")]

    def __str__(self) -> str:
        return str(self.id)
