"""A database that only reads for a while. Owns how that is made; ends nobody's session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def only_reads() -> Iterator[None]:
    """Sessions that this process begins in this block take nothing that is written, and stay so after it.

    Of this process alone: a thread of the authority that began its own in that time would refuse all tests that follow.
    """
    usual = os.environ.get("PGOPTIONS", "")
    with patch.dict(os.environ, PGOPTIONS=f"{usual} -c default_transaction_read_only=on"):
        yield
