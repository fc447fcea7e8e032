"""What manage.py brings up, and what it leaves alone."""

from __future__ import annotations

import os
import socket

import pytest
from psycopg_pool import ConnectionPool, PoolTimeout

from manage import AWAY, needs_database
from tests.stack.conftest import run


@pytest.mark.parametrize(
    "line",
    [
        *("", "help", "help migrate", "--help", "--version", "version", "check", "check --deploy"),
        *("migrate --help", "makemigrations --check", "makemigrations --dry-run authority", "findstatic x"),
    ],
)
def test_what_reads_no_rows_starts_no_database(line):
    assert not needs_database(line.split())


@pytest.mark.parametrize("line", ["migrate_schemas --shared", "makemigrations", "shell", "authority", "own_command"])
def test_everything_else_gets_one(line):
    assert needs_database(line.split())


def test_a_check_of_the_database_gets_one_too():
    assert needs_database(["check", "--database", "default"])


@pytest.mark.parametrize("command", ["help", "check"])
def test_help_and_check_make_secrets_and_no_server(state, command):
    code, said = run("manage.py", command, state=state)
    assert code == 0, said
    assert {path.name for path in state.iterdir()} == {"secrets"}


def test_nonsense_in_a_variable_is_one_sentence_for_whoever_runs_a_command(state):
    given = {"STATE_DIR": str(state), "DJANGO_SETTINGS_MODULE": "config.settings", "MODELS": "{"}
    code, said = run("manage.py", "check", state=state, env={**os.environ, **given})
    assert code == 1
    assert said.startswith("MODELS cannot be read")
    assert len(said.splitlines()) == 1


@pytest.fixture
def silent():
    """An address at which connections are taken and nobody says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("command", ["migrate_schemas", "reconcile", "top_up acme 5 --key invoice-1"])
def test_a_database_that_cannot_be_reached_is_one_sentence_for_whoever_runs_a_command(state, command):
    says_that_the_database_is_away(state, command, "127.0.0.1:1", "Connection refused")


def test_it_is_one_sentence_also_where_nobody_has_its_name_or_says_a_word(state, silent):
    for where, words in (("nobody.invalid", "failed to resolve host 'nobody.invalid'"), (silent, "timeout expired")):
        says_that_the_database_is_away(state, "reconcile", where, words)


def test_a_pool_that_has_waited_for_the_database_says_it_in_words_that_are_known():
    pool = ConnectionPool("host=127.0.0.1 port=1", min_size=0, max_size=1, open=True)
    with pool, pytest.raises(PoolTimeout) as away:
        pool.getconn(timeout=0.01)
    assert str(away.value).startswith(AWAY)


def says_that_the_database_is_away(state, command, where, words):
    given = {"STATE_DIR": str(state), "DATABASE_URL": f"postgresql://acme:pass-word@{where}/app?connect_timeout=2"}
    env = {**os.environ, **given, "DATABASE_OWNER_URL": "", "DJANGO_SETTINGS_MODULE": "config.settings"}
    code, said = run("manage.py", *command.split(), state=state, env=env)
    assert code == 1
    assert said.startswith("The database cannot be used: "), said
    assert words in said
    assert "Traceback" not in said
    assert "pass-word" not in said


def test_with_a_given_database_nothing_of_the_stack_is_imported(state):
    script = (
        "import sys, manage; sys.argv = ['manage.py', 'help']; manage.main();"
        "sys.exit(any(name.startswith('config.stack') for name in sys.modules))"
    )
    given = {"DATABASE_URL": "postgresql://acme@db.example/app", "SECRET_KEY": "x" * 50, "STATE_DIR": str(state)}
    sealing = {"KEY_SEALING_KEY": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", "CYCLES_ADMIN_API_KEY": "x"}
    env = {**os.environ, **given, **sealing, "DJANGO_SETTINGS_MODULE": "config.settings"}
    code, said = run("-c", script, state=state, env=env)
    assert code == 0, said
    assert not state.exists()
