"""Accounts, their periods and top-ups, the holds of calls under way, and the house's settled calls (public schema).

Figures are microcents (USD). Movements are stored; balances are the authority's and are asked, never kept here.
"""

from __future__ import annotations

import uuid

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from billing.lines import NOT_NEGATIVE, SettledCall
from billing.outcomes import Outcome
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
    # The digest of the mark in the form that asked for it: who shows that mark again goes on with this sign-up.
    asked_by = models.CharField(max_length=64, blank=True, default="", db_default="")
    created_at = models.DateTimeField(auto_now_add=True)
    activated_at = models.DateTimeField(null=True)
    first_key_given_at = models.DateTimeField(null=True)
    # When a browser that signed up was handed over to the workspace's host, signed in.
    handed_over_at = models.DateTimeField(null=True)
    # Null: its allowance waits for the owner's e-mail to be confirmed. A default of the database, for code of before
    # that inserts without it, and gives the allowance at once.
    allowance_granted_at = models.DateTimeField(null=True, db_default=Now())
    # Of an allowance that was granted later than its ledger was made: what the authority has not been seen to credit.
    allowance_owed = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        indexes = [models.Index(fields=["id"], condition=Q(allowance_owed__gt=0), name="account_owed")]

    def __str__(self) -> str:
        return self.subject_tenant

    @property
    def scope(self) -> str:
        """The ledger's path at the authority; the authority writes scopes in lower case."""
        return f"tenant:{self.subject_tenant}"


class BudgetPeriod(models.Model):
    """One period of an account's budget. Written before the authority is asked to begin it, opened by its answer.

    Not opened: it was asked for. Opened and not closed: it is the current one. Closed: `spent` is what the authority
    counted in it. A call belongs to the period in which it is committed.
    """

    id = models.BigAutoField(primary_key=True)
    account = models.ForeignKey(Account, on_delete=models.PROTECT, related_name="periods")
    # From 0, the one that began with the account.
    number = models.IntegerField()
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField()
    allowance = models.BigIntegerField()
    # What the authority is asked to allocate: the allowance and the top-ups that were unspent by the look before it.
    asked = models.BigIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)
    opened_at = models.DateTimeField(null=True)
    # The top-ups that were unspent by the authority's answer, and what `asked` lacks of them; below zero: has too much.
    carried = models.BigIntegerField(default=0)
    correction = models.BigIntegerField(default=0)
    corrected_at = models.DateTimeField(null=True)
    limits_renewed_at = models.DateTimeField(null=True)
    closed_at = models.DateTimeField(null=True)
    spent = models.BigIntegerField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account", "number"], name="period_once_per_number"),
            models.UniqueConstraint(
                fields=["account"], condition=Q(opened_at__isnull=False, closed_at=None), name="period_one_is_open"
            ),
            models.CheckConstraint(
                condition=Q(number__gte=0) & Q(allowance__gte=0) & Q(asked__gte=0) & Q(carried__gte=0),
                name="period_is_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(closed_at=None, spent=None) | Q(closed_at__isnull=False, spent__gte=0),
                name="period_says_what_was_spent_when_closed",
            ),
        ]
        indexes = [models.Index(fields=["ends_at"], condition=Q(closed_at=None), name="period_due")]

    def __str__(self) -> str:
        return f"{self.account_id}: {self.number}"


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


class Process(models.Model):
    """A process that makes paid calls. It writes `seen_at` every few seconds; one that is silent is taken for dead."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    kind = models.CharField(max_length=20)
    started_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class Habit(models.Model):
    """What a model's calls on one route usually need: the newest exact reports, from all processes.

    `samples` is a list of [tokens of input, bytes of input, tokens of output, bytes of output, percent of our count
    that was reported], newest first.
    """

    id = models.BigAutoField(primary_key=True)
    model = models.CharField(max_length=200)
    app = models.CharField(max_length=128)
    samples = models.JSONField(default=list)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["model", "app"], name="habit_of_model_and_app")]

    def __str__(self) -> str:
        return f"{self.model} for {self.app}"


class Hold(models.Model):
    """A call under way. Written once its money is held and before the model is called; gone with its line.

    It says how far the call came, so that whoever finishes it later charges what is known. `used` and the tokens are
    the class `outcome` once `is_final`, before that the least that is known. `slices` are the further amounts held:
    [{"n": 2, "amount": 1000, "reservation_id": "…"}], each written before it is reserved.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    # None: the house pays. Accounts are never deleted. A constraint would lock the account's row for every call.
    account = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="holds", db_constraint=False, db_index=False, null=True
    )
    process = models.UUIDField(null=True)
    reservation_id = models.CharField(max_length=200, blank=True)
    subject = models.JSONField(default=dict)
    user_id = models.BigIntegerField(null=True)
    action_kind = models.CharField(max_length=64)
    action_name = models.CharField(max_length=256)
    model = models.CharField(max_length=200, blank=True, default="")
    # The first amount held; `slices` has the others.
    estimate = models.BigIntegerField()
    slices = models.JSONField(default=list)
    # One call at a time for each value, whatever process it is in: a conversation's, for example.
    busy_key = models.CharField(max_length=200, null=True)  # noqa: DJ001 - many rows have none
    # In whose name a key with rates spends, so that its calls under way can be counted. None: nothing is counted.
    rated_key = models.BigIntegerField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    dispatched_at = models.DateTimeField(null=True)
    used = models.BigIntegerField(default=0)
    overrun = models.BigIntegerField(default=0)
    tokens_input = models.BigIntegerField(null=True)
    tokens_output = models.BigIntegerField(null=True)
    tokens_cached = models.BigIntegerField(null=True)
    tokens_reasoning = models.BigIntegerField(null=True)
    outcome = models.CharField(max_length=10, choices=Outcome.choices, default=Outcome.SWEPT)
    is_final = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(estimate__gte=0) & Q(used__gte=0) & Q(overrun__gte=0), name="hold_is_not_negative"
            ),
            models.UniqueConstraint(fields=["busy_key"], name="hold_one_for_each_busy_key"),
        ]
        # One index for all rows: the table has a row for each call under way, and every call writes and deletes one.
        indexes = [
            models.Index(fields=["account", "created_at"], name="hold_by_account"),
            models.Index(fields=["account", "rated_key"], condition=Q(rated_key__isnull=False), name="hold_by_key"),
        ]

    def __str__(self) -> str:
        return str(self.id)


class KeyRate(models.Model):
    """What a key with rates has asked for lately. Written by the functions of migrations/0009_rates.sql alone.

    `key` is in whose name it spends, of the workspace of that account. A row says nothing any more once it is old.
    """

    id = models.BigAutoField(primary_key=True)
    account = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="+", db_constraint=False, db_index=False
    )
    key_id = models.BigIntegerField()
    requests = models.FloatField()
    requests_at = models.DateTimeField()
    tokens = models.FloatField()
    tokens_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["account", "key_id"], name="key_rate_once_for_each_key")]

    def __str__(self) -> str:
        return f"{self.account_id}: key-{self.key_id}"


class HouseLine(SettledCall):
    """One settled call that the house paid for: the operator's own, in no tenant's schema and on no tenant's page."""

    class Meta:
        constraints = [models.CheckConstraint(condition=NOT_NEGATIVE, name="house_line_is_not_negative")]
