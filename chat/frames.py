"""The bytes of an answer, cut into the JSON values that they carry. Pure.

Owns the framing alone: server-sent events as the standard has them and as servers send them, or bare JSON. Must not
know what the values mean. Nothing here raises on any bytes, and nothing grows without a limit.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from enum import IntEnum
from typing import Any

from pydantic_core import from_json

# No frame of a chat is as long. Past it the answer is broken: waiting for the end of the frame would fill the memory.
FRAME_BYTES = 1024 * 1024
# What a line that waits for its frame's end costs beside its bytes; it bounds frames of very many empty-ish lines.
LINE_BYTES = 32
# A frame of several lines is tried where one of them could be its last, but a long one not at each of them: so often,
# and so many bytes in all. At its end it is read in any case.
TRIES = 64
TRIED_BYTES = 256 * 1024

BOM = b"\xef\xbb\xbf"
_CLOSING = (b"}", b"]")
_OPENING = (b"{", b"[")
# Of an event, beside `event`; without a name it is a comment.
_FIELDS = (b"", b"data")
# For whoever comes back to a stream, as nobody does after a POST. To the stock client, after an `id` each blank line is
# an event of its own, which has no JSON and breaks it.
_PLACES = (b"id", b"retry")

_BLANKS = " \t\n\r"  # of JSON

# What servers write that is no JSON: the numbers that are none, and control characters in texts as they are.
_NO_NUMBERS, _CONTROLS = re.compile("NaN|Infinity"), re.compile("[\x00-\x1f]")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_decode = json.JSONDecoder(parse_constant=_no_number).raw_decode
_decode_no_numbers = json.JSONDecoder(parse_constant=lambda name: None).raw_decode
_decode_controls = json.JSONDecoder(strict=False, parse_constant=lambda name: None).raw_decode


class Read(IntEnum):
    """How well a value could be read: by every client, by those that read on at a byte that is no UTF-8 and at NaN, or
    by us.
    """

    WELL, HARDLY, BY_US_ALONE = range(3)


def read_json(text: bytes) -> tuple[Any, Read]:
    """The JSON value in it, or in what is nearly JSON. Raises ValueError or RecursionError."""
    try:
        return from_json(text, allow_inf_nan=False, cache_strings="keys"), Read.WELL
    except ValueError:
        # It takes a third of the time, and no half of a surrogate pair, no byte that is no UTF-8 and no deep nest, with
        # which answers come: the byte costs a letter, not the frame.
        said, read = text.decode("utf-8", "replace").strip(_BLANKS), Read.WELL
        if "\ufffd" in said and not _is_utf8(text):
            read = Read.HARDLY
        try:
            value, end = _decode(said)
        except ValueError:
            value, end, read = _decode_almost(said)
        if end < len(said):
            raise ValueError("more than one value") from None
        return value, read


def _decode_almost(said: str) -> tuple[Any, int, Read]:
    if _NO_NUMBERS.search(said) is not None:
        with suppress(ValueError):
            return *_decode_no_numbers(said), Read.HARDLY
    if _CONTROLS.search(said) is None:
        raise ValueError("no JSON")
    return *_decode_controls(said), Read.BY_US_ALONE


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


class Frames:
    """Bytes in, split anywhere; JSON values out, in order."""

    __slots__ = (
        "_after_cr",
        "_event",
        "_lines",
        "_lines_are_bare",
        "_past",
        "_rest",
        "_size",
        "_tried",
        "_tries",
        "breaks_clients",
        "is_bare",
        "is_broken",
        "is_done",
        "is_open",
        "left_out",
    )

    def __init__(self) -> None:
        self.is_done = False  # [DONE] came
        self.is_broken = False  # a frame without an end
        self.is_bare = False  # JSON came without an event around it
        # Some line that was fed last is neither JSON nor an event's; or is one at which stock clients break.
        self.left_out = self.breaks_clients = False
        self._rest = bytearray()  # of a line that has not ended
        self._past = 0  # bytes of [DONE] and of what was fed behind it
        self._after_cr = False
        self._lines: list[bytes] = []  # of a frame that is no JSON yet
        self._lines_are_bare = False
        self._size = 0
        self._tries = self._tried = 0
        self._event = b""
        self.is_open = False  # a frame that was read has not had its blank line yet

    def feed(self, data: bytes) -> list[Any]:
        self.left_out = self.breaks_clients = False
        if self.is_done or self.is_broken:
            return []
        if self._after_cr or b"\r" in data:
            data = self._with_newlines(data)
        if b"\n" not in data:
            self._rest += data
            self._break_if_long(len(self._rest))
            return []
        lines = (bytes(self._rest) + data if self._rest else data).split(b"\n")
        self._rest = bytearray(lines.pop())
        values: list[Any] = []
        self._feed_lines(lines, values)
        self._break_if_long(len(self._rest))
        return values

    def close(self) -> list[Any]:
        """The connection has ended: what is left counts as a last line and the end of its frame."""
        values: list[Any] = []
        rest, self._rest = bytes(self._rest), bytearray()
        self._line(rest, values)
        self._end_frame(values)
        self._note_name_alone()
        return values

    @property
    def unread(self) -> int:
        """Bytes at the end of what was fed that belong to a line without its end, or stand from [DONE] on; there each
        line's end is counted as one.
        """
        return self._past or len(self._rest)

    @property
    def is_between(self) -> bool:
        """What was fed is read, but for a line without its end."""
        return not self._lines and self._event != b"error" and not self.is_broken

    @property
    def is_named(self) -> bool:
        """The event that has begun has a name."""
        return bool(self._event)

    @property
    def is_plain(self) -> bool:
        """So it is, and all of it were an event's lines."""
        return self.is_between and not (self.left_out or self.is_bare)

    @property
    def looks_whole(self) -> bool:
        """A bare JSON body may have come to its end. Servers that keep the connection open do not say so."""
        if not self._rest.endswith(_CLOSING):
            return False
        return self._lines_are_bare or bytes(self._rest).removeprefix(BOM).lstrip().startswith(_OPENING)

    def _with_newlines(self, data: bytes) -> bytes:
        """Lines may end with CR, LF or both; the pair may come in two pieces."""
        if self._after_cr:
            data = data.removeprefix(b"\n")
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _feed_lines(self, lines: list[bytes], values: list[Any]) -> None:
        for place, line in enumerate(lines):
            # Every other line is the blank one after a frame that was read already.
            if line:
                self._line(line, values)
            else:
                if self._lines or self._event:
                    self._line(line, values)
                self.is_open = False
            if self.is_done:
                self._past = sum(map(len, lines[place:])) + len(lines) - place + len(self._rest)
                break

    def _line(self, line: bytes, values: list[Any]) -> None:
        if self.is_done or self.is_broken:
            return
        if line.startswith(b"data: {") and not self._lines:
            # As nearly every line is, so that it is not looked at a second time.
            text = line[5:]
            if not self._take(text, values):
                self._keep(text)
        elif line.startswith(b"data:"):
            self._data(line[5:], values)
        elif not line:
            if self._lines and not self._lines_are_bare:
                self._end_frame(values)
            self._note_name_alone()
            self._event = b""
        elif line.startswith(b":"):
            self.breaks_clients = self.breaks_clients or not _is_utf8(line)
        else:
            # To some clients the mark is a part of the field's name, and they skip the first word.
            self.breaks_clients = self.breaks_clients or line.startswith(BOM)
            text = line.removeprefix(BOM)
            # As a blank is to all of them.
            self.left_out = self.left_out or (text.startswith((b" ", b"\t")) and text.lstrip().startswith(b"data:"))
            self._other(text.strip(), values)

    def _note_name_alone(self) -> None:
        """To clients it is an event, whose data is no JSON. Behind data that was read it is a part of that."""
        self.breaks_clients = self.breaks_clients or (bool(self._event) and not self.is_open)

    def _other(self, line: bytes, values: list[Any]) -> None:
        """Not quite an event's line, or another field of it, or JSON without any event around it."""
        if line.startswith(b"data:"):
            self._data(line[5:], values)
        elif line.startswith(b"event:"):
            self._event = line[6:].strip()
            self.breaks_clients = self.breaks_clients or self.is_open or not _is_utf8(line)
        elif self._lines_are_bare or line.startswith(_OPENING):
            if not self._lines_are_bare:
                self._end_frame(values)
            self._lines_are_bare = True
            self._text(line, values)
            self._lines_are_bare = bool(self._lines)
        elif line:
            field = line.partition(b":")[0]
            # `data` alone is an empty event to them.
            self.breaks_clients = self.breaks_clients or field in _PLACES or field == b"data"
            self.left_out = self.left_out or field not in (*_FIELDS, *_PLACES)

    def _data(self, text: bytes, values: list[Any]) -> None:
        if self._lines_are_bare:
            self._end_frame(values)
        self._text(text, values)

    def _text(self, text: bytes, values: list[Any]) -> None:
        """Taken as soon as it is JSON: some servers send no blank line after a frame, or only with the next one."""
        if len(text) < 16 and text.strip(b' \t"').upper() == b"[DONE]":
            self._end_frame(values)
            self._note_name_alone()  # the mark's own, which is passed on without it
            self.is_done = True
        elif not self._lines:
            if not text.strip():
                self.breaks_clients = True
            elif not self._take(text, values):
                self._keep(text)
        else:
            self._keep(text)
            if text.rstrip().endswith(_CLOSING) and self._tries < TRIES and self._tried + self._size <= TRIED_BYTES:
                self._tries += 1
                self._tried += self._size
                if self._take(b"\n".join(self._lines), values):
                    self._forget()

    def _keep(self, text: bytes) -> None:
        self._lines.append(text)
        self._size += len(text) + LINE_BYTES
        self._break_if_long(self._size)

    def _forget(self) -> None:
        self._lines = []
        self._lines_are_bare = False
        self._size = self._tries = self._tried = 0

    def _end_frame(self, values: list[Any]) -> None:
        # What is no JSON together may be several frames, one of them garbage.
        if len(self._lines) == 1:
            self.left_out = True  # alone it was tried already
        elif self._lines and not self._take(b"\n".join(self._lines), values):
            self.left_out = True
            for line in self._lines:
                self._take(line, values)
        self._forget()

    def _take(self, text: bytes, values: list[Any]) -> bool:
        if len(text) > FRAME_BYTES:
            return False
        try:
            value, read = read_json(text)
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, a nest without a bottom
            if self._event != b"error":
                return False
            value, read = None, Read.WELL  # a sentence
        if read is not Read.WELL:
            self.breaks_clients = True
            self.left_out = self.left_out or read is Read.BY_US_ALONE
        # Null, a word or a list: clients take every value for a chunk, and look for its choices, and there for a delta.
        elif type(value) is not dict or type(choices := value.get("choices")) is not list:
            self.breaks_clients = True
        elif choices:
            for choice in choices:
                if type(choice) is not dict:
                    self.breaks_clients = True
                elif type(said := choice.get("delta")) is not dict:
                    if said is not None or "text" not in choice or "message" in choice:
                        self.breaks_clients = True
                elif "message" in choice and not said.get("content"):
                    self.breaks_clients = True  # its words stand where nobody looks
        if self.is_open:
            self.breaks_clients = True  # to them, what begins before the blank line is a part of the frame before it
        else:
            self.is_open = True
        values.append({"error": value or True} if self._event == b"error" else value)
        self.is_bare = self.is_bare or self._lines_are_bare
        return True

    def _break_if_long(self, size: int) -> None:
        if size > FRAME_BYTES:
            self.is_broken = True
            self._rest = bytearray()
            self._forget()
