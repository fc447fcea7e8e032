"""Server-sent events: a name and data in, bytes out. Pure; knows no event of its own."""

from __future__ import annotations

import json
from typing import Any


def event(name: str, data: Any) -> bytes:
    """One event, its data as JSON on one line.

    All of it ASCII: a line separator or half an emoji inside a model's words stays an escape until the reader's
    JSON parser has it, and cannot end the line.
    """
    if not name.isprintable() or not name:
        raise ValueError("an event's name is one line of text")
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n".encode()


def comment(text: str) -> bytes:
    """A line that readers skip. It keeps the connection alive."""
    return f": {' '.join(text.split())}\n\n".encode(errors="replace")
