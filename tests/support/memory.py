"""A tablespace in memory for the tables of test databases, where the machine has plenty.

Owns making and removing it. A workspace is some 140 files, and for a disk's file system they take longer to make than
for Postgres; tests make thousands of workspaces. What a machine lacks here costs time alone.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from config.database import embedded_database
from config.env import state_dir
from config.stack.places import Places, places_for
from config.stack.server import PORT

VARIABLE = "TEST_TABLESPACE"  # for the processes that make the databases
FOLDER = Path("/dev/shm")  # noqa: S108 - what Linux keeps in memory
PREFIX = "tests_"
# A whole run takes half of this at its end; the rest is for the run's processes.
LEAST_FREE, LEAST_AVAILABLE = 8 * 2**30, 12 * 2**30


@contextmanager
def tablespace() -> Iterator[str]:
    """Its name, or an empty one where the tables stay where Postgres puts them. The embedded server must be up."""
    if not embedded_database() or not _has_plenty():
        yield ""
        return
    places = places_for(state_dir())
    with _superuser(places) as connection:
        _remove_what_is_left(connection)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=FOLDER))
        if places.user:
            os.chown(folder, places.user.uid, places.user.gid)
        name = PREFIX + re.sub(r"\W", "", folder.name.removeprefix(PREFIX).lower())
        made = sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(sql.Identifier(name), sql.Literal(str(folder)))
        connection.execute(made)
        connection.execute(sql.SQL("GRANT CREATE ON TABLESPACE {} TO PUBLIC").format(sql.Identifier(name)))
    try:
        yield name
    finally:
        with _superuser(places) as connection:
            _remove_what_is_left(connection)


def _has_plenty() -> bool:
    with suppress(OSError, AttributeError):
        available = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        assert available is not None
        return shutil.disk_usage(FOLDER).free >= LEAST_FREE and int(available[1]) * 1024 >= LEAST_AVAILABLE
    return False


def _superuser(places: Places) -> psycopg.Connection[Any]:
    return psycopg.connect(host=str(places.sockets), port=PORT, user="postgres", dbname="postgres", autocommit=True)


def _remove_what_is_left(connection: psycopg.Connection[Any]) -> None:
    """Those that are empty, of a killed run too: the next run drops its databases, and comes here when it ends."""
    found = connection.execute(
        "SELECT spcname, pg_tablespace_location(oid) FROM pg_tablespace WHERE starts_with(spcname, %s)", [PREFIX]
    )
    for name, location in found.fetchall():
        with suppress(psycopg.errors.ObjectNotInPrerequisiteState):
            connection.execute(sql.SQL("DROP TABLESPACE {}").format(sql.Identifier(name)))
            shutil.rmtree(location, ignore_errors=True)
