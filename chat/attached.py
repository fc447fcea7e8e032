"""How the words of files stand before a question in what a model is sent. Pure.

A file is data, and may say what it likes: its frame ends with a fence that is longer than any in it, so that no file
can end its own frame and speak as the person who asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from chat.history import most_bytes

# Files of one message, and the tokens of them all at most. Those of earlier messages go along as far as there is room.
MOST_FILES = 10
MOST_TOKENS = 2_100_000

_FENCES = re.compile("`{3,}")


@dataclass(frozen=True, slots=True)
class File:
    """A file's words, and the most tokens that they can be billed in their frame."""

    name: str
    text: str
    id: int = 0
    tokens: int = 0


def with_files(words: str, files: Iterable[File]) -> str:
    """What the model is sent: each file in its frame, then the words."""
    return "\n\n".join([*map(framed, files), words])


def framed(file: File) -> str:
    fence = "`" * (1 + max([2, *map(len, _FENCES.findall(file.text))]))
    return f'File "{file.name}":\n{fence}\n{file.text}\n{fence}'


def tokens_of(name: str, text: str) -> int:
    """The most that the file can be billed, with the empty line after it."""
    return most_bytes(framed(File(name, text))) + 2
