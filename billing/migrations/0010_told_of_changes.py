"""Who keeps a tenant's account (tenants.kept) is told of each change to it, and to the period of its budget."""

from django.db import migrations

# A period names its account alone. Everything, where that account is gone already.
TELL_OF_ACCOUNT = """
CREATE OR REPLACE FUNCTION public.tell_of_account() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    accounts bigint[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        accounts := ARRAY[NEW.account_id];
    ELSIF TG_OP = 'DELETE' THEN
        accounts := ARRAY[OLD.account_id];
    ELSIF (OLD.account_id, OLD.ends_at, OLD.opened_at, OLD.closed_at)
            IS DISTINCT FROM (NEW.account_id, NEW.ends_at, NEW.opened_at, NEW.closed_at) THEN
        accounts := ARRAY[OLD.account_id, NEW.account_id];
    ELSE
        RETURN NULL;
    END IF;
    PERFORM pg_notify('tenants_changed', coalesce('tenant:' || account.tenant_id, '*'))
    FROM unnest(accounts) AS changed (id) LEFT JOIN public.billing_account AS account ON account.id = changed.id;
    RETURN NULL;
END $$"""


def told(name, table, when, function, level):
    return migrations.RunSQL(
        f"CREATE TRIGGER {name} AFTER {when} ON public.{table} FOR EACH {level} EXECUTE FUNCTION public.{function}()",
        f"DROP TRIGGER {name} ON public.{table}",
    )


class Migration(migrations.Migration):
    dependencies = [("billing", "0009_rates"), ("tenants", "0006_told_of_changes")]

    operations = [
        migrations.RunSQL([TELL_OF_ACCOUNT], ["DROP FUNCTION public.tell_of_account()"]),
        told("tell", "billing_account", "INSERT OR UPDATE OR DELETE", "tell_of_tenant", "ROW"),
        told("tell_all", "billing_account", "TRUNCATE", "tell_of_all", "STATEMENT"),
        told("tell", "billing_budgetperiod", "INSERT OR UPDATE OR DELETE", "tell_of_account", "ROW"),
        told("tell_all", "billing_budgetperiod", "TRUNCATE", "tell_of_all", "STATEMENT"),
    ]
