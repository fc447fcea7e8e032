"""An answer that was asked for in one piece: read when all of it is there. Pure.

Owns what is taken for such an answer, and its bytes as its reader gets them. What its JSON means is chat.answer's.
"""

from __future__ import annotations

import json
import re
from typing import Any

from chat.answer import Answer
from chat.chunks import choices_of
from chat.frames import BOM, Frames

# Vectors for a request of 2,048 texts are as long. All of it is in memory until its call is settled.
WHOLE_BYTES = 32 * 1024 * 1024
# A longer one is searched and not read: JSON of 15 MiB keeps the loop, and everybody's streams, for a quarter of a
# second (measured), in a thread as well.
READ_BYTES = 256 * 1024

# A name, and never words of the model's: inside of those a quote has a backslash before it.
_USAGE = re.compile(rb'(?<!\\)"usage"\s*:\s*(?=\{)')
_ERROR = re.compile(rb'(?<!\\)"error"\s*:\s*(?!null)')
_CONTENT = re.compile(rb'(?<!\\)"(?:choices|data)"\s*:\s*\[')
_EVENTS = (b"data:", b"event:", b"id:", b"retry:", b":")

_decoder = json.JSONDecoder()


class Whole(Answer):
    """One answer in one piece. `body` is what its reader gets: as it came, unless it came as the events of a stream."""

    __slots__ = ("_is_too_long", "_parts", "_size", "body")

    def __init__(self, *, content_type: str = "", max_tokens: int | None = None, answers: int = 1) -> None:
        super().__init__(content_type=content_type, max_tokens=max_tokens, answers=answers)
        self.body: bytes | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._is_too_long = False

    def feed(self, data: bytes) -> str:
        if not self._is_too_long:
            self._parts.append(data)
            self._size += len(data)
            if self._size > WHOLE_BYTES:
                self._is_too_long = True
                self._parts = []
                # The model has written it, so that it is billed.
                self.deltas, self.billed_bytes = 1, self._size
        return ""

    def close(self) -> str:
        if self.is_done or self.error:
            return ""
        raw, self._parts = b"".join(self._parts), []
        text = raw.removeprefix(BOM).lstrip()
        if text.startswith(_EVENTS):
            return self._close_events(raw)
        found = _parsed(text) if len(raw) <= READ_BYTES else _searched(text)
        if found is None:
            # Broken off, or a page or a sentence, which is no answer and not billed.
            self.error = bool(text) and not text.startswith(b"{")
            return ""
        shown = self._take(found)
        if not (choices_of(found) or type(found.get("data")) is list or self.report()):
            self.error = True  # a refusal, sent as a success
        self.is_done = not self.error
        if self.is_done:
            self.body = raw
        self.head = None
        return shown

    def _close_events(self, raw: bytes) -> str:
        """Some servers write a stream whatever is asked for."""
        shown = super().feed(raw) + super().close()
        # Without [DONE] the end of the connection is its end.
        self.is_done = not self.error and self.has_begun and (self.is_done or super().said_all)
        if self.is_done:
            frames = Frames()
            chunks = frames.feed(raw) + frames.close()
            try:
                self.body = json.dumps(joined([chunk for chunk in chunks if type(chunk) is dict])).encode()
            except RecursionError:
                self.error, self.is_done = True, False
        return shown

    @property
    def is_broken(self) -> bool:
        return self._is_too_long

    @property
    def is_over(self) -> bool:
        """It cannot be cut any more; what is above the hold is no debt of anybody's."""
        return False

    @property
    def said_all(self) -> bool:
        """It may have come to its end. Servers that keep the connection open do not say so."""
        return self.is_done or bool(self._parts and self._parts[-1].rstrip().endswith(b"}"))

    @property
    def is_ending(self) -> bool:
        return self.said_all


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return found if type(found) is dict else None


def _searched(text: bytes) -> dict[str, Any] | None:
    """What there is to know of a long answer: its report, and as one text what was written. None if it is none."""
    content = _CONTENT.search(text)
    if not text.startswith(b"{") or not text.rstrip().endswith(b"}") or content is None:
        return None
    found: dict[str, Any] = {"error": _ERROR.search(text) is not None}
    for place in _USAGE.finditer(text):
        try:
            usage, _end = _decoder.raw_decode(text[place.end() : place.end() + 4_096].decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        found["usage"] = usage
    if "usage" in found:
        return {**found, "data": []}
    if b"choices" in content.group():
        # Framing and what is said of each token is more than half of an answer as long.
        found["choices"] = [{"message": {"content": "", "unread": "x" * (len(text) // 2)}}]
    else:
        found["data"] = []
    return found


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The chunks of a stream as the one answer that they are."""
    whole: dict[str, Any] = {}
    answers: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        whole |= {name: value for name, value in chunk.items() if value is not None and name != "choices"}
        for place, choice in enumerate(choices_of(chunk)):
            index = choice.get("index")
            _join(answers.setdefault(index if type(index) is int else place, {}), choice)
    if whole.get("object") == "chat.completion.chunk":
        whole["object"] = "chat.completion"
    return {**whole, "choices": [_as_message(answers[index], index) for index in sorted(answers)]}


def _as_message(choice: dict[str, Any], index: int) -> dict[str, Any]:
    said = choice.pop("delta", None)
    if type(said) is dict:
        choice["message"] = {"role": "assistant", "content": None, **said}
    return {**choice, "index": index}


def _join(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        so_far = whole.get(name)
        if type(so_far) is str and type(value) is str and name not in _SAID_ONCE:
            whole[name] = so_far + value
        elif type(so_far) is dict and type(value) is dict:
            _join(so_far, value)
        elif type(so_far) is list and type(value) is list:
            _join_lists(so_far, value)
        elif value is not None:
            whole[name] = value
        else:
            whole.setdefault(name, None)


# Each chunk may say it again.
_SAID_ONCE = {"id", "role", "type", "finish_reason", "object", "model"}


def _join_lists(whole: list[Any], parts: list[Any]) -> None:
    """Calls of tools have an index and grow; what is said of tokens follows what was said of those before."""
    for part in parts:
        index = part.get("index") if type(part) is dict else None
        same = [each for each in whole if index is not None and type(each) is dict and each.get("index") == index]
        if same:
            _join(same[0], part)
        else:
            whole.append(part)
