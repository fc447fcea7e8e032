"""Calling the SQL operations: names, casts, and what a database error means to a caller. No state, no connection."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg

from billing.authority.errors import Refusal, invalid

# Each operation's parameters: the names they have in `sql/` without the `p_`, and the casts that an untyped null needs.
# One call is one transaction.
# fmt: off
OPERATIONS = {
    "authenticate": ("prefix", "digest"),
    "decide": (
        "prefix", "digest", "subject_tenant", "key", "request", "scopes::text[]", "unit", "amount::bigint", "subject",
        "action", "context::jsonb",
    ),
    "reserve": (
        "prefix", "digest", "subject_tenant", "key", "request", "scopes::text[]", "unit", "amount::bigint",
        "ttl_ms::bigint", "grace_ms::bigint", "policy", "dry_run", "subject", "action", "metadata", "context::jsonb",
    ),
    "commit_reservation": (
        "prefix", "digest", "reservation::uuid", "key", "request", "unit", "actual::bigint", "metrics", "metadata",
        "context::jsonb",
    ),
    "release_reservation": (
        "prefix", "digest", "operator", "reservation::uuid", "key", "request", "reason", "context::jsonb",
    ),
    "extend_reservation": ("prefix", "digest", "reservation::uuid", "key", "request", "extend_by_ms::bigint"),
    "book_event": (
        "prefix", "digest", "subject_tenant", "key", "request", "scopes::text[]", "unit", "actual::bigint", "policy",
        "details", "context::jsonb",
    ),
    "fund": (
        "tenant", "scope", "unit", "operation", "amount::bigint", "spent::bigint", "reason", "key", "request",
    ),
    "create_budget": (
        "tenant", "scope", "unit", "allocated::bigint", "overdraft_limit::bigint", "policy", "rollover",
        "period_start::timestamptz", "period_end::timestamptz", "metadata::jsonb",
    ),
    "set_budget_status": ("scope", "unit", "status"),
    "patch_budget": ("scope", "unit", "overdraft_limit::bigint", "policy", "metadata::jsonb"),
    "set_caps": ("scope", "unit", "caps::jsonb"),
}
# fmt: on


def _statement(operation: str, parameters: Iterable[str]) -> str:
    """`SELECT … FROM fund(p_tenant => %(tenant)s, …, p_amount => %(amount)s::bigint, …)`"""
    named = ((name, mark + cast) for name, mark, cast in (parameter.partition("::") for parameter in parameters))
    arguments = ", ".join(f"p_{name} => %({name})s{cast}" for name, cast in named)
    return f"SELECT answer_status, answer_tenant, answer_body::text FROM {operation}({arguments})"  # noqa: S608


STATEMENTS = {operation: _statement(operation, parameters) for operation, parameters in OPERATIONS.items()}
# The operations that can be done together. Their members are records of these same names: `gathered_member` in `sql/`.
TOGETHER = {"reserve", "commit_reservation"}
GATHERED = """SELECT answer_place, answer_status, answer_tenant, answer_body::text
    FROM gathered(p_members => %(members)s::json)"""
# Options of a connection that runs them. Plans are made once and kept for as long as it lives: to plan statements with
# an array anew, as Postgres prefers where the array is short, was a ninth of the work. One made while a table was empty
# would read all of it for ever after (measured: a third of the speed gone within 10,000 calls), and sizes of arrays are
# guessed in any case. Every look-up of the operations has its index.
BY_INDEX = " ".join(
    [
        "-c plan_cache_mode=force_generic_plan",
        "-c enable_seqscan=off",
        "-c enable_bitmapscan=off",  # which has to sort what the index has in the order of the locks already
        "-c enable_hashjoin=off",
        "-c enable_mergejoin=off",
        "-c enable_material=off",  # which reads a small table's whole index, to look its rows up in memory
    ]
)
# Another transaction finished this key first; or two met in a deadlock. Either way nothing is stored: ask once more.
TRY_AGAIN = (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


def refused_by(error: psycopg.DataError) -> Refusal:
    """A value the database cannot keep. The transaction is gone, so nothing is stored."""
    if isinstance(error, psycopg.errors.NumericValueOutOfRange):
        return invalid("The amount pushes a budget past 2^63-1 in its unit. Use a smaller amount.")
    return invalid("A value of this request cannot be stored. Send plain text and whole numbers.")
