"""Our errors as OpenAI's clients read them: the shape, the status, and whether to send the request again. Pure.

Must not tell anything that the error itself does not.
"""

from __future__ import annotations

import json
from typing import Any

from tenants.http import ApiError


def refusal(exc: ApiError) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and body."""
    error = {"message": exc.message, "type": "invalid_request_error", "param": None, "code": exc.code, **exc.extra}
    headers = {} if exc.retry_after_ms is None else {"retry-after": str(-(-exc.retry_after_ms // 1000))}
    return exc.status, headers, {"error": error}


def error_chunk(exc: ApiError) -> bytes:
    """The same for a stream that has begun: the stock client raises it."""
    return b"data: " + json.dumps(refusal(exc)[2], separators=(",", ":")).encode() + b"\n\n"
