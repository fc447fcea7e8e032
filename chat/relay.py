"""An answer's bytes on their way to a reader who wants them as they came. Pure.

Owns where they are parted and what is held back: a frame that has not come to its end, an error (the upstream's words
quote prompts, keys and addresses), what is no event at all, and [DONE], which is ours to say once the call is settled.
Must not count: chat.answer has read the same bytes for the books, and says up to where they are good.
"""

from __future__ import annotations

import json
from typing import Any

from chat.answer import Answer
from chat.chunks import choices_of, words_of, written_in
from chat.frames import Frames

# A frame that is longer is not searched for the lines that can be left in it, each of which is read several times.
PARTED_BYTES = 64 * 1024
# Where each frame begins before the one before it is over, nothing can be passed on, and more is held with each value.
# Above this it is looked at again only once it is twice as long.
LOOKED_AT_BYTES = 1024

_BLANK_LINES = (b"\n\n", b"\r\r", b"\n\r\n")


class Relay:
    """Bytes in, split anywhere; out come the same bytes in whole frames, up to [DONE] or to an error.

    JSON without an event around it comes out as one, for readers of events skip it: a whole answer becomes a chunk.
    `for_stock_client`: nor do lines pass at which OpenAI's own clients break, such as null; all others read on there.
    A message where they look for a delta is made one.
    """

    __slots__ = (
        "_held",
        "_held_values",
        "_holds_lines",
        "_is_over",
        "_is_strict",
        "_looked_at_bytes",
        "_open_end",
        "_rests",
    )

    def __init__(self, *, for_stock_client: bool = False) -> None:
        self._is_strict = for_stock_client
        self._held = bytearray()
        self._held_values = 0
        self._rests: dict[int, dict[str, Any]] = {}  # as the answer has them, of the values that are held
        self._holds_lines = False  # of which some may be no event's
        self._is_over = False
        # The last byte of what was passed on to a stock client, where that has had no blank line yet.
        self._open_end = b""
        self._looked_at_bytes = 0  # of what is held

    def feed(self, data: bytes, answer: Answer) -> bytes:
        """What may be passed on now. `answer` has been fed `data`, and nothing after it."""
        frames = answer.frames
        if self._is_over:
            return b""
        if self._held or frames.unread:
            self._held += data
        elif answer.good is None and self._is_plain(frames):
            if self._is_strict:
                self._open_end = data[-1:] if frames.is_open else b""
            return data
        else:
            self._held = bytearray(data)
        if frames.unread >= len(data) and not frames.is_done and answer.good is None:
            return b""  # a little more of a long line, which is not looked at again for each piece of it
        # Where lines end with CR, it is not known from the end where [DONE] stands.
        is_plain = self._is_plain(frames) and not (frames.is_done and b"\r" in self._held)
        if answer.good is not None or self._holds_lines or not is_plain:
            self._take_rests(answer)
            is_begun = not (self._is_between(frames) or frames.is_done or frames.is_broken)
            if self._holds_lines and is_begun and not answer.came:
                return b""  # one more line of a frame in many, which are not looked at again for each
            if not self._is_to_be_looked_at(answer):
                self._held_values += answer.came
                return b""
            return self._looked_at(bytes(self._held), answer)
        end = len(self._held) - frames.unread
        passed = bytes(self._held[:end])
        del self._held[:end]
        self._is_over = frames.is_done
        if self._is_strict:
            self._open_end = passed[-1:] if frames.is_open else b""
        return passed

    def _is_plain(self, frames: Frames) -> bool:
        if self._is_strict and (self._open_end or frames.breaks_clients or frames.is_named):
            return False
        return frames.is_plain

    def _take_rests(self, answer: Answer) -> None:
        for number, rest in answer.rests.items():
            self._rests[self._held_values + number] = rest

    def _is_between(self, frames: Frames) -> bool:
        """An event's name alone breaks stock clients, where what it names is left out."""
        return frames.is_between and not (self._is_strict and frames.is_named)

    def _is_to_be_looked_at(self, answer: Answer) -> bool:
        frames = answer.frames
        if answer.good is not None or self._is_between(frames) or frames.is_done or frames.is_broken:
            return True
        return not LOOKED_AT_BYTES < len(self._held) < 2 * self._looked_at_bytes

    def close(self, answer: Answer) -> bytes:
        """What was held back although it was whole: the connection has ended, and `answer` was told so."""
        if self._is_over or not self._held:
            return b""
        self._take_rests(answer)
        passed = self._looked_at(bytes(self._held), answer, is_end=True)
        self._is_over = True
        return passed

    def _looked_at(self, data: bytes, answer: Answer, *, is_end: bool = False) -> bytes:
        """Line by line, by the same reading as the answer's own: it began where that one was between two frames."""
        # What is held may have brought a value already, as garbage before bare JSON does.
        frames, passed, unit, seen, left_out = Frames(), bytearray(), bytearray(), -self._held_values, False
        good, open_end = answer.good, self._open_end
        values: list[Any] = []  # of the lines in `unit`
        lines = data.splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            if open_end and not unit:
                is_half = (open_end, line) == (b"\r", b"\n")  # of CRLF, and no blank line
                if line.strip(b"\r\n"):
                    # Else the next frame is read as a part of the one before it.
                    passed += b"\n\n" if open_end == b"\r" else b"\n"
                open_end = b"\n" if is_half else b""
            values += frames.feed(line)
            left_out = left_out or _leaves_out(frames, self._is_strict)
            is_last = is_end and number == len(lines)
            if is_last:
                values += frames.close()
                left_out = left_out or _leaves_out(frames, self._is_strict)
            if frames.is_broken or (good is not None and seen + len(values) > good):
                self._is_over = True
                break
            if not frames.is_done:
                unit += line
            if frames.is_done or is_last or (self._is_between(frames) and not frames.unread):
                if frames.is_bare or (left_out and self._is_strict):
                    first = seen + self._held_values
                    values = [_in_deltas(value, self._rests.get(at)) for at, value in enumerate(values, first)]
                if frames.is_bare:
                    passed += _bare_as_events(values, self._is_strict)
                elif left_out:
                    passed += _without_what_is_left_out(bytes(unit), values, self._is_strict)
                else:
                    passed += unit
                if self._is_strict and values:
                    open_end = b"" if passed.endswith(_BLANK_LINES) else bytes(passed[-1:])
                seen += len(values)
                unit, values = bytearray(), []
                frames.is_bare = left_out = False
            if frames.is_done:
                self._is_over = True
                break
        self._held = bytearray() if self._is_over else unit
        if self._rests:
            first = seen + self._held_values
            self._rests = {at - first: rest for at, rest in self._rests.items() if at >= first}
        self._held_values, self._looked_at_bytes = len(values), len(self._held)
        self._holds_lines = b"\n" in self._held or b"\r" in self._held
        self._open_end = open_end
        return bytes(passed)


def _leaves_out(frames: Frames, is_strict: bool) -> bool:
    return frames.left_out or (is_strict and frames.breaks_clients)


def _bare_as_events(values: list[Any], is_strict: bool) -> bytes:
    every = [item for value in values for item in (value if type(value) is list else [value])]
    # Lists in the list are nobody's protocol.
    return _events_of([item for item in every if type(item) is dict], is_strict)


def _without_what_is_left_out(unit: bytes, values: list[Any], is_strict: bool) -> bytes:
    """Only what was read: a line that is neither JSON nor an event's may quote anything, and clients break at it."""
    if len(unit) > PARTED_BYTES:
        return _events_of(values, is_strict)
    lines = [line for line in unit.splitlines(keepends=True) if not _is_foreign(line, is_strict)]
    whole = b"".join(lines)
    if values and len(_values_of(whole, is_strict)) == len(values):
        return whole
    chunks = [value for value in values if _is_chunk(value)]
    kept = b"".join(line for line in lines if any(_is_chunk(value) for value in _values_of(line, is_strict)))
    # Where it cannot be parted by lines, the same JSON stands for them.
    return kept if len(_values_of(kept, is_strict)) == len(chunks) else _events_of(chunks, is_strict)


def _events_of(values: list[Any], is_strict: bool) -> bytes:
    """One for each chunk, also of those that came in a list."""
    chunks = [value for value in values if _is_chunk(value)]
    items = [item for chunk in chunks for item in (chunk if type(chunk) is list else [chunk])]
    return b"".join(_written_anew(item | {"choices": choices_of(item)} if is_strict else item) for item in items)


def _in_deltas(value: Any, rest: dict[str, Any] | None) -> Any:
    """A chunk with a delta in each choice, or a list of such, for clients of a stream look for nothing else.

    `rest`: what is new in the first answer's message.
    """
    if type(value) is list:
        return [_in_deltas(item, None) for item in value]
    if type(value) is not dict or "choices" not in value:
        return value
    choices = []
    for place, choice in enumerate(choices_of(value)):
        index = choice.get("index")
        is_first = (index if type(index) is int else place) == 0
        choices.append(_with_delta(choice, rest if is_first else None))
    kind = {"object": "chat.completion.chunk"} if any("message" in choice for choice in choices_of(value)) else {}
    return {**value, **kind, "choices": choices}


def _with_delta(choice: dict[str, Any], rest: dict[str, Any] | None) -> dict[str, Any]:
    """As chat.answer finds what it says: in the first of these in which something stands."""
    said, message = choice.get("delta"), choice.get("message")
    if type(said) is dict and (words_of(said.get("content")) or written_in(said)):
        return choice
    if said and type(said) is not dict:
        return {**choice, "delta": {"content": said}}
    if message:
        message = message if type(message) is dict else {"content": message}
        return _as_delta({**choice, "message": message if rest is None else rest})
    return choice if type(said) is dict or (said is None and "text" in choice) else {**choice, "delta": {}}


def _written_anew(value: Any) -> bytes:
    try:
        return as_event(value)
    except RecursionError:
        return b""  # deeper than Python's stack: no words stand there


def _is_chunk(value: Any) -> bool:
    """What has neither may be a part of an error, or one of a shape that nobody knows yet."""
    items = value if type(value) is list else [value]
    return all(type(item) is dict and ("choices" in item or "usage" in item) for item in items)


def _is_foreign(line: bytes, is_strict: bool) -> bool:
    frames = Frames()
    frames.feed(line)
    return _leaves_out(frames, is_strict)


def _values_of(data: bytes, is_strict: bool) -> list[Any]:
    """Its values; none where it has something else, too."""
    frames = Frames()
    values, left_out = frames.feed(data), _leaves_out(frames, is_strict)
    values += frames.close()
    return [] if left_out or _leaves_out(frames, is_strict) else values


def as_event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    if type(said := choice.get("message")) is not dict:
        return choice
    calls = said.get("tool_calls")
    if type(calls) is list:
        numbered = [{"index": place, **call} for place, call in enumerate(calls) if type(call) is dict]
        said = {**said, "tool_calls": numbered}
    return {**{name: value for name, value in choice.items() if name != "message"}, "delta": said}
