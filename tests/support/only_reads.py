"""A database that only reads for a while. Owns how that is made; ends nobody's session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

from tests.support.jobs import rows


@contextmanager
def only_reads() -> Iterator[None]:
    """Sessions that are begun in this block take nothing that is written, and stay so after it."""
    role = 'ALTER ROLE CURRENT_USER IN DATABASE "{}" {} default_transaction_read_only'
    database = connection.settings_dict["NAME"]
    rows(role.format(database, "SET") + " = on")
    try:
        yield
    finally:
        rows(role.format(database, "RESET"))
