"""The check of reservations again, in half the terms: Postgres reads it anew for each statement that writes one.

It means what the old one means, which stays until 0009 has looked at every row. Neither keeps a running call waiting
for longer than a change of the catalogue.
"""

from __future__ import annotations

from django.contrib.postgres.operations import AddConstraintNotValid
from django.db import migrations
from django.db.models import CheckConstraint, F, Value
from django.db.models.functions import Least
from django.db.models.lookups import Exact, GreaterThanOrEqual, IsNull


class Migration(migrations.Migration):
    dependencies = [("authority", "0007_sealed_webhooks")]

    operations = [
        AddConstraintNotValid(
            "reservation",
            CheckConstraint(
                condition=Exact(IsNull(F("committed"), False), Exact(F("status"), Value("COMMITTED")))
                & GreaterThanOrEqual(Least("reserved", "committed"), 0),
                name="reservation_amount_if_committed",
            ),
        ),
    ]
