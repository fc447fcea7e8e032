"""The odd answers of models, as data: what a server sends, and what is right to make of it.

Owns the form of tests/chat/odd_answers/*.yaml and how it becomes bytes. A case plays at a `FakeUpstream`
(`upstream.play(case)`) as well as at a reader of bytes (`case.pieces()`).

    - about: one line
      sent: [Hello, {delta: {content: " you"}}, {finish: stop}, {usage: {…}}, "[DONE]"]
      right: {text: Hello you, output: 2}

What may stand in `sent`: a text (a chunk with it as content), `[DONE]`, {delta: …, and any of finish, usage, index,
more}, {finish: …}, {usage: …}, {chunk: …} (a frame of this JSON), {raw: …} (as it is), {hex: …} (bytes),
{body: …} (JSON without a frame), {wait: seconds}, {times: n, of: …}, {drop: true}.
Beside it: status, headers, max_tokens, line_end and bom.

What is right, when not said otherwise: "Hello big world" for 10 tokens of input and 3 of output, exact, done.
`between` bounds the output where nobody reported it; `ends` is done, error (after words) or the status of a refusal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent.parent / "chat" / "odd_answers"
USUAL = {"text": "Hello big world", "input": 10, "output": 3, "outcome": "exact", "ends": "done"}
UNREPORTED = {"text": "Hello big world", "outcome": "estimated", "ends": "done"}
REFUSED = {"text": "", "input": 0, "output": 0, "outcome": "none"}


@dataclass(frozen=True)
class OddAnswer:
    name: str
    about: str
    status: int
    headers: dict[str, str]
    parts: list[Any]
    max_tokens: int
    right: dict[str, Any]

    def pieces(self) -> Iterator[bytes]:
        """What is sent, without its silences."""
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            elif "repeat" in part:
                yield part["frame"] * part["repeat"]


def odd_answers() -> list[OddAnswer]:
    """All of them. Names are file names with a number: `usage-03`."""
    return [
        _case(f"{path.stem}-{number:02}", given)
        for path in sorted(FOLDER.glob("*.yaml"))
        for number, given in enumerate(yaml.safe_load(path.read_text()), start=1)
    ]


def _case(name: str, given: dict[str, Any]) -> OddAnswer:
    parts = [_part(item, given.get("line_end", "\n")) for item in given["sent"]]
    if given.get("bom"):
        parts.insert(0, b"\xef\xbb\xbf")
    return OddAnswer(
        name=name,
        about=given["about"],
        status=given.get("status", 200),
        headers=given.get("headers", {"Content-Type": "text/event-stream"}),
        parts=parts,
        max_tokens=given.get("max_tokens", 512),
        right=_right(given.get("right", {})),
    )


def _right(given: dict[str, Any]) -> dict[str, Any]:
    if isinstance(given.get("ends"), int):
        return {**REFUSED, **given}
    return {**(UNREPORTED if "between" in given else USUAL), **given}


def _part(item: Any, line_end: str) -> Any:
    if isinstance(item, dict):
        if "wait" in item:
            return {"wait_s": item["wait"]}
        if "times" in item:
            return {"repeat": item["times"], "frame": _part(item["of"], line_end)}
        if "drop" in item:
            return {"drop": True}
        if "hex" in item:
            return bytes.fromhex(item["hex"])
    return _text(item).replace("\n", line_end).encode("utf-8", "surrogatepass")


def _text(item: Any) -> str:
    if item == "[DONE]":
        return "data: [DONE]\n\n"
    if isinstance(item, str):
        return _frame(_chunk({"delta": {"content": item}}))
    if "raw" in item:
        return str(item["raw"])
    if "body" in item:
        return json.dumps(item["body"])
    if "chunk" in item:
        return _frame(item["chunk"])
    return _frame(_chunk(item))


def _frame(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _chunk(item: dict[str, Any]) -> dict[str, Any]:
    chunk: dict[str, Any] = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "odd"}
    choice = {"index": item.get("index", 0), "delta": item.get("delta", {}), "finish_reason": item.get("finish")}
    chunk["choices"] = [choice] if "delta" in item or "finish" in item else []
    if "usage" in item:
        chunk["usage"] = item["usage"]
    return {**chunk, **item.get("more", {})}
