"""Who keeps a member's or a key's row (tenants.kept) is told of each change to it. A new row changes none."""

from django.db import migrations


def told(table, *ignored):
    arguments = ", ".join(f"'{column}'" for column in ignored)
    return migrations.RunSQL(
        [
            f"CREATE TRIGGER tell AFTER UPDATE ON {table} FOR EACH ROW "
            f"EXECUTE FUNCTION public.tell_of_schema({arguments})",
            f"CREATE TRIGGER tell_all AFTER DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT "
            "EXECUTE FUNCTION public.tell_of_schema()",
        ],
        [f"DROP TRIGGER tell ON {table}", f"DROP TRIGGER tell_all ON {table}"],
    )


class Migration(migrations.Migration):
    dependencies = [("users", "0005_api"), ("tenants", "0006_told_of_changes")]

    operations = [
        # What a key's or a person's use writes is nothing that anybody decides by.
        told("users_apikey", "last_used_at"),
        told("users_user", "last_login"),
    ]
