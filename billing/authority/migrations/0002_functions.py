"""How the money operations are installed: every file of `sql/`, in order of name.

A later change to a function edits its file and adds a migration that runs `install` again. It must come after every
migration whose tables the files name, so only the last one of them runs it.
"""

from __future__ import annotations

from pathlib import Path

from django.db import migrations

SQL = Path(__file__).resolve().parent.parent / "sql"

# Half-empty pages let an update stay on its page: a ledger row is rewritten by every operation on it.
STORAGE = "ALTER TABLE ledger SET (fillfactor = 40); ALTER TABLE reservation SET (fillfactor = 70);"

# All functions of the schema are ours. Dropped first, so that a changed parameter list leaves no namesake behind.
DROP = """DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = current_schema()::regnamespace LOOP
        EXECUTE 'DROP FUNCTION ' || f;
    END LOOP;
END
$$"""


def install(apps, schema_editor):
    schema_editor.execute(DROP, params=None)
    for path in sorted(SQL.glob("*.sql")):
        schema_editor.execute(path.read_text(encoding="utf-8"), params=None)


class Migration(migrations.Migration):
    dependencies = [("authority", "0001_tables")]

    operations = [migrations.RunSQL(STORAGE, migrations.RunSQL.noop)]
