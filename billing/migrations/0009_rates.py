"""What keys ask for is counted, in rows of its own and by functions of this database."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

FUNCTIONS = Path(__file__).with_name("0009_rates.sql")
DROP = """
DROP FUNCTION public.billing_count_call(bigint, bigint, bigint, bigint, bigint, bigint, boolean);
DROP FUNCTION public.billing_correct_tokens(bigint, bigint, bigint, bigint);
DROP FUNCTION public.billing_drained(double precision, timestamptz, bigint, timestamptz);
"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0008_spender"),
    ]

    operations = [
        migrations.CreateModel(
            name="KeyRate",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("key_id", models.BigIntegerField()),
                ("requests", models.FloatField()),
                ("requests_at", models.DateTimeField()),
                ("tokens", models.FloatField()),
                ("tokens_at", models.DateTimeField()),
                (
                    "account",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="billing.account",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("account", "key_id"), name="key_rate_once_for_each_key")
                ],
            },
        ),
        migrations.AddField(
            model_name="hold",
            name="rated_key",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddIndex(
            model_name="hold",
            index=models.Index(
                condition=models.Q(("rated_key__isnull", False)), fields=["account", "rated_key"], name="hold_by_key"
            ),
        ),
        # Read here, and never changed: who has migrated has these, and who will migrate gets the same.
        migrations.RunSQL(FUNCTIONS.read_text(encoding="utf-8"), DROP),
    ]
