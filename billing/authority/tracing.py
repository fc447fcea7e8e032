"""Request and trace ids, pure: taken from a caller where they are valid, made where they are not."""

from __future__ import annotations

import re
import secrets

_TRACE = re.compile(r"[0-9a-f]{32}")
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_ZERO = "0" * 32
HEALTH_MEDIA = "application/vnd.spring-boot.actuator.v3+json"  # what probes written for the real servers expect


def storable(text: str | None) -> str | None:
    """A header's text, short enough to keep and without the character that jsonb refuses."""
    return None if text is None else text.replace("\x00", "")[:512]


def trace_id(traceparent: str | None, header: str | None) -> str:
    """The trace of `traceparent`, else of X-Cycles-Trace-Id, else a new one."""
    parent = _PARENT.fullmatch(traceparent or "")
    if parent and parent[1] != _ZERO and parent[2] != "0" * 16:
        return parent[1]
    if header and _TRACE.fullmatch(header) and header != _ZERO:
        return header
    return secrets.token_hex(16)
