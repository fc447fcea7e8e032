"""How ledgers and reservations lie on their pages. It once installed the functions too; `schema.py` does now."""

from __future__ import annotations

from django.db import migrations

# Half-empty pages let an update stay on its page: a ledger row is rewritten by every operation on it.
STORAGE = "ALTER TABLE ledger SET (fillfactor = 40); ALTER TABLE reservation SET (fillfactor = 70);"


def install(apps, schema_editor):
    """Nothing any more, for migrations of yours that still call it: `schema.py` installs the functions."""


class Migration(migrations.Migration):
    dependencies = [("authority", "0001_tables")]

    operations = [migrations.RunSQL(STORAGE, migrations.RunSQL.noop)]
