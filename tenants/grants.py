"""What web's and plane's role may do in the database: read and write rows, and make or drop nothing.

Owns every GRANT. The owner of the tables gives them after each migration and to each new schema; to tables that a later
migration makes Postgres gives them by itself. A schema that is not named here, such as the embedded authority's, stays
closed: who serves cannot write itself money. Must not know a table of an app: settings name those that are special.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import connection, transaction
from psycopg import sql

PUBLIC = "public"
ROWS = ["DELETE", "INSERT", "SELECT", "UPDATE"]


class UnsafeServingRole(Exception):
    """The role that is to serve cannot be given grants, or may do more than they say. The text says what to change."""


class NoBuilder(Exception):
    """The role that is to build workspaces may make nothing. The text says what to set."""


def refuse_who_cannot_build() -> None:
    """Whoever is asked to make schemas and may not: each sign-up would wait for ever."""
    row = _one("SELECT current_user, has_database_privilege(current_database(), 'CREATE')", [])
    if row and not row[1]:
        raise NoBuilder(
            f"DATABASE_OWNER_URL is not the owner's: this process builds workspaces, and the role {row[0]}, as which "
            "it connects, may make nothing in the database. Write the role that owns it; where DATABASE_OWNER_URL "
            "is not set, that of DATABASE_URL is taken."
        )


def on_public() -> None:
    """After migrating public: the role is fit to serve, and may use public and every workspace that it may not yet.

    So the first migration after the role was named opens the workspaces that were there before.
    """
    role = settings.SERVING_ROLE
    if not role:
        return
    _refuse_powerful(role)
    with connection.cursor() as cursor:
        # The comment that tenants.services writes.
        cursor.execute(
            """SELECT nspname FROM pg_namespace WHERE obj_description(oid, 'pg_namespace') LIKE 'tenant:%%'
            AND NOT has_schema_privilege(%s, oid, 'USAGE')""",
            [role],
        )
        closed = [name for (name,) in cursor.fetchall()]
    # Public last: who may read public and not a workspace's schema would be shown public's rows in that workspace.
    for name in [*closed, PUBLIC]:
        on_schema(name)
    _refuse_makers(role)


def on_schema(name: str) -> None:
    """A schema was made or migrated: the role may use what stands in it. In the caller's transaction if there is one.

    Only what differs is granted, for each grant leaves a dead row in the catalogue, and there are many schemas.
    """
    role = settings.SERVING_ROLE
    if not role:
        return
    with transaction.atomic(), connection.cursor() as cursor:
        # Two who grant on one table at once would fail: "tuple concurrently updated".
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"grants:{name}"])
        cursor.execute(_DIFFERENT, {"schema": name, "role": role, "append_only": settings.APPEND_ONLY_TABLES})
        commands = [_change(role, name, *row) for row in cursor.fetchall()]
        if commands:
            cursor.execute(sql.SQL(";\n").join(commands))


# What the role has, and what it should have, where the two differ. `pg_has_role`: an extension's objects, which the
# superuser made, are not ours to grant.
_DIFFERENT = """
WITH the AS (SELECT oid, nspacl FROM pg_namespace WHERE nspname = %(schema)s)
SELECT 'SCHEMA', NULL, ARRAY['USAGE'] FROM the
WHERE NOT EXISTS (SELECT FROM aclexplode(nspacl) WHERE grantee = %(role)s::regrole)
UNION ALL
SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, relname, wanted
FROM pg_class JOIN the ON the.oid = relnamespace
CROSS JOIN LATERAL (SELECT CASE
    WHEN relkind = 'S' THEN ARRAY['USAGE']
    WHEN relname = 'django_migrations' THEN ARRAY['SELECT']
    WHEN relname = ANY(%(append_only)s) THEN ARRAY['INSERT', 'SELECT']
    ELSE ARRAY['DELETE', 'INSERT', 'SELECT', 'UPDATE']
END) AS should (wanted)
WHERE relkind IN ('r', 'p', 'v', 'm', 'S') AND pg_has_role(relowner, 'USAGE') AND wanted IS DISTINCT FROM (
    SELECT array_agg(privilege_type ORDER BY privilege_type) FROM aclexplode(relacl) WHERE grantee = %(role)s::regrole
)
UNION ALL
-- Everybody may call a function, unless the operator has said otherwise.
SELECT 'ROUTINE', pg_proc.oid::regprocedure::text, ARRAY['EXECUTE'] FROM pg_proc JOIN the ON the.oid = pronamespace
WHERE pg_has_role(proowner, 'USAGE') AND NOT has_function_privilege(%(role)s, pg_proc.oid, 'EXECUTE')
"""


def _change(role: str, schema: str, kind: str, name: str | None, wanted: list[str]) -> sql.Composable:
    """One row of the above as statements."""
    to = sql.Identifier(role)
    if name is None:
        return sql.SQL(
            """GRANT USAGE ON SCHEMA {schema} TO {role};
            ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {rows} ON TABLES TO {role};
            ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE ON SEQUENCES TO {role}"""
        ).format(schema=sql.Identifier(schema), rows=_words(ROWS), role=to)
    # regprocedure has written the name of a function as SQL needs it, with its arguments.
    what = sql.SQL(name) if kind == "ROUTINE" else sql.Identifier(schema, name)
    return sql.SQL("REVOKE ALL ON {kind} {what} FROM {role}; GRANT {wanted} ON {kind} {what} TO {role}").format(
        kind=_words([kind]), what=what, wanted=_words(wanted), role=to
    )


def _words(words: list[str]) -> sql.Composable:
    """Words of SQL, which are ours or the catalogue's."""
    return sql.SQL(", ").join(sql.SQL(word) for word in words)


# --- a role that is no use as a fence -------------------------------------------------------------------------------


def _refuse_powerful(role: str) -> None:
    row = _one(
        """SELECT rolsuper, rolcreatedb, rolcreaterole, rolbypassrls, pg_has_role(rolname, current_user, 'MEMBER'),
            oid = (SELECT datdba FROM pg_database WHERE datname = current_database())
        FROM pg_roles WHERE rolname = %s""",
        [role],
    )
    if row is None:
        raise UnsafeServingRole(f"The role {role} of DATABASE_URL does not exist: make it, CREATE ROLE {role} LOGIN.")
    if row[5]:
        raise UnsafeServingRole(
            f"The role {role} of DATABASE_URL owns the database: it belongs into DATABASE_OWNER_URL, and a role that "
            "owns nothing into DATABASE_URL."
        )
    powers = ["SUPERUSER", "CREATEDB", "CREATEROLE", "BYPASSRLS"]
    if has := [power for power, is_there in zip(powers, row, strict=False) if is_there]:
        without = " ".join(f"NO{power}" for power in has)
        raise UnsafeServingRole(
            f"The role {role} of DATABASE_URL is {', '.join(has)}: ALTER ROLE {role} {without}, or name another."
        )
    if row[4]:
        raise UnsafeServingRole(f"The role {role} of DATABASE_URL is a member of the owner's: REVOKE that.")


def _refuse_makers(role: str) -> None:
    """Before Postgres 15 everybody could make tables in public, and an upgraded database keeps that."""
    may = _one("SELECT has_schema_privilege(%s, 'public', 'CREATE')", [role])
    if may and may[0]:
        raise UnsafeServingRole(
            f"The role {role} may make tables in public: REVOKE CREATE ON SCHEMA public FROM PUBLIC."
        )
    may = _one("SELECT has_database_privilege(%s, current_database(), 'CREATE')", [role])
    if may and may[0]:
        raise UnsafeServingRole(f"The role {role} may make schemas: REVOKE CREATE ON DATABASE … FROM PUBLIC, {role}.")


def _one(query: str, params: list[Any]) -> tuple[Any, ...] | None:
    with connection.cursor() as cursor:
        cursor.execute(query, params)
        row: tuple[Any, ...] | None = cursor.fetchone()
    return row
