"""How the SQL functions come into a database: after its migrations, once a set, whatever was there before.

The authority runs here from a copy of the code in which a company changed it, as their checkout would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.authority import ROOT, SEALING_KEY
from tests.support.databases import drop_database
from tests.support.receiver import eventually

pytestmark = pytest.mark.slow

PATIENCE = 180  # several processes load Django side by side

MIGRATIONS = sorted(path.stem for path in (ROOT / "billing/authority/migrations").glob("0*.py"))
LATEST = MIGRATIONS[-1]
UP_TO_DATE = "from billing.authority.schema import bring_up_to_date; bring_up_to_date()"
MIGRATE = (
    "from django.core.management import call_command; call_command('migrate', 'authority', {state!r}, verbosity=0)"
)
# What a set of functions looks like, and when it was written: the transaction that made each row.
FUNCTIONS = """SELECT p.proname, pg_get_function_arguments(p.oid), p.xmin::text FROM pg_proc p
    WHERE p.pronamespace = 'authority'::regnamespace ORDER BY 1, 2"""
TYPES = "SELECT relname FROM pg_class WHERE relnamespace = 'authority'::regnamespace AND relkind = 'c' ORDER BY 1"
# A company's change: a column, and a function that uses it. The call of `install` is how it was once to be done.
COLUMN = f"""
from importlib import import_module
from django.db import migrations

install = import_module("billing.authority.migrations.0002_functions").install

class Migration(migrations.Migration):
    dependencies = [("authority", "{LATEST}")]
    operations = [
        migrations.RunSQL("ALTER TABLE ledger ADD COLUMN note text DEFAULT 'company'"),
        migrations.RunPython(install, migrations.RunPython.noop),
    ]
"""
NOTE = """CREATE OR REPLACE FUNCTION {name}(p_ledger ledger) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT p_ledger.note || (SELECT l.note FROM ledger l WHERE l.id = p_ledger.id)
$$;
"""
SEVEN = "CREATE FUNCTION {name}() RETURNS int LANGUAGE sql AS 'SELECT 7';"
# What older sets may have left: another parameter list, a function and a type that no file makes any more.
LEFT_BEHIND = """
    CREATE FUNCTION authority.sweep(p_limit text) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION authority.now_ms() RETURNS text LANGUAGE sql AS $$ SELECT 'old' $$;
    CREATE TYPE authority.gathered_member AS (place int);
    CREATE FUNCTION authority.forgotten(p_member authority.gathered_member) RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE PROCEDURE authority.forgotten_too() LANGUAGE sql AS 'SELECT 1'"""


class Checkout:
    """A copy of the code, changed as a company changes its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignore = shutil.ignore_patterns("__pycache__", "static", "templates")
        for name in ("billing", "config", "manage.py"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=ignore)
            else:
                shutil.copy(source, folder / name)

    @property
    def package(self) -> Path:
        return self.folder / "billing/authority"

    def with_column(self) -> Checkout:
        (self.package / "migrations/0100_note.py").write_text(COLUMN)
        return self.with_function("note_of", NOTE)

    def with_function(self, name: str, text: str) -> Checkout:
        (self.package / f"sql/{name}.sql").write_text(text.format(name=name))
        return self

    def run(self, url: str, code: str = UP_TO_DATE) -> str:
        started = self.start(url, code)
        said, _ = started.communicate(timeout=PATIENCE)
        assert started.returncode == 0, said
        return said

    def start(self, url: str, code: str = UP_TO_DATE) -> subprocess.Popen[str]:
        environment = {
            "KEY_SEALING_KEY": SEALING_KEY,
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "config.settings_authority",
            "DATABASE_URL": url,
            "CYCLES_ADMIN_API_KEY": "a key for tests of the schema",
        }
        command = [sys.executable, "-c", f"import django; django.setup(); {code}"]
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


@pytest.fixture
def checkout(tmp_path):
    """Makes copies of the code, each by a name of its own."""
    return lambda name="company": Checkout(tmp_path / name)


@contextmanager
def made_database(database_url: str):
    name = f"schema_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        base, _, query = database_url.partition("?")
        try:
            yield f"{base.rpartition('/')[0]}/{name}?{query}"
        finally:
            drop_database(connection, name)


@pytest.fixture
def url(database_url):
    """An empty database of the test's own."""
    with made_database(database_url) as url:
        yield url


@pytest.fixture
def ask(url):
    with psycopg.connect(url, autocommit=True, options="-c search_path=authority") as connection:

        def ask(statement):
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else None

        yield ask


@pytest.fixture(scope="module")
def own_set(database_url, tmp_path_factory):
    """The functions and types of our files, as they are in a database that never had others."""
    with made_database(database_url) as url:
        Checkout(tmp_path_factory.mktemp("ours")).run(url)
        with psycopg.connect(url, options="-c search_path=authority") as connection:
            functions = connection.execute(FUNCTIONS).fetchall()
            return signatures(functions), connection.execute(TYPES).fetchall()


def signatures(rows) -> list[tuple[str, str]]:
    return [(name, arguments) for name, arguments, _ in rows]


@pytest.mark.parametrize("state", [None, *MIGRATIONS])
def test_a_changed_function_of_a_new_migration_comes_into_a_database_of_any_age(checkout, url, ask, own_set, state):
    company = checkout().with_column()
    if state is not None:
        ask("CREATE SCHEMA authority")
        company.run(url, MIGRATE.format(state=state))
        ask(LEFT_BEHIND)
    company.run(url)
    functions, types = own_set
    assert signatures(ask(FUNCTIONS)) == sorted([*functions, ("note_of", "p_ledger ledger")])
    assert ask(TYPES) == types
    assert ask("SELECT now_ms() > 0, sweep(1), purge(1)") == [(True, 0, 0)]


def test_what_is_installed_already_is_not_touched_again(checkout, url, ask):
    company = checkout()
    company.run(url)
    before = ask(FUNCTIONS), ask("SELECT xmin::text, value FROM setting")
    company.run(url)
    assert (ask(FUNCTIONS), ask("SELECT xmin::text, value FROM setting")) == before


def test_a_removed_file_takes_its_functions_along(checkout, url, ask):
    company = checkout().with_column()
    company.run(url)
    before = signatures(ask(FUNCTIONS))
    (company.package / "sql/note_of.sql").unlink()
    company.run(url)
    assert set(before) - set(signatures(ask(FUNCTIONS))) == {("note_of", "p_ledger ledger")}


def test_a_changed_parameter_list_leaves_no_namesake(checkout, url, ask):
    company = checkout().with_column()
    company.run(url)
    company.with_function("note_of", "CREATE FUNCTION {name}(p_id bigint) RETURNS int LANGUAGE sql AS 'SELECT 7';")
    company.run(url)
    assert [row for row in signatures(ask(FUNCTIONS)) if row[0] == "note_of"] == [("note_of", "p_id bigint")]


def test_a_broken_file_changes_nothing_and_the_next_start_is_whole(checkout, url, ask):
    company = checkout()
    company.run(url)
    before = ask(FUNCTIONS)
    company.with_function("zz_broken", "CREATE FUNCTION {name}() RETURNS int LANGUAGE sql AS 'SELECT nowhere';")
    started = company.start(url)
    said, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode != 0
    assert "nowhere" in said
    assert ask(FUNCTIONS) == before
    company.with_function("zz_broken", SEVEN).run(url)
    assert ask("SELECT zz_broken()") == [(7,)]


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "old"])
def test_copies_that_start_at_once_install_once(checkout, url, ask, old):
    company = checkout()
    if old:
        company.run(url)
    company.with_column()
    started = [company.start(url) for _ in range(3)]
    for process in started:
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
    assert len({written for _, _, written in ask(FUNCTIONS)}) == 1
    assert len(ask("SELECT value FROM setting WHERE name = 'functions'")[0][0]) == 1 + old
    assert ask("SELECT note_of(NULL)") == [(None,)]


def test_a_copy_behind_the_databases_migrations_leaves_the_newer_functions(checkout, url, ask):
    checkout("newer").with_column().run(url)
    before = ask(FUNCTIONS)
    said = checkout("older").run(url)
    assert "0100_note" in said
    assert ask(FUNCTIONS) == before


def test_an_older_copy_takes_nothing_from_one_that_runs_and_installs_its_own_when_alone(checkout, url, ask):
    older, newer = checkout("older"), checkout("newer").with_function("extra", SEVEN)
    older.run(url)
    newer.run(url)
    before = ask(FUNCTIONS)
    with psycopg.connect(url, application_name="authority"):
        assert "stay as another copy" in older.run(url)
    assert ask(FUNCTIONS) == before
    until_alone(ask)
    older.run(url)  # alone: somebody went back on purpose
    assert "extra" not in dict(signatures(ask(FUNCTIONS)))
    until_alone(ask)
    newer.run(url)
    assert "extra" in dict(signatures(ask(FUNCTIONS)))


def until_alone(ask) -> None:
    """A connection that was closed has its session at the server for a moment longer."""
    others = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'authority'"
    assert eventually(lambda: not ask(others))
