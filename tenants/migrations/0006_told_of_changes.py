"""Who keeps rows of a tenant's (tenants.kept) is told of each change, whoever makes it: the ORM, a command, SQL by hand.

The functions are public's, for the triggers of every tenant's schema as well; an update that touches only what a
trigger names as its arguments tells nothing.
"""

from django.db import migrations

# Of a table in a tenant's schema: the schema.
TELL_OF_SCHEMA = """
CREATE OR REPLACE FUNCTION public.tell_of_schema() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF to_jsonb(OLD) - coalesce(TG_ARGV, '{}') = to_jsonb(NEW) - coalesce(TG_ARGV, '{}') THEN
            RETURN NULL;
        END IF;
    END IF;
    PERFORM pg_notify('tenants_changed', 'schema:' || TG_TABLE_SCHEMA);
    RETURN NULL;
END $$"""

# Of a table in public: the tenant before and after, by `tenant_id` or, of the table of tenants, by `id`.
TELL_OF_TENANT = """
CREATE OR REPLACE FUNCTION public.tell_of_tenant() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was jsonb := '{}';
    becomes jsonb := '{}';
BEGIN
    IF TG_OP <> 'INSERT' THEN
        was := to_jsonb(OLD) - coalesce(TG_ARGV, '{}');
    END IF;
    IF TG_OP <> 'DELETE' THEN
        becomes := to_jsonb(NEW) - coalesce(TG_ARGV, '{}');
    END IF;
    IF was <> becomes THEN
        PERFORM pg_notify('tenants_changed', 'tenant:' || whose.id)
        FROM (SELECT DISTINCT coalesce(image ->> 'tenant_id', image ->> 'id') AS id
              FROM unnest(ARRAY[was, becomes]) AS image) AS whose
        WHERE whose.id IS NOT NULL;
    END IF;
    RETURN NULL;
END $$"""

# Which code may serve which schema: all tenants'.
TELL_OF_ALL = """
CREATE OR REPLACE FUNCTION public.tell_of_all() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('tenants_changed', '*');
    RETURN NULL;
END $$"""


def told(name, table, when, function, level):
    return migrations.RunSQL(
        f"CREATE TRIGGER {name} AFTER {when} ON public.{table} FOR EACH {level} EXECUTE FUNCTION public.{function}()",
        f"DROP TRIGGER {name} ON public.{table}",
    )


class Migration(migrations.Migration):
    dependencies = [("tenants", "0005_api")]

    operations = [
        # A list is sent as it is; a text would be split at each semicolon.
        migrations.RunSQL([TELL_OF_SCHEMA], ["DROP FUNCTION public.tell_of_schema()"]),
        migrations.RunSQL([TELL_OF_TENANT], ["DROP FUNCTION public.tell_of_tenant()"]),
        migrations.RunSQL([TELL_OF_ALL], ["DROP FUNCTION public.tell_of_all()"]),
        # Nobody keeps that there is no such tenant, so a new one tells nothing.
        told("tell", "tenants_tenant", "UPDATE OR DELETE", "tell_of_tenant", "ROW"),
        told("tell_all", "tenants_tenant", "TRUNCATE", "tell_of_all", "STATEMENT"),
        told("tell", "tenants_domain", "INSERT OR UPDATE OR DELETE", "tell_of_tenant", "ROW"),
        told("tell_all", "tenants_domain", "TRUNCATE", "tell_of_all", "STATEMENT"),
        # A new state makes nobody behind: tenants are compared with the number of the state that is asked for.
        told("tell_all", "tenants_schemaversion", "UPDATE OR DELETE OR TRUNCATE", "tell_of_all", "STATEMENT"),
    ]
