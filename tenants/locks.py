"""Locks that hold across processes. Owns taking one and giving it back; must not know what is done under it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from django.db import connection


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Nobody else who asks for `name` is inside this block, in any process.

    On a connection of its own: migrations close Django's.
    """
    params = connection.get_connection_params()
    wanted = {key: value for key, value in params.items() if key not in {"cursor_factory", "context", "pool"}}
    with psycopg.connect(**wanted, autocommit=True) as own:
        own.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
        yield


def schema_lock(schema_name: str) -> str:
    """Of whoever builds or migrates that schema."""
    return f"tenant-schema:{schema_name}"
