"""Look at every reservation by the check of 0008, beside the calls that write them; then the old one can go.

A transaction of its own: in that of 0008 its lock would hold all calls up while the rows are read. The way back does
so, for it makes the old check as it was made.
"""

from __future__ import annotations

from django.contrib.postgres.operations import ValidateConstraint
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("authority", "0008_one_comparison")]

    operations = [
        ValidateConstraint("reservation", "reservation_amount_if_committed"),
        migrations.RemoveConstraint("reservation", "reservation_committed_if_committed"),
    ]
