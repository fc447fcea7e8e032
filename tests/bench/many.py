"""Thousands of workspaces at once: copies of one that signed up, made in SQL, for sign-ups would take hours.

Owns the copying. A copy has every table, key, index and reference of the first one's schema, its rows of people and
migrations, a ledger, and keys of its own; it has no conversations.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import uuid
from typing import Any

from cryptography.fernet import Fernet
from psycopg import sql

from tests.bench.stacks import ALLOCATED, Stack, Workspace
from tests.support.authority import SEALING_KEY, UNIT

BATCH = 25  # schemas in one transaction: each locks all of its tables
COPIED = ("django_migrations", "django_content_type", "auth_permission", "users_user")
TABLES = """
    SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r' ORDER BY relname"""
REFERENCES = """
    SELECT c.relname, k.conname, pg_get_constraintdef(k.oid) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
    WHERE k.contype = 'f' AND k.connamespace = %s::regnamespace"""


def grow(stack: Stack, count: int) -> None:
    """Bring the stack to `count` workspaces. The first one is the pattern."""
    connection = stack.connection
    pattern = Pattern(connection, stack.workspaces[0].slug)
    connection.execute("SET synchronous_commit = off")
    while (left := count - len(stack.workspaces)) > 0:
        with connection.transaction():
            stack.workspaces += [pattern.copy() for _ in range(min(left, BATCH))]
    connection.execute("RESET synchronous_commit")
    connection.execute("ANALYZE")
    connection.execute("CHECKPOINT")


class Pattern:
    """A workspace that signed up, and what a copy of it is made of."""

    def __init__(self, connection: Any, slug: str) -> None:
        self._connection = connection
        self._slug = slug
        self._tenant, self._schema = self._one(
            "SELECT id, schema_name FROM public.tenants_tenant WHERE slug = %s", slug
        )
        self._account, self._subject = self._one(
            "SELECT id, subject_tenant FROM public.billing_account WHERE tenant_id = %s", self._tenant
        )
        (self._payer,) = self._one("SELECT id FROM authority.tenant WHERE tenant_id = %s", self._subject)
        (self._key,) = self._one("SELECT id FROM authority.api_key WHERE tenant_id = %s LIMIT 1", self._payer)
        self._tables = [name for (name,) in connection.execute(TABLES, [self._schema]).fetchall()]
        self._references = self._find_references()
        self._seal = Fernet(SEALING_KEY)
        self._number = 0

    def _find_references(self) -> list[tuple[str, str, str]]:
        # With nothing in the search path, the definitions name the schema, and so can be turned to another.
        with self._connection.transaction():
            self._connection.execute("SET LOCAL search_path = ''")
            return list(self._connection.execute(REFERENCES, [self._schema]).fetchall())

    def copy(self) -> Workspace:
        self._number += 1
        made = Workspace(
            slug=f"copy-{secrets.token_hex(8)}",
            subject=f"ws-{secrets.token_hex(10)}",
            key=f"tk_{secrets.token_urlsafe(32)}",
        )
        schema = f"t_{secrets.token_hex(10)}"
        self._copy_public(made, schema)
        self._copy_authority(made)
        self._copy_schema(made, schema)
        return made

    def _copy_public(self, made: Workspace, schema: str) -> None:
        self._paying = f"cyc_live_{self._number:05d}{secrets.token_urlsafe(20)}"
        tenant = self._row("public.tenants_tenant", self._tenant, slug=made.slug, schema_name=schema)
        host = f"{made.slug}.localhost"
        (domain,) = self._one("SELECT id FROM public.tenants_domain WHERE tenant_id = %s", self._tenant)
        self._row("public.tenants_domain", domain, tenant_id=tenant, domain=host)
        sealed = self._seal.encrypt(self._paying.encode()).decode()
        self._row(
            "public.billing_account", self._account, tenant_id=tenant, subject_tenant=made.subject, sealed_key=sealed
        )
        name = sql.Identifier(schema)
        self._connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        self._connection.execute(sql.SQL("COMMENT ON SCHEMA {} IS {}").format(name, f"tenant:{tenant}"))

    def _copy_authority(self, made: Workspace) -> None:
        payer = self._row("authority.tenant", self._payer, tenant_id=made.subject)
        digest = hashlib.sha256(self._paying.encode()).hexdigest()
        self._row(
            "authority.api_key",
            self._key,
            tenant_id=payer,
            key_id=made.subject,
            prefix=self._paying[:14],
            digest=f"\\x{digest}",
        )
        self._connection.execute(
            "INSERT INTO authority.ledger (ledger_id, tenant_id, scope, unit, allocated) VALUES (%s, %s, %s, %s, %s)",
            [uuid.uuid4(), payer, f"tenant:{made.subject}", UNIT, ALLOCATED],
        )

    def _copy_schema(self, made: Workspace, schema: str) -> None:
        for table in self._tables:
            old, new = sql.Identifier(self._schema, table), sql.Identifier(schema, table)
            self._connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(new, old))
            if table in COPIED:
                self._connection.execute(
                    sql.SQL("INSERT INTO {} OVERRIDING SYSTEM VALUE SELECT * FROM {}").format(new, old)
                )
        for table, name, definition in self._references:
            turned = definition.replace(f"{self._schema}.", f"{schema}.")
            self._connection.execute(
                sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
                    sql.Identifier(schema, table), sql.Identifier(name), sql.SQL(turned)
                )
            )
        secret = hashlib.sha256(made.key.encode()).hexdigest()
        self._connection.execute(
            sql.SQL(
                "INSERT INTO {} (user_id, name, prefix, digest, created_at)"
                " SELECT min(id), 'bench', %s, %s, now() FROM {}"
            ).format(sql.Identifier(schema, "users_apikey"), sql.Identifier(schema, "users_user")),
            [made.key[:11], secret],
        )

    def _row(self, table: str, pattern: int, **changes: Any) -> int:
        """A copy of a row with some columns changed and an id of its own, which is given back."""
        name = sql.Identifier(*table.split("."))
        query = sql.SQL(
            "INSERT INTO {0} OVERRIDING SYSTEM VALUE SELECT (jsonb_populate_record(r, %s::jsonb || jsonb_build_object("
            "'id', nextval(pg_get_serial_sequence(%s, 'id'))))).* FROM {0} r WHERE id = %s RETURNING id"
        ).format(name)
        (made,) = self._one(query, json.dumps(changes), table, pattern)
        return int(made)

    def _one(self, query: Any, *parameters: Any) -> tuple[Any, ...]:
        row = self._connection.execute(query, parameters).fetchone()
        assert row is not None, query
        return tuple(row)
