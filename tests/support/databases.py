"""Databases that a test makes beside its own, and drops."""

from __future__ import annotations

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
