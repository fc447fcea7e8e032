"""Databases that a test makes beside its own and drops, and what goes on in its own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg

PATIENCE = 20.0


def drop_database(connection: psycopg.Connection[Any], name: str) -> None:
    """Also while Postgres' own vacuum is in it, which only a superuser may end: it is soon done."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
        except psycopg.errors.InsufficientPrivilege:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


async def begun(connection: psycopg.AsyncConnection[Any], url: str) -> None:
    """Wait until the server works on what the connection was asked for, however busy the machine is."""
    working = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND query LIKE '%%pg_sleep%%'"
    async with asyncio.timeout(PATIENCE), await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
        while not await (await other.execute(working, [connection.info.backend_pid])).fetchone():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
