"""Where things stand in a chunk of an answer, by all the names that servers give them. Pure.

Owns the finding alone; what is counted and what it means is chat.answer's. Nothing here raises on any JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Fields that say what a thing is, not what the model wrote, unless a long text stands there.
_LABELS = {"role", "id", "type", "index", "format"}
LABEL_LENGTH = 64
# Under any other name something that is not empty is output, also where no text is found in it.
NO_OUTPUT = {"role", "content", "usage"}
# What is said of tokens that stand elsewhere, sounds and seals: none has as many tokens as its letters tell.
_NOT_WRITTEN = {"logprobs", "data", "b64_json", "thought_signature"}


def choices_of(frame: dict[str, Any]) -> list[dict[str, Any]]:
    choices = frame.get("choices")
    if type(choices) is dict:
        return [choices]
    return [choice for choice in choices if type(choice) is dict] if type(choices) is list else []


def usages_of(frame: dict[str, Any], choices: list[dict[str, Any]]) -> Iterable[dict[Any, Any]]:
    """Where a report may stand: in the frame, in a choice or its delta, or in an object of the server's own."""
    # As in `is_error`, written out. The longer names are Gemini's and LangChain's.
    found = [frame.get("usage"), frame.get("usageMetadata"), frame.get("usage_metadata")]
    for choice in choices:
        found.append(choice.get("usage"))
        if type(said := choice.get("delta")) is dict:
            found.append(said.get("usage"))
        if type(said := choice.get("message")) is dict:
            found.append(said.get("usage"))
    for value in frame.values():
        if type(value) is dict:
            found.append(value.get("usage"))
    return [usage for usage in found if type(usage) is dict]


def is_error(frame: dict[str, Any]) -> bool:
    """An error in one of the shapes that servers give it."""
    # Written out: this is asked of every chunk, and a loop over names costs as much as all else that is.
    if frame.get("error") or frame.get("errors") or frame.get("error_code"):
        return True
    if frame.get("error_msg") or frame.get("error_message"):
        return True
    # MiniMax's, which has it in every chunk, and beside one that failed `choices: null`.
    if type(said := frame.get("base_resp")) is dict and said.get("status_code") not in _WELL:
        return True
    if frame.get("choices") is not None:
        return False
    if frame.get("object") == "error" or frame.get("type") == "error":
        return True
    if frame.get("code") not in _WELL and ("message" in frame or "msg" in frame):
        return True
    if _says_that_it_failed(frame) and any(frame.get(name) for name in _REASONS):
        return True
    return _is_exception(frame)


# Codes of what went well.
_WELL = (None, 0, "0", 200, "200", "")
_REASONS = ("message", "msg", "detail", "reason", "title")
_FAULTS = ("Error", "fault", "exception", "__type")
_CODES = ("errcode", "errCode", "err_code", "err_no", "errno")
# What stands beside a sentence that is all there is.
_SENTENCE = {"message", "Message", "id", "request_id", "requestId", "trace_id", "documentation_url"}


def _is_exception(frame: dict[str, Any]) -> bool:
    """As the clouds' own gateways say it, which know nothing of models."""
    if any(frame.get(name) for name in _FAULTS) or any(frame.get(name) not in _WELL for name in _CODES):
        return True
    if frame.keys() <= _SENTENCE and any(type(frame.get(name)) is str for name in ("message", "Message")):
        return True
    return any(name.endswith("Exception") and frame[name] for name in frame)


def _says_that_it_failed(frame: dict[str, Any]) -> bool:
    """As gateways and web frameworks do it: by a sentence alone, a status, or a flag."""
    if frame.get("detail") and not frame.get("usage"):
        return True
    if any(frame.get(name) is False for name in ("success", "ok")):
        return True
    statuses = [frame.get(name) for name in ("status", "status_code", "statusCode")]
    return any(
        status.lower() in ("error", "failed", "failure", "fail")
        or (status.isdecimal() and 400 <= int(status[:9]) < 600)
        if type(status) is str
        else type(status) is int and 400 <= status < 600
        for status in statuses
    )


def words_of(content: Any) -> str:
    """The words of a content for the reader: a text, or parts of which some are."""
    if type(content) is str:
        return content
    if type(content) in (int, float):
        return str(content)  # a token of digits, by a server that forgot its quotes
    if not content:
        return ""
    parts = content if type(content) is list else (content,)
    return "".join(_words_of_part(part) for part in parts)


def _words_of_part(part: Any) -> str:
    if type(part) is dict and part.get("type") in (None, "text", "output_text", "refusal"):
        part = part.get("text") or part.get("refusal")
        if type(part) is dict:
            part = part.get("value")
    return part if type(part) is str else ""


def texts_in(said: Any) -> Iterable[str]:
    """Every text in it, however deep. A loop, for a nest can be deeper than Python's stack."""
    todo = [said]
    while todo:
        item = todo.pop()
        if type(item) is str:
            yield item
        elif type(item) is list:
            todo.extend(item)
            numbers = [number for number in item if type(number) in (int, float)]
            if numbers:
                yield str(numbers)
        elif type(item) is dict:
            todo.extend(value for name, value in item.items() if not _is_label(name, value))


def written_in(said: dict[str, Any]) -> int:
    """Bytes of all that a model wrote in it, by whatever name; 1 where there is something, but no text."""
    # The same thought under two names was written once.
    every = sum(bytes_of(text) for text in set(texts_in(said)))
    if every:
        return every
    return int(any(type(said[name]) in (str, list, dict) and said[name] for name in said.keys() - NO_OUTPUT))


def _is_label(name: str, value: Any) -> bool:
    if name in _NOT_WRITTEN:
        return True
    return name in _LABELS and type(value) is str and len(value) <= LABEL_LENGTH


def bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def storable(text: str) -> str:
    """JSON can carry half of a surrogate pair and NUL, which no socket and no database takes."""
    if text.isascii():
        return text.replace("\x00", "")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "")
