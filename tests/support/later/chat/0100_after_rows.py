"""Alters a table whose row of the migration before still waits for its foreign key to be checked."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("chat", "0099_later")]

    operations = [migrations.AddField("conversation", "second", models.IntegerField(default=0))]
