"""How many tokens JSON can become where a server puts it before its model. Pure.

Owns the bound of tools, of their calls and of schemas. Must not know which of a request's fields these are
(chat.v1.reading does).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from chat.history import most_bytes

# What stands around tools: how to call them, and in which form. Anthropic publishes what it adds: at most 530 tokens
# (docs: "Tool use", its table of system prompts). Templates of open models add 60 to 300.
TOOLS_OVERHEAD = 1_024
# Markers around each of them, or around a call of one.
TOOL_OVERHEAD = 32
# Some templates write a call's arguments as tags: <parameter=name>…</parameter>, or special tokens around each part.
ARGUMENT_OVERHEAD = 16

_INDENT = 4
_ESCAPED = "<>&'"
_EXPONENT = re.compile(r"\d[eE][+-]?(\d+)")
# Written out, a number has as many digits as its exponent says: 1e300 becomes 301, and six behind its point.
_EXPONENT_BYTES, _LARGEST_EXPONENT = 24, 308
# An escape in a text that is JSON itself, and what its letter has at most beyond the escape's own seven bytes: the
# ligature U+FDFA has 33 once it is spelled out (chat.history).
_INNER_ESCAPE = r"\\u"
_INNER_ESCAPE_BYTES = 33 - 7


def json_size(value: Any) -> int:
    """Bytes of it, as a habit's ratio counts them."""
    return len(_compact(value))


def json_bound(value: Any) -> int:
    """Bytes that it becomes at most on one line: other separators, escapes for HTML or for ASCII, numbers written out.

    A text within it may be JSON itself, such as the arguments of a call, and be read and written anew.
    """
    return _line_bound(value, _compact(value))


def calls_bound(calls: list[Any]) -> int:
    """Of calls that a model made of tools, in the history."""
    text = _compact(calls)
    return _line_bound(calls, text) + ARGUMENT_OVERHEAD * text.count(":") + TOOL_OVERHEAD * len(calls)


def tools_bound(tools: list[Any]) -> int:
    """Of descriptions of tools. Templates write them as JSON, indented or not, or as a signature and a text, in which
    the names of arguments stand twice.
    """
    line = json_bound(tools)
    return TOOLS_OVERHEAD + TOOL_OVERHEAD * len(tools) + max(2 * line, line + _indents(tools))


def schema_bound(schema: dict[str, Any]) -> int:
    """Of the form that an answer must have, which some servers describe to their model."""
    line = json_bound(schema)
    return TOOLS_OVERHEAD + line + _indents(schema)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _line_bound(value: Any, text: str) -> int:
    more = text.count(",") + text.count(":") + 5 * sum(map(text.count, _ESCAPED))
    if "e" in text or "E" in text:
        found = Counter(match[1] for match in _EXPONENT.finditer(text))
        more += sum(times * _written_out(exponent) for exponent, times in found.items())
    if "\\u" not in text:
        return len(text) + more
    more += _INNER_ESCAPE_BYTES * text.count(_INNER_ESCAPE)
    return max(len(text), most_bytes(json.dumps(value, ensure_ascii=False, separators=(",", ":")))) + more


def _written_out(exponent: str) -> int:
    digits = exponent.lstrip("0")
    return _EXPONENT_BYTES + (min(int(digits or 0), _LARGEST_EXPONENT) if len(digits) <= 3 else _LARGEST_EXPONENT)


def _indents(value: Any) -> int:
    """Bytes of line breaks and spaces, where each value has a line of its own. A loop over levels: no recursion."""
    total, depth, level = 0, 0, [value]
    while level:
        depth += 1
        inner: list[Any] = []
        for whole in level:
            if isinstance(whole, dict | list):
                values = whole.values() if isinstance(whole, dict) else whole
                inner.extend(values)
                # Its closing bracket has a line, too.
                total += 1 + _INDENT * (depth - 1)
        total += len(inner) * (1 + _INDENT * depth)
        level = inner
    return total
