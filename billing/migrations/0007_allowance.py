import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    """Accounts of before are granted their allowance: the database fills the column with the moment of migrating."""

    dependencies = [
        ("billing", "0006_asked_by"),
    ]

    operations = [
        migrations.AddField(
            model_name="account",
            name="allowance_granted_at",
            field=models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), null=True),
        ),
        migrations.AddField(
            model_name="account",
            name="allowance_owed",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddIndex(
            model_name="account",
            index=models.Index(condition=models.Q(("allowance_owed__gt", 0)), fields=["id"], name="account_owed"),
        ),
    ]
