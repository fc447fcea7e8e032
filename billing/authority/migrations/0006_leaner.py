"""One CHECK a table instead of eight."""

from __future__ import annotations

from django.db import migrations
from django.db.models import CheckConstraint, Q
from django.db.models.functions import Least
from django.db.models.lookups import GreaterThanOrEqual


class Migration(migrations.Migration):
    dependencies = [("authority", "0005_gathered")]

    operations = [
        migrations.RemoveConstraint("ledger", "ledger_allocated_not_negative"),
        migrations.RemoveConstraint("ledger", "ledger_reserved_not_negative"),
        migrations.RemoveConstraint("ledger", "ledger_spent_not_negative"),
        migrations.RemoveConstraint("ledger", "ledger_debt_not_negative"),
        migrations.RemoveConstraint("ledger", "ledger_overdraft_limit_not_negative"),
        migrations.RemoveConstraint("reservation", "reservation_reserved_not_negative"),
        migrations.RemoveConstraint("reservation", "reservation_committed_not_negative"),
        migrations.RemoveConstraint("reservation", "reservation_committed_if_committed"),
        migrations.AddConstraint(
            "ledger",
            CheckConstraint(
                condition=GreaterThanOrEqual(Least("allocated", "reserved", "spent", "debt", "overdraft_limit"), 0),
                name="ledger_nothing_negative",
            ),
        ),
        migrations.AddConstraint(
            "reservation",
            CheckConstraint(
                condition=GreaterThanOrEqual(Least("reserved", "committed"), 0)
                & (
                    Q(status="COMMITTED", committed__isnull=False)
                    | (~Q(status="COMMITTED") & Q(committed__isnull=True))
                ),
                name="reservation_committed_if_committed",
            ),
        ),
    ]
