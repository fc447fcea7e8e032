"""What a process of a test's has written so far. Owns how that is read; must not know what it says."""

from __future__ import annotations

import os
from typing import Any

MOST_BYTES = 1_000_000


def said_so_far(log: Any) -> str:
    """Of a file that the process writes to. By pread: a seek would move the place at which the process writes."""
    return os.pread(log.fileno(), MOST_BYTES, 0).decode("utf-8", "replace")
