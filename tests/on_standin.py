"""A part of the app's tests on the stand-in for the real servers, by the variables that name real ones.

    python -m tests.on_standin [what pytest takes]

Owns the stand-in, the authority behind it, the database of that one, which is dropped again, and the exit code. Knows
no test: those marked `on_standin` run, or what the arguments choose.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from config.database import embedded_database, owner_database_url
from config.env import state_dir
from config.stack.postgres import SharedPostgres
from tests.support.authority import ROOT, AuthorityProcess
from tests.support.servers import ADMIN_KEY, ADMIN_URL, CONTROL, URL
from tests.support.standin import StandIn

DATABASE = "test_authority_of_standin"
MARK = "on_standin"


def main(arguments: list[str]) -> int:
    with (
        SharedPostgres(state_dir()) if embedded_database() else nullcontext(),
        _database() as url,
        _authority(url) as authority,
        StandIn(authority) as stand_in,
    ):
        variables = {
            URL: stand_in.runtime_url,
            ADMIN_URL: stand_in.admin_url,
            ADMIN_KEY: stand_in.admin_key,
            CONTROL: stand_in.control,
            "TEST_DATABASE": "test_app_on_standin",
        }
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(arguments or _marked())]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}).returncode


def _marked() -> list[str]:
    """The files alone that have any: reading all the others takes as long as ten tests."""
    named = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if f"mark.{MARK}" in path.read_text()]
    return ["-m", MARK, *named]


@contextmanager
def _database() -> Iterator[str]:
    """An empty database for the authority alone: the app's tests must not find its tables in theirs."""
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(DATABASE))
    with psycopg.connect(owner_database_url(), autocommit=True) as connection:
        connection.execute(drop)
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        # As tests/conftest.py does with the app's.
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(DATABASE)))
        yield urlsplit(owner_database_url())._replace(path=f"/{DATABASE}").geturl()
        connection.execute(drop)


@contextmanager
def _authority(url: str) -> Iterator[AuthorityProcess]:
    """Under a key that only the variable can tell."""
    authority = AuthorityProcess(url, secrets.token_urlsafe(20))
    authority.start()
    try:
        yield authority
    finally:
        authority.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
