"""Calling the SQL operations: names, casts, and what a database error means to a caller. No state, no connection."""

from __future__ import annotations

import psycopg

from billing.authority.errors import Refusal, invalid

# Each operation's parameters, with the casts that an untyped null needs. One call is one transaction.
OPERATIONS = {
    "authenticate": "%s, %s",
    "decide": "%s, %s, %s, %s, %s, %s::text[], %s, %s::bigint, %s, %s, %s::jsonb",
    "reserve": "%s, %s, %s, %s, %s, %s::text[], %s, %s::bigint, %s::bigint, %s::bigint, %s, %s, %s, %s, %s, %s::jsonb",
    "commit_reservation": "%s, %s, %s::uuid, %s, %s, %s, %s::bigint, %s, %s, %s::jsonb",
    "release_reservation": "%s, %s, %s, %s::uuid, %s, %s, %s, %s::jsonb",
    "extend_reservation": "%s, %s, %s::uuid, %s, %s, %s::bigint",
    "book_event": "%s, %s, %s, %s, %s, %s::text[], %s, %s::bigint, %s, %s, %s::jsonb",
    "fund": "%s, %s, %s, %s, %s::bigint, %s::bigint, %s, %s, %s",
    "create_budget": "%s, %s, %s, %s::bigint, %s::bigint, %s, %s, %s::timestamptz, %s::timestamptz, %s::jsonb",
    "set_budget_status": "%s, %s, %s",
    "patch_budget": "%s, %s, %s::bigint, %s, %s::jsonb",
    "set_caps": "%s, %s, %s::jsonb",
}
STATEMENTS = {
    name: f"SELECT answer_status, answer_tenant, answer_body::text FROM {name}({parameters})"  # noqa: S608 - names above
    for name, parameters in OPERATIONS.items()
}
# The operations that can be done together, with what `gathered` calls their parameters.
# fmt: off
PARAMETERS = {
    "reserve": (
        "prefix", "digest", "subject_tenant", "key", "request", "scopes", "unit", "amount", "ttl_ms", "grace_ms",
        "policy", "dry_run", "subject", "action", "metadata", "context",
    ),
    "commit_reservation": (
        "prefix", "digest", "reservation", "key", "request", "unit", "amount", "metrics", "metadata",
        "context",
    ),
}
# fmt: on
GATHERED = "SELECT answer_place, answer_status, answer_tenant, answer_body::text FROM gathered(%s::json)"
# Options of a connection that runs them. Plans are kept for as long as it lives: one made while a table was empty would
# read all of it for ever after (measured: a third of the speed gone within 10,000 calls), and sizes of arrays are
# guessed in any case. Every look-up of the operations has its index.
BY_INDEX = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"
# Another transaction finished this key first; or two met in a deadlock. Either way nothing is stored: ask once more.
TRY_AGAIN = (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


def refused_by(error: psycopg.DataError) -> Refusal:
    """A value the database cannot keep. The transaction is gone, so nothing is stored."""
    if isinstance(error, psycopg.errors.NumericValueOutOfRange):
        return invalid("The amount pushes a budget past 2^63-1 in its unit. Use a smaller amount.")
    return invalid("A value of this request cannot be stored. Send plain text and whole numbers.")
