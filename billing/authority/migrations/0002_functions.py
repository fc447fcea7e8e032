"""Install the money operations: every file of `sql/`, in order of name.

A later change to a function edits its file and adds a migration that runs `install` again.
"""

from __future__ import annotations

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).resolve().parent.parent / "sql"

# Half-empty pages let an update stay on its page: a ledger row is rewritten by every operation on it.
STORAGE = "ALTER TABLE ledger SET (fillfactor = 40); ALTER TABLE reservation SET (fillfactor = 70);"


def install(apps, schema_editor):
    for path in sorted(SQL.glob("*.sql")):
        schema_editor.execute(path.read_text(encoding="utf-8"), params=None)


class Migration(migrations.Migration):
    dependencies = [("authority", "0001_tables")]

    operations = [
        migrations.RunSQL(STORAGE, migrations.RunSQL.noop),
        migrations.RunPython(install, migrations.RunPython.noop),
    ]
