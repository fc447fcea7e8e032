"""A request of an OpenAI client: what is asked for, and the most that its input can be. Pure.

Owns which fields are passed on, and the refusal that names one which is not. Must not know who asks, nor a price.
"""

from __future__ import annotations

import json
from typing import Any

from chat.passed import Kind, Passed
from tenants.http import Invalid


def read(kind: Kind, body: dict[str, Any]) -> Passed:
    """Raises Invalid, with the field as its client wrote it: `messages[0].content`."""
    model = body.get("model")
    if not isinstance(model, str) or not 1 <= len(model) <= 200:
        raise Invalid({"model": ["Name the model to ask; /v1/models lists them."]})
    asked = json.dumps({name: value for name, value in body.items() if name in _READ}, ensure_ascii=False)
    size = len(asked.encode())
    options = body.get("stream_options") or {}
    return Passed(
        kind=kind,
        body=body,
        model=model,
        is_stream=body.get("stream") is True,
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        bound=size,
        size=size,
        messages=len(body.get("messages") or [1]),
        n=body.get("n") or 1,
        wants_usage=options.get("include_usage") is True,
    )


# What a template can put before the model.
_READ = (
    "messages",
    "tools",
    "tool_choice",
    "response_format",
    "functions",
    "function_call",
    "prompt",
    "suffix",
    "input",
)
