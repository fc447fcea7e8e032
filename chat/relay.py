"""An answer's bytes on their way to a reader who wants them as they came. Pure.

Owns where they are parted and what is held back: a frame that has not come to its end, an error (the upstream's words
quote prompts, keys and addresses), what is no event at all, and [DONE], which is ours to say once the call is settled.
Must not count: chat.answer has read the same bytes for the books, and says up to where they are good.
"""

from __future__ import annotations

import json
from typing import Any

from chat.answer import Answer
from chat.chunks import choices_of
from chat.frames import Frames


class Relay:
    """Bytes in, split anywhere; out come the same bytes in whole frames, up to [DONE] or to an error.

    JSON without an event around it comes out as one, for readers of events skip it: a whole answer becomes a chunk.
    """

    __slots__ = ("_held", "_is_over")

    def __init__(self) -> None:
        self._held = b""
        self._is_over = False

    def feed(self, data: bytes, answer: Answer) -> bytes:
        """What may be passed on now. `answer` has been fed `data`, and nothing after it."""
        if self._is_over:
            return b""
        data = self._held + data if self._held else data
        frames = answer.frames
        if answer.good is not None or not frames.is_plain:
            return self._looked_at(data, answer.good)
        end = len(data) - frames.unread
        self._held = data[end:]
        return data[:end] if self._held else data

    def close(self, answer: Answer) -> bytes:
        """What was held back although it was whole: the connection has ended, and `answer` was told so."""
        if self._is_over or not self._held:
            return b""
        data, self._held = self._held, b""
        passed = self._looked_at(data, answer.good, is_end=True)
        self._is_over = True
        return passed

    def _looked_at(self, data: bytes, good: int | None, *, is_end: bool = False) -> bytes:
        """Line by line, by the same reading as the answer's own: it began where that one was between two frames."""
        frames, passed, unit, seen, left_out = Frames(), bytearray(), bytearray(), 0, False
        lines = data.splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            values = frames.feed(line)
            left_out = left_out or frames.left_out
            is_last = is_end and number == len(lines)
            if is_last:
                values += frames.close()
                left_out = left_out or frames.left_out
            seen += len(values)
            if frames.is_broken or (good is not None and seen > good):
                self._is_over = True
                break
            if not frames.is_done:
                unit += line
            if frames.is_done or is_last or (frames.is_between and not frames.unread):
                passed += _as_events(bytes(unit), values, is_bare=frames.is_bare, left_out=left_out)
                unit.clear()
                frames.is_bare = left_out = False
            if frames.is_done:
                self._is_over = True
                break
        self._held = b"" if self._is_over else bytes(unit)
        return bytes(passed)


def _as_events(unit: bytes, values: list[Any], *, is_bare: bool, left_out: bool) -> bytes:
    """The lines of one frame as they are passed on."""
    if is_bare:
        every = [item for value in values for item in (value if type(value) is list else [value])]
        # What has neither is an error of a shape that nobody knows yet.
        chunks = [item for item in every if type(item) is dict and ("choices" in item or "usage" in item)]
        return b"".join(as_event(as_chunk(chunk)) for chunk in chunks)
    return _without_what_is_left_out(unit) if left_out else unit


def _without_what_is_left_out(unit: bytes) -> bytes:
    """Only what was read: a line that is neither JSON nor an event's may quote anything, and clients break at it."""
    lines = [line for line in unit.splitlines(keepends=True) if not _is_foreign(line)]
    if _is_read(b"".join(lines)):
        return b"".join(lines)
    return b"".join(line for line in lines if _is_read(line))


def _is_foreign(line: bytes) -> bool:
    frames = Frames()
    frames.feed(line)
    return frames.left_out


def _is_read(data: bytes) -> bool:
    """Whether it has something that is read, and nothing else."""
    frames = Frames()
    values, left_out = frames.feed(data), frames.left_out
    values += frames.close()
    return bool(values) and not (left_out or frames.left_out)


def as_event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def as_chunk(body: dict[str, Any]) -> dict[str, Any]:
    """A whole answer as the one chunk of a stream: clients of a stream look for `delta` and for nothing else."""
    choices = choices_of(body)
    if not any("message" in choice for choice in choices):
        return body
    return {**body, "object": "chat.completion.chunk", "choices": [_as_delta(choice) for choice in choices]}


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    if type(said := choice.get("message")) is not dict:
        return choice
    calls = said.get("tool_calls")
    if type(calls) is list:
        numbered = [{"index": place, **call} for place, call in enumerate(calls) if type(call) is dict]
        said = {**said, "tool_calls": numbered}
    return {**{name: value for name, value in choice.items() if name != "message"}, "delta": said}
