"""An answer that was asked for in one piece: read when all of it is there. Pure.

Owns what is taken for such an answer, and its bytes as its reader gets them. What its JSON means is chat.answer's.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from billing.prices import Usage
from chat.answer import MOST_ANSWERS, Answer
from chat.chunks import choices_of
from chat.frames import BOM, Frames, Read, read_json

# Vectors for a request of 2,048 texts are as long. All of it is in memory until its call is settled.
WHOLE_BYTES = 32 * 1024 * 1024
# A longer one is searched and not read: JSON of 15 MiB keeps the loop, and everybody's streams, for a quarter of a
# second (measured), in a thread as well.
READ_BYTES = 256 * 1024

# A name, and never words of the model's: inside of those a quote has a backslash before it.
_USAGE = re.compile(rb'(?<!\\)"usage"\s*:\s*(?=\{)')
# No space is given back: before it, nothing would stand that says there was none.
_ERROR = re.compile(rb'(?<!\\)"error"\s*:\s*+(?!null|false|""|0\b|\{\s*\}|\[\s*\])')
_CONTENT = re.compile(rb'(?<!\\)"(?:choices|data)"\s*:\s*\[')
_EVENTS = (b"data:", b"event:", b"id:", b"retry:", b":")
# Of the beginning of an answer, to know whether it is one of these.
_SURE_BYTES = 64

# Of what stands behind the name of a report so much is read, and from the last one on so many are tried: millions of
# them, each with a nest in it, kept the loop for minutes.
_REPORT_BYTES = 4_096
_REPORTS_TRIED = 64

_decoder = json.JSONDecoder()


class Whole(Answer):
    """One answer in one piece. `body` is what its reader gets: as it came, unless it came as the events of a stream."""

    __slots__ = ("_is_too_long", "_joined", "_parts", "_size", "body")

    def __init__(self, *, content_type: str = "", max_tokens: int | None = None, answers: int = 1) -> None:
        super().__init__(content_type=content_type, max_tokens=max_tokens, answers=answers)
        self.body: bytes | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._is_too_long = False
        self._joined: Joined | None = None  # of the events that came instead

    def feed(self, data: bytes) -> str:
        if self._is_too_long or self.is_done:
            return ""
        self._size += len(data)
        if self._size > WHOLE_BYTES:
            self._is_too_long = True
            self._parts, self._joined = [], None
            # The model has written it, so that it is billed.
            self.deltas, self.billed_bytes = 1, self._size
            return ""
        if self._joined is not None:
            return self._feed_events(data)
        self._parts.append(data)
        if self._size - len(data) < _SURE_BYTES and _beginning(self._parts).startswith(_EVENTS):
            # Read as they come: all at once would keep the loop from everybody else's answers.
            raw, self._parts, self._joined = b"".join(self._parts), [], Joined()
            return self._feed_events(raw)
        return ""

    def close(self) -> str:
        if self.is_done or self.error:
            return ""
        if self._joined is not None:
            super().close()
            # Without [DONE] the end of the connection is its end.
            return self._ended_events(is_end=self.is_done or super().said_all)
        raw, self._parts = b"".join(self._parts), []
        text = raw.removeprefix(BOM).lstrip()
        found, read = _parsed(text) if len(raw) <= READ_BYTES else (_searched(text), Read.WELL)
        if found is None or _is_chunk(found):
            if len(raw) <= READ_BYTES and _is_of_chunks(raw):
                self._joined = Joined()
                super().feed(raw)
                super().close()
                return self._ended_events(is_end=self.is_done or super().said_all)
            # Broken off, or a page or a sentence, which is no answer and not billed. Nor is a page without a word.
            self.error = not text.startswith(b"{") if text else self._html
            return ""
        shown = self._take(found)
        if not (choices_of(found) or type(found.get("data")) is list or self.report()):
            self.error = True  # a refusal, sent as a success
        self.is_done = not self.error
        if self.is_done:
            self.body = raw if read is Read.WELL else _written_anew(found, raw)
        self.head = None
        return shown

    def _feed_events(self, data: bytes) -> str:
        """Some servers write a stream whatever is asked for."""
        super().feed(data)
        return self._ended_events(is_end=True) if self.is_done or self.error else ""

    def _ended_events(self, *, is_end: bool) -> str:
        assert self._joined is not None
        # Also without a word: a filter took it, or all of it was thought, and it is paid.
        self.is_done = is_end and not self.error and (self.has_begun or self._joined.has_begun)
        if self.is_done:
            try:
                self.body = self._joined.as_json()
            except RecursionError:
                self.error, self.is_done = True, False
        return self.text

    def _take_all(self, frames: list[Any]) -> str:
        shown = super()._take_all(frames)
        if self._joined is not None:
            # Once they are read, for the first ones grow by those that follow.
            try:
                for number, frame in enumerate(frames):
                    is_list = type(frame) is list
                    for chunk in frame if is_list else (frame,):
                        if type(chunk) is dict:
                            self._joined.take(chunk, None if is_list else self.rests.get(number))
            except RecursionError:
                self.error = True
        return shown

    def report(self) -> Usage | None:
        usage = super().report()
        if usage is not None or self._max_tokens is not None or self.deltas:
            return usage
        # Nothing was to be written, such as for embeddings, so that one figure says all, also where it is the sum.
        reports = self._reports
        tokens = reports.total if reports.tokens_input is None else reports.tokens_input
        return None if tokens is None else Usage(tokens, 0, cached=min(reports.cached, tokens))

    @property
    def is_of_events(self) -> bool:
        return self._joined is not None

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
        if self._joined is not None:
            return self.is_done or super().said_all
        return self.is_done or bool(self._parts and self._parts[-1].rstrip().endswith(b"}"))

    @property
    def is_ending(self) -> bool:
        return self.said_all if self._joined is None else super().is_ending


def _is_chunk(found: dict[str, Any]) -> bool:
    """A stream that ended after one: only what it says itself can tell whether that is all."""
    choices = choices_of(found)
    return any(choice.get("delta") for choice in choices) and not any("message" in choice for choice in choices)


def _is_of_chunks(raw: bytes) -> bool:
    """A line of JSON for each chunk of a stream, or all of them in one list."""
    frames = Frames()
    values = frames.feed(raw) + frames.close()
    chunks = [chunk for value in values for chunk in (value if type(value) is list else [value])]
    return any(type(chunk) is dict and choices_of(chunk) for chunk in chunks)


def _beginning(parts: list[bytes]) -> bytes:
    return b"".join(parts)[:_SURE_BYTES].removeprefix(BOM).lstrip()


def _parsed(text: bytes) -> tuple[dict[str, Any] | None, Read]:
    try:
        found, read = read_json(text)
    except (ValueError, RecursionError):
        return None, Read.WELL
    return found if type(found) is dict else None, read


def _written_anew(found: dict[str, Any], raw: bytes) -> bytes:
    """As JSON that every client reads."""
    try:
        return json.dumps(found).encode()
    except RecursionError:
        return raw  # deeper than Python's stack


def _searched(text: bytes) -> dict[str, Any] | None:
    """What there is to know of a long answer: its report, and as one text what was written. None if it is none."""
    content = _CONTENT.search(text)
    if not text.startswith(b"{") or not text.rstrip().endswith(b"}") or content is None:
        return None
    found: dict[str, Any] = {"error": _ERROR.search(text) is not None}
    usage = _last_report(text)
    if usage is not None:
        return {**found, "usage": usage, "data": []}
    if b"choices" in content.group():
        # Framing and what is said of each token is more than half of an answer as long.
        found["choices"] = [{"message": {"content": "", "unread": "x" * (len(text) // 2)}}]
    else:
        found["data"] = []
    return found


def _last_report(text: bytes) -> Any:
    end = len(text)
    for _ in range(_REPORTS_TRIED):
        end = text.rfind(b'"usage"', 0, end)
        if end < 0:
            break
        if (place := _USAGE.match(text, end)) is None:
            continue
        with suppress(ValueError, RecursionError):
            said = text[place.end() : place.end() + _REPORT_BYTES].decode("utf-8", "replace")
            return _decoder.raw_decode(said)[0]
    return None


class Joined:
    """The chunks of a stream as the one answer that they are. What each adds costs no more the longer the answer is:
    hundreds of thousands of chunks kept the loop for minutes.
    """

    __slots__ = ("_answers", "_whole")

    def __init__(self) -> None:
        self._whole: dict[str, Any] = {}
        self._answers: dict[int, dict[str, Any]] = {}

    @property
    def has_begun(self) -> bool:
        return bool(self._answers) or "usage" in self._whole

    def take(self, chunk: dict[str, Any], rest: dict[str, Any] | None = None) -> None:
        """`rest`: what is new in the first answer's message, where that is known."""
        self._whole |= {name: value for name, value in chunk.items() if value is not None and name != "choices"}
        for place, choice in enumerate(choices_of(chunk)):
            index = choice.get("index")
            index = index if type(index) is int else place
            # Numbers can be chosen so that each is compared with all that came before.
            if index in self._answers or len(self._answers) < MOST_ANSWERS:
                answer = self._answers.setdefault(index, {})
                _join(answer, _with_delta(choice, answer, rest if index == 0 else None))

    def as_json(self) -> bytes:
        whole, answers = dict(self._whole), self._answers
        is_chat = whole.get("object") == "chat.completion.chunk"
        if is_chat:
            whole["object"] = "chat.completion"
        whole["choices"] = [_as_message(answers[index], index, is_chat=is_chat) for index in sorted(answers)]
        return json.dumps(whole, default=_Text.whole).encode()


class _Text:
    """A text that grows: a new one for each part would copy all of it each time."""

    __slots__ = ("length", "parts")

    def __init__(self, *parts: str) -> None:
        self.parts = list(parts)
        self.length = sum(map(len, parts))

    def add(self, part: str) -> None:
        self.parts.append(part)
        self.length += len(part)

    def whole(self) -> str:
        self.parts = ["".join(self.parts)]
        return self.parts[0]


class _Items(list[Any]):
    """A list that grows, with its numbered items by their number."""

    __slots__ = ("by_index",)

    def __init__(self, items: list[Any]) -> None:
        super().__init__()
        self.by_index: dict[int, dict[str, Any]] = {}
        self.join(items, is_first=True)

    def join(self, items: list[Any], *, is_first: bool = False) -> None:
        """Calls of tools have an index and grow; what is said of tokens follows what was said of those before."""
        for item in items:
            index = item.get("index") if type(item) is dict else None
            if type(index) is int and index in self.by_index and not is_first:
                _join(self.by_index[index], item)
                continue
            self.append(item)
            if type(index) is int and len(self.by_index) < MOST_ANSWERS:
                self.by_index.setdefault(index, item)


def _with_delta(choice: dict[str, Any], so_far: dict[str, Any], rest: dict[str, Any] | None) -> dict[str, Any]:
    """What it says as a delta, whatever its server calls it: as chat.answer finds it."""
    delta, message = (_as_object(choice.get(name)) for name in ("delta", "message"))
    if "message" in choice:
        message = _without_repeat(message, so_far.get("delta"), rest)
        delta = {**message, **{name: value for name, value in delta.items() if value}}
    if not delta:
        return choice
    return {**{name: value for name, value in choice.items() if name != "message"}, "delta": delta}


def _as_object(said: Any) -> dict[str, Any]:
    if type(said) is dict:
        return said
    return {"content": said} if said else {}


def _without_repeat(message: dict[str, Any], so_far: Any, rest: dict[str, Any] | None) -> dict[str, Any]:
    """Some servers repeat the whole answer at its end, or at each step: its thoughts and calls of tools, too."""
    if type(so_far) is not dict:
        return message
    new = {name: value for name, value in message.items() if not so_far.get(name)}
    if rest is not None:
        return {**new, **rest}
    for name in ("content", "refusal"):
        text, before = message.get(name), so_far.get(name)
        if type(text) is str and type(before) in (str, _Text) and before:
            # Not put together for each of thousands of messages.
            if type(before) is _Text:
                before = before.whole() if len(text) >= before.length else None
            return {**new, name: text[len(before) :]} if before and text.startswith(before) else message
    calls, before = message.get("tool_calls"), so_far.get("tool_calls")
    if isinstance(calls, list) and isinstance(before, list) and len(calls) >= len(before) > 0:
        return new if _identities(before) == _identities(calls) != set() else message
    return message


def _identities(calls: list[Any]) -> set[str]:
    found = (call.get("id") for call in calls if type(call) is dict)
    return {name for name in found if type(name) is str}


def _as_message(choice: dict[str, Any], index: int, *, is_chat: bool) -> dict[str, Any]:
    said = choice.pop("delta", None)
    if type(said) is not dict and is_chat:
        said = {"content": choice.pop("text", None)}
    if type(said) is dict:
        choice["message"] = {"role": "assistant", "content": None, **said}
    return {**choice, "index": index}


def _join(whole: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        so_far: Any = whole.get(name)
        if name == "content":
            if type(value) in (int, float):
                value = str(value)  # a token of digits, by a server that forgot its quotes
            if so_far is not None and value is not None and _form(so_far) != _form(value):
                # Some think in parts and answer in a text. What stands there would be written over.
                so_far, value = _in_parts(so_far), _in_parts(value)
                whole[name] = so_far
                if so_far and value and _is_text(so_far[-1]) and _is_text(value[0]):
                    _join(so_far[-1], {"text": value.pop(0)["text"]})
        if type(value) is str and type(so_far) in (str, _Text) and name not in _SAID_ONCE:
            if type(so_far) is str:
                whole[name] = _Text(so_far, value)
            else:
                so_far.add(value)
        elif type(so_far) is dict and type(value) is dict:
            _join(so_far, value)
        elif type(so_far) in (list, _Items) and type(value) is list:
            if type(so_far) is list:
                so_far = whole[name] = _Items(so_far)
            so_far.join(value)
        elif value is not None:
            whole[name] = value
        else:
            whole.setdefault(name, None)


def _form(content: Any) -> type:
    return {_Text: str, _Items: list}.get(type(content), type(content))


def _is_text(part: Any) -> bool:
    return type(part) is dict and part.keys() == {"type", "text"} and type(part["text"]) in (str, _Text)


def _in_parts(content: Any) -> list[Any]:
    if type(content) is _Items:
        return content
    if type(content) is list:
        return list(content)
    if type(content) is _Text:
        content = content.whole()
    return [{"type": "text", "text": content} if type(content) is str else content] if content else []


# Each chunk may say it again.
_SAID_ONCE = {"id", "role", "type", "finish_reason", "object", "model"}
