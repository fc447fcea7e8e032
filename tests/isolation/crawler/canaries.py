"""Canaries: strings that nobody can guess, each with its kind and its holder, and finding them in bytes.

Must not know where they are planted. A canary is lower-case letters and digits, so that it looks the same in HTML, in
JSON, in an address and in any letter case; secrets that the product makes itself are looked for in each of those forms.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import re
import secrets
import zipfile
from dataclasses import dataclass
from functools import cache
from urllib.parse import quote

LENGTH = 18


@dataclass(frozen=True, slots=True)
class Canary:
    """`kind` says what it stands in (`chat.Message.text`), `holder` whose it is, by slug."""

    kind: str
    holder: str
    value: str


class Canaries:
    """All canaries of one run. They share their first letters, so that most texts are done with after five looks."""

    def __init__(self) -> None:
        self._mark = "cn" + secrets.token_hex(5)
        # As most texts have them, and the rarer ways, which only looking for each canary finds.
        self._plain = re.compile(self._mark.encode() + rb"[0-9a-f]{4}nc")
        self._other_marks = _forms(self._mark) - {self._mark.encode()}
        self._planted: dict[str, Canary] = {}
        self._adopted: dict[str, Canary] = {}
        # Most answers are refusals, which are alike: what was in them last time.
        self._found: dict[bytes, frozenset[Canary]] = {}

    def plant(self, kind: str, holder: str) -> str:
        """A new one."""
        # In base64 the last sign stands for what comes after it, too: none of the number may be lost there.
        value = f"{self._mark}{len(self._planted):04x}nc"
        self._planted[value] = Canary(kind, holder, value)
        self._found.clear()
        return value

    def adopt(self, kind: str, holder: str, value: str) -> None:
        """A secret that the product has made: a key, a session, the name of a schema."""
        assert len(value) >= 12, f"{kind} is too short to be nobody else's"
        self._adopted[value] = Canary(kind, holder, value)
        self._found.clear()

    def kinds(self, holder: str) -> set[str]:
        everything = [*self._planted.values(), *self._adopted.values()]
        return {canary.kind for canary in everything if canary.holder == holder}

    def find(self, data: bytes) -> set[Canary]:
        """Those that are in it, plain or encoded; also within a zip, as spreadsheets are, or a gzip."""
        if data not in self._found:
            self._found[data] = frozenset(self._look(data))
        return set(self._found[data])

    def _look(self, data: bytes) -> set[Canary]:
        found: set[Canary] = set()
        for text in _unpacked(data):
            both = text + b"\n" + text.lower()
            found |= {
                self._planted[value.decode()] for value in self._plain.findall(both) if value.decode() in self._planted
            }
            if any(form in both for form in self._other_marks):
                found |= {canary for canary in self._planted.values() if _is_in(both, _forms(canary.value))}
            found |= {canary for canary in self._adopted.values() if _is_in(both, _forms(canary.value))}
        return found


def _is_in(text: bytes, forms: frozenset[bytes]) -> bool:
    return any(form in text for form in forms)


@cache
def _forms(value: str) -> frozenset[bytes]:
    """The value as it may be written: plain, for an address, for HTML, for JSON, in hex, and in base64 wherever in a
    longer text it begins.
    """
    raw = value.encode()
    forms = {value, quote(value), quote(value, safe=""), html.escape(value), json.dumps(value)[1:-1], raw.hex()}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw).decode()
        # Its first and last signs also stand for what is around it.
        middle = encoded[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6]
        forms |= {middle, middle.replace("+", "-").replace("/", "_")}
    return frozenset(form.encode() for form in forms)


def _unpacked(data: bytes) -> list[bytes]:
    # UTF-16, as spreadsheets want it, is plain text with NULs between.
    texts = [data.replace(b"\0", b"")]
    if data.startswith(b"\x1f\x8b"):
        texts.append(gzip.decompress(data))
    if data.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            texts += [archive.read(name) for name in archive.namelist()]
    return texts
