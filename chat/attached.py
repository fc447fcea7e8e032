"""How the words of files stand before a question in what a model is sent, and its images beside it. Pure.

A file is data, and may say what it likes: its frame ends with a fence that is longer than any in it, so that no file
can end its own frame and speak as the person who asks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chat.history import Image, Message, most_bytes

# Files of one message, and the tokens of them all at most. Those of earlier messages go along as far as there is room.
MOST_FILES = 10
MOST_TOKENS = 2_100_000

# As `Attachment.Kind` has them, and after `image/` as the world does.
IMAGE_KINDS = ("png", "jpeg")
# Of a call's images, those of earlier messages among them: no request is larger, though its model may read more.
MOST_IMAGE_BYTES = 10 * 1024 * 1024

# Written so that the search has three of them to look for: `{3,}` took 15 ms of 2 MB, and this takes one.
_FENCES = re.compile("```+")


@dataclass(frozen=True, slots=True)
class File:
    """A file's words, and the most tokens that they can be billed in their frame. `bytes`: an image's, which is read
    once it is known that it goes along.
    """

    name: str
    text: str
    id: int = 0
    tokens: int = 0
    # As its row has them.
    kind: str = ""
    bytes: int = 0

    @property
    def is_image(self) -> bool:
        return self.kind in IMAGE_KINDS


def images_among(files: Iterable[File]) -> list[Image]:
    return [Image(file.id, file.kind, file.bytes) for file in files if file.is_image]


def message_of(role: str, words: str, files: Sequence[File], *, sees: bool = True) -> Message:
    """A message with its files. `sees`: whether its images go along; where not, the model is told that they were."""
    if not files:
        return Message(role=role, content=words)
    message = Message(role=role, content=with_files(words, files, sees=sees))
    if sees and (images := images_among(files)):
        message["images"] = images
    return message


def with_files(words: str, files: Iterable[File], *, sees: bool = True) -> str:
    """What the model is sent: each file in its frame, then the words."""
    return "\n\n".join([*(framed(file, sees=sees) for file in files), words])


def framed(file: File, *, sees: bool = True) -> str:
    if file.is_image:
        return f'Image "{file.name}" is attached to this message.' if sees else f'Image "{file.name}" is left out here.'
    fence = "`" * (1 + max([2, *map(len, _FENCES.findall(file.text))]))
    return f'File "{file.name}":\n{fence}\n{file.text}\n{fence}'


def tokens_of(name: str, text: str, kind: str = "") -> int:
    """The most that the file can be billed, with the empty line after it; of an image, what is said of it."""
    return most_bytes(framed(File(name, text, kind=kind))) + 2
