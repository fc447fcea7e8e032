"""A settled call, by what was charged for it: what the lines of a tenant and those of the house have in common.

Owns the columns, so that the two tables cannot drift: one statement writes both. Must not know whose a line is.
"""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from billing.outcomes import Outcome

NOT_NEGATIVE = Q(cost__gte=0) & Q(estimate__gte=0) & Q(overrun__gte=0)


class SettledCall(models.Model):
    """Figures are microcents and tokens. `hold` is the key under which the authority knows the call."""

    Outcome = Outcome

    id = models.BigAutoField(primary_key=True)
    hold = models.UUIDField(unique=True)
    reservation_id = models.CharField(max_length=200)
    user_id = models.BigIntegerField(null=True)
    # The key in whose name a program called: of a chain of rotated keys the first.
    key_id = models.BigIntegerField(null=True)
    app = models.CharField(max_length=128)
    action = models.CharField(max_length=256)
    model = models.CharField(max_length=200, blank=True)
    tokens_input = models.BigIntegerField(null=True)
    tokens_output = models.BigIntegerField(null=True)
    # Parts of the two above, where the provider says them.
    tokens_cached = models.BigIntegerField(null=True)
    tokens_reasoning = models.BigIntegerField(null=True)
    estimate = models.BigIntegerField()
    cost = models.BigIntegerField()
    # What a provider reported above the hold: the operator's loss, never the customer's debt.
    overrun = models.BigIntegerField(default=0)
    outcome = models.CharField(max_length=10, choices=Outcome.choices)
    created_at = models.DateTimeField()
    settled_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.action}: {self.cost}"
