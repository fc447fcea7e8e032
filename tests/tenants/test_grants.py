"""The role of web and plane over a connection of its own: it reads and writes rows, and makes or drops nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from psycopg.errors import InsufficientPrivilege

from config.database import embedded_database
from tenants import grants
from tests.support.jobs import rows
from tests.support.roles import serving_url, superuser_url

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not settings.SERVING_ROLE, reason="DATABASE_URL alone is one role for all")
embedded = pytest.mark.skipif(
    not embedded_database(), reason="makes roles, as only the embedded server's superuser may"
)


@pytest.fixture(scope="module")
def role(app, authority, database_url):
    """The connection of a page gone wrong."""
    with psycopg.connect(serving_url(database_url), autocommit=True) as own:
        yield own


@pytest.fixture(scope="module")
def superuser(database_url):
    with psycopg.connect(superuser_url(database_url), autocommit=True) as own:
        yield own


FORBIDDEN = [
    "CREATE SCHEMA mine",
    "DROP SCHEMA {acme} CASCADE",
    "ALTER SCHEMA {acme} RENAME TO lost",
    "CREATE TABLE public.mine (id int)",
    "CREATE TABLE {acme}.mine (id int)",
    "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "DROP TABLE {acme}.chat_message",
    "ALTER TABLE {acme}.users_user ADD COLUMN mine int",
    "TRUNCATE {acme}.chat_message",
    "CREATE TRIGGER mine BEFORE UPDATE ON {acme}.chat_message EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE INDEX ON {acme}.chat_message (text)",
    "UPDATE {acme}.usage_usageline SET cost = 0",
    "DELETE FROM {acme}.usage_usageline",
    "UPDATE public.billing_houseline SET cost = 0",
    "DELETE FROM {acme}.django_migrations",
    "DELETE FROM public.django_migrations",
    "CREATE EXTENSION citext",
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
    "SET ROLE {owner}",
    "SET SESSION AUTHORIZATION {owner}",
    "ALTER ROLE {owner} PASSWORD 'mine'",
    "COPY (SELECT 1) TO PROGRAM 'cat'",
    "COPY {acme}.users_user TO '/tmp/mine'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT * FROM authority.ledger",
    "UPDATE authority.ledger SET allocated = 1",
    "SELECT * FROM authority.api_key",
]


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_who_serves_is_refused_by_the_database_itself(role, acme, statement):
    owner = connection.settings_dict["USER"]
    if not owner.isidentifier():
        pytest.skip("the owner's name would need quoting")
    with pytest.raises(InsufficientPrivilege):
        role.execute(statement.format(acme=acme.tenant.schema_name, owner=owner))


def test_it_owns_nothing_and_is_nobodys_member(role):
    owned = "SELECT count(*) FROM pg_shdepend WHERE refobjid = current_user::regrole AND deptype = 'o'"
    assert role.execute(owned).fetchone() == (0,)
    assert role.execute("SELECT count(*) FROM pg_auth_members WHERE member = current_user::regrole").fetchone() == (0,)


def test_a_table_that_a_later_migration_makes_is_open_at_once_and_stays_closed_to_more(role, acme):
    table = f"{acme.tenant.schema_name}.builders_note"
    rows(f"CREATE TABLE {table} (id bigserial PRIMARY KEY, text text)")
    try:
        for statement in ("INSERT INTO {} (text) VALUES ('one')", "UPDATE {} SET text = 'two'", "DELETE FROM {}"):
            assert role.execute(statement.format(table)).rowcount == 1
        with pytest.raises(InsufficientPrivilege):
            role.execute(f"TRUNCATE {table}")
    finally:
        rows(f"DROP TABLE {table}")


def test_migrating_again_mends_what_was_granted_too_much_and_too_little(role, acme):
    schema = acme.tenant.schema_name
    rows(f"GRANT ALL ON {schema}.usage_usageline TO {settings.SERVING_ROLE}")
    rows(f"REVOKE INSERT ON {schema}.chat_message FROM {settings.SERVING_ROLE}")
    call_command("migrate_schemas", schema_name=schema, verbosity=0)
    has = "SELECT has_table_privilege(%s, 'UPDATE'), has_table_privilege(%s, 'INSERT')"
    assert role.execute(has, [f"{schema}.usage_usageline", f"{schema}.chat_message"]).fetchone() == (False, True)


def test_a_schema_that_is_as_it_should_be_is_left_alone(acme):
    with CaptureQueriesContext(connection) as asked:
        grants.on_schema(acme.tenant.schema_name)
    assert not [query for query in asked if "GRANT " in query["sql"]]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "does not exist"),
        ("CREATE ROLE unfit CREATEROLE BYPASSRLS", "CREATEROLE, BYPASSRLS: ALTER ROLE unfit NOCREATEROLE NOBYPASSRLS"),
        ("CREATE ROLE unfit IN ROLE {owner}", "member of the owner's"),
    ],
)
@embedded
def test_a_role_that_is_no_fence_fails_the_migration_by_name(superuser, app, settings, made, said):
    settings.SERVING_ROLE = "unfit"
    try:
        if made:
            superuser.execute(made.format(owner=connection.settings_dict["USER"]))
        with pytest.raises(CommandError, match=f"unfit.*{said}"):
            call_command("migrate_schemas", shared=True, verbosity=0)
    finally:
        superuser.execute("DROP ROLE IF EXISTS unfit")


def test_the_owners_own_address_in_the_place_of_the_other_is_told_as_that(app, settings):
    ((owner,),) = rows("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()")
    settings.SERVING_ROLE = owner
    with pytest.raises(CommandError, match="owns the database: it belongs into DATABASE_OWNER_URL"):
        call_command("migrate_schemas", shared=True, verbosity=0)


def test_the_jobs_process_does_not_start_as_a_role_that_can_build_no_workspace(app, database_url):
    # Started so, it took each sign-up and failed it, for ever, and /readyz called the site ready.
    served = {**os.environ, "DATABASE_URL": serving_url(database_url), "DATABASE_OWNER_URL": ""}
    command = [sys.executable, "manage.py", "jobs"]
    done = subprocess.run(command, cwd=ROOT, env=served, capture_output=True, text=True, timeout=180)
    assert done.returncode == 1
    assert done.stderr.startswith("CommandError: DATABASE_OWNER_URL is not the owner's")
    assert len(done.stderr.splitlines()) == 1


@embedded
def test_a_role_that_could_make_tables_in_public_fails_the_migration(superuser, app):
    superuser.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    try:
        with pytest.raises(CommandError, match="REVOKE CREATE ON SCHEMA public FROM PUBLIC"):
            call_command("migrate_schemas", shared=True, verbosity=0)
    finally:
        superuser.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")


@embedded
def test_the_readmes_lines_make_two_roles_under_which_a_workspace_can_be_used(superuser, database_url):
    """Exactly those lines, then the first migration, as an operator would."""
    found = re.search(r"```sql\n(CREATE ROLE tenantry_owner.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in found[1].splitlines() if line]
    assert len(lines) == 5
    parts = urlsplit(database_url)
    address = {
        name: parts._replace(netloc=f"tenantry_{name}@:5432", path="/tenantry").geturl()
        for name in ("owner", "serving")
    }
    variables = {"DATABASE_URL": address["serving"], "DATABASE_OWNER_URL": address["owner"]}
    try:
        for line in lines:
            superuser.execute(line)
        env = {**os.environ, **variables, "DJANGO_SETTINGS_MODULE": "config.settings"}
        migrate = [sys.executable, "manage.py", "migrate_schemas", "--verbosity", "0"]
        subprocess.run(migrate, cwd=ROOT, env=env, check=True)
        with psycopg.connect(address["serving"], autocommit=True) as own:
            assert own.execute("SELECT count(*) FROM tenants_tenant").fetchone() == (0,)
            for refused in ("CREATE SCHEMA mine", "CREATE TEMPORARY TABLE mine (id int)"):
                with pytest.raises(InsufficientPrivilege):
                    own.execute(refused)
    finally:
        superuser.execute("DROP DATABASE IF EXISTS tenantry")
        superuser.execute("DROP ROLE IF EXISTS tenantry_owner, tenantry_serving")
