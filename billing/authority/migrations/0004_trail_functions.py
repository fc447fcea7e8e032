"""Nothing any more: it installed functions, which `schema.py` does now. Its name stays in the books of databases."""

from __future__ import annotations

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("authority", "0003_trail")]

    operations = []
