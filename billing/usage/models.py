"""UsageLine: one settled call, by what was charged for it. Repeat: what was answered under an Idempotency-Key.

In each tenant's schema; refers to nothing outside.
"""

from __future__ import annotations

from django.db import models

from billing.lines import NOT_NEGATIVE, SettledCall


class UsageLine(SettledCall):
    """One settled call that the tenant paid for."""

    class Meta:
        constraints = [models.CheckConstraint(condition=NOT_NEGATIVE, name="usage_is_not_negative")]
        indexes = [
            models.Index(fields=["-settled_at"], name="usage_newest", include=["cost", "user_id", "key_id", "app"])
        ]


class Repeat(models.Model):
    """One request under an Idempotency-Key: one call of a model at most, and its answer for whoever asks again.

    `attempt` is whoever may make the call now; `hold` is set by the statement that writes the call's Hold, `status` and
    `answer` by the one that writes its line. The engine's statements are its only writers.
    """

    id = models.BigAutoField(primary_key=True)
    user_id = models.BigIntegerField()
    route = models.CharField(max_length=40)
    key = models.CharField(max_length=255)
    # Of the body, so that a key is not answered with what somebody asked in other words.
    fingerprint = models.CharField(max_length=64)
    attempt = models.UUIDField()
    process = models.UUIDField()
    hold = models.UUIDField(null=True)
    status = models.SmallIntegerField(null=True)
    # JSON as text: its names must come back in the order in which they were sent.
    answer = models.TextField(blank=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["user_id", "route", "key"], name="repeat_one_for_each_key")]

    def __str__(self) -> str:
        return f"{self.route}: {self.key}"
