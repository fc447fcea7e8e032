"""The roles of the embedded Postgres: who owns the tables, and who serves.

Owns making them, in a database that an earlier version made too. Must grant nothing within the database: what web's
role may do with tables is one text for all databases, tenants.grants.
"""

from __future__ import annotations

from typing import Any

import psycopg

from config.env import BASE_DIR

OWNER, SERVING = "app_owner", "app_serving"
HAND_OVER = BASE_DIR / "config" / "postgres" / "2-hand-over.sql"


def ensure_roles(connection: psycopg.Connection[Any]) -> None:
    """Both, and every database that the superuser has, so that tests can drop what an earlier version left."""
    there = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles").fetchall()}
    if OWNER not in there:
        # Tests and benchmarks make databases of their own.
        connection.execute(f"CREATE ROLE {OWNER} LOGIN CREATEDB")
        # They count what a call asks of the database by its log.
        connection.execute(f"GRANT SET ON PARAMETER log_statement TO {OWNER}")
    if SERVING not in there:
        # The owner is a member of it, and sees and ends web's sessions as its own; never the other way round.
        connection.execute(f"CREATE ROLE {SERVING} LOGIN ROLE {OWNER}")
    former = connection.execute(
        "SELECT quote_ident(datname) FROM pg_database WHERE datdba = current_user::regrole "
        "AND datname <> 'postgres' AND NOT datistemplate"
    )
    for (name,) in former.fetchall():
        connection.execute(f"ALTER DATABASE {name} OWNER TO {OWNER}")


def hand_over(connection: psycopg.Connection[Any]) -> None:
    """What the superuser made in this database belongs to the owner: before, one role did everything."""
    connection.execute(HAND_OVER.read_bytes())
    # A table of web's own would stay in a pooled connection, before the tables of whoever is served next.
    for (name,) in connection.execute("SELECT quote_ident(current_database())").fetchall():
        connection.execute(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
