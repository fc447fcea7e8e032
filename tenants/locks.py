"""Locks that hold across processes. Owns taking one and giving it back; must not know what is done under it.

Each is on a connection of its own: migrations close Django's. It goes with the connection, so a killed process holds up
nobody.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tenants.connections import own_connection_params


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Nobody else who asks for `name` is inside this block, in any process. Waits for whoever is."""
    with psycopg.connect(**own_connection_params(), autocommit=True) as own:
        own.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
        yield


@contextmanager
def if_nobody_is(name: str) -> Iterator[bool]:
    """Whether nobody else who asks for `name` is inside such a block. Waits for none."""
    with psycopg.connect(**own_connection_params(), autocommit=True) as own:
        found = own.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [name]).fetchone()
        yield found == (True,)


def schema_lock(schema_name: str) -> str:
    """Of whoever builds or migrates that schema."""
    return f"tenant-schema:{schema_name}"
