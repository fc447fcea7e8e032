"""Connections to Postgres that are not Django's. Owns where they lead; must not open one, nor know a schema."""

from __future__ import annotations

from typing import Any

from django.db import connection


def own_connection_params() -> dict[str, Any]:
    """For psycopg.connect and its pools: where Django's connection goes, so that a test's meets the test's database.

    Without what is Django's alone: its cursors, its adapters and its pool.
    """
    params = connection.get_connection_params()
    return {key: value for key, value in params.items() if key not in {"cursor_factory", "context", "pool"}}


def listening_params(name: str) -> dict[str, Any]:
    """Of a session that hears what others tell. `name` is for an operator who looks at the sessions.

    One whose other end is gone without a word is given up in seconds: TCP by itself waits for a quarter of an hour.
    """
    params = {**own_connection_params(), "autocommit": True, "application_name": name}
    return params | {"connect_timeout": 5, "tcp_user_timeout": 5_000}
