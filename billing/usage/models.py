"""UsageLine: one settled call of a tenant. In each tenant's schema; refers to nothing outside."""

from __future__ import annotations

from django.db import models

from billing.lines import NOT_NEGATIVE, SettledCall


class UsageLine(SettledCall):
    """One settled call that the tenant paid for."""

    class Meta:
        constraints = [models.CheckConstraint(condition=NOT_NEGATIVE, name="usage_is_not_negative")]
        indexes = [models.Index(fields=["-settled_at"], name="usage_newest", include=["cost"])]
