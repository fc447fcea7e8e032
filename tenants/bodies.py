"""What a body may cost: how many values or parts, how deep, which characters. Pure: bytes in, a dict or Invalid out.

Owns reading JSON before anybody knows what it should hold, and looking at a form before Django reads it. Everything
here takes time in proportion to the body: a recursive generator took 24 s over 1 MiB of brackets, the garbage
collector 0.3 s over as many empty lists, and Django's reader of forms 1.8 s over a million semicolons.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import isinf
from typing import Any

from tenants.http import Invalid

DEPTH = 20
VALUES = 20_000
# Of a form. A thousand fields, which is Django's own limit, have three thousand signs in their heads.
SIGNS = 10_000
ESCAPES = 200_000
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")

_HEAD = 1024  # longer heads are refused by Django

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def read_object(raw: bytes, *, most_values: int = VALUES) -> dict[str, Any]:
    """The JSON object in `raw`. Nothing it lets through can upset Postgres or a model."""
    try:
        text = raw.decode("utf-8")
        if _has_too_many_values(text, most_values):
            raise _refused(f"This has more than {most_values:,} values. Send less at a time.")
        body = _decoder.decode(text)
    except (ValueError, RecursionError):
        raise _refused("This is not valid JSON.") from None
    if not isinstance(body, dict):
        raise _refused("Send a JSON object.")
    if text.count("[") + text.count("{") > DEPTH:
        _refuse_depth(body)
    # UTF-8 knows no lone surrogate and JSON no bare NUL: only an escape can bring one.
    if "\\u" in text:
        _refuse_unstorable(body)
    return body


def check_form(raw: bytes, *, boundary: str | None) -> None:
    """Refuses a form that takes Django's readers more than a moment. `boundary`: of a multipart one."""
    if boundary is None:
        costly = raw.count(b"%") > ESCAPES
    else:
        costly = _signs(raw, b"--" + boundary.encode("ascii", "replace")) > SIGNS
    if costly:
        raise _refused("This form has too many parts. Send less at a time.")


def _signs(raw: bytes, delimiter: bytes) -> int:
    """Lines and parameters in the heads of the parts: each is read by a parser of e-mail, one that is nameless too."""
    if (signs := raw.count(delimiter)) > SIGNS:
        return signs
    heads = (part[:_HEAD].partition(b"\r\n\r\n")[0] for part in raw.split(delimiter))
    return sum(head.count(b"\n") + head.count(b";") for head in heads)


def _refused(why: str) -> Invalid:
    return Invalid({"body": [why]})


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON.")


def _finite(number: str) -> float:
    """1e400 is JSON, and infinite here: what is passed on of it would be no JSON."""
    if isinf(value := float(number)):
        raise ValueError("A number is too large.")
    return value


_decoder = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)


def _has_too_many_values(text: str, most: int) -> bool:
    """Counted before it is parsed: each value but the first in its container comes after a comma."""
    if _values(text) <= most:
        return False
    # Most texts that come here are a long string with commas in it. Without the escapes, every other part between
    # quotes is outside of a string.
    plain = text.replace("\\\\", "").replace('\\"', "")
    return _values("".join(plain.split('"')[::2])) > most


def _values(text: str) -> int:
    return text.count(",") + text.count("[") + text.count("{")


def _containers(value: Any) -> Iterator[list[Any]]:
    """The lists and dicts in `value`, a list of them for each level of nesting, from the outermost inwards."""
    level = [value]
    while level := [part for part in level if isinstance(part, list | dict)]:
        yield level
        level = [part for whole in level for part in (whole.values() if isinstance(whole, dict) else whole)]


def _refuse_depth(body: dict[str, Any]) -> None:
    for depth, _ in enumerate(_containers(body), start=1):
        if depth > DEPTH:
            raise _refused(f"This is nested more than {DEPTH} deep.")


def _refuse_unstorable(body: dict[str, Any]) -> None:
    """NUL bytes (Postgres refuses them) and lone surrogates (no UTF-8 for them), in any text, names included."""
    for name, value in body.items():
        if _UNSTORABLE.search(name) or any(_UNSTORABLE.search(text) for text in _texts(value)):
            raise Invalid({_printable(name): ["Remove NUL characters and broken surrogates."]})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for level in _containers(value):
        for whole in level:
            yield from (part for part in whole if isinstance(part, str))  # the names, in a dict
            if isinstance(whole, dict):
                yield from (part for part in whole.values() if isinstance(part, str))


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode().replace("\x00", "")
