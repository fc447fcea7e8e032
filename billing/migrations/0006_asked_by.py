from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0005_handed_over"),
    ]

    operations = [
        migrations.AddField(
            model_name="account",
            name="asked_by",
            field=models.CharField(blank=True, db_default="", default="", max_length=64),
        ),
    ]
