"""The messages of a call: how strict models take them, and how many tokens they can be. Pure.

Owns `Message`, the order that every model accepts, and the bound of a prompt. Must not know conversations or prices.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NotRequired, TypedDict

# What a chat template adds, with room: the markers around each message, and around the whole a system prompt of the
# model's own, a date, the opening of the answer. SmolLM2 adds 5 or 6 tokens a message, and 25 once.
MESSAGE_OVERHEAD = 32
PROMPT_OVERHEAD = 256

# The same markers as bytes of text, without the room: some six tokens of four bytes.
MARKER_BYTES = 24

# A part of a message is set off by a line break or a marker.
PART_OVERHEAD = 8

# A mark may belong to a letter on the other side of a seam, and keep it from being composed: at most that much more.
_PIECE, _SEAM = 500, 16
_NORMAL_FORMS: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")

# No language has so many in a row.
_MANY_MARKS = b"\1" * 24
# Bytes for each letter. A fifth of them is U+FDFA then.
_MUCH_LONGER = 6
# All but the ideographs, Hangul (always put together again), the surrogates, and what is private or not assigned.
_BLOCKS_THAT_CHANGE = ((0x80, 0x3400), (0xA000, 0xAC00), (0xF900, 0x20000), (0x2F800, 0x2FA20))

# Some providers renamed the role; the words go to the same place.
_SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a message, by the number of its file. `url`: its bytes as text, where it is to be sent."""

    id: int
    kind: str
    bytes: int
    url: str = field(default="", repr=False)


class Message(TypedDict):
    """`images` are beside the words: they are no text, and their tokens are the operator's to say."""

    role: str
    content: str
    images: NotRequired[list[Image]]


def as_taken(messages: Iterable[Message]) -> list[Message]:
    """These messages in the order that strict models take: the system first, then user and assistant in turns,
    beginning and ending with the user. Empty when nothing is left to answer.

    A question that was never answered, an answer without words and a history that begins in its middle would
    otherwise make such a model refuse a conversation for ever.
    """
    said = [message for message in messages if message["content"].strip()]
    system = [message for message in said if message["role"] in _SYSTEM]
    turns = [message for message in said if message["role"] not in _SYSTEM]
    while turns and turns[0]["role"] != "user":
        turns.pop(0)
    while turns and turns[-1]["role"] != "user":
        turns.pop()
    return _merged(system) + _merged(turns) if turns else []


def _merged(messages: list[Message]) -> list[Message]:
    """Neighbours of one role as one message."""
    merged: list[Message] = []
    for message in messages:
        role = "system" if message["role"] in _SYSTEM else message["role"]
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += "\n\n" + message["content"]
        else:
            merged.append(Message(role=role, content=message["content"]))
        if images := message.get("images"):
            merged[-1]["images"] = [*merged[-1].get("images", ()), *images]
    return merged


def images_of(messages: Iterable[Message]) -> list[Image]:
    return [image for message in messages for image in message.get("images", ())]


def prompt_bytes(messages: Iterable[Message]) -> int:
    """About the bytes that a template makes of these messages: what a learned ratio of tokens to bytes is applied to.

    The markers count too. Without them the ratio of a prompt of one word would be many times that of a long one.
    """
    return sum(
        MARKER_BYTES + len(message["role"]) + len(message["content"].encode("utf-8", "surrogatepass"))
        for message in messages
    )


def text_bound(messages: Iterable[Message]) -> int:
    """Tokens that the words of these messages can be billed at most.

    A tokenizer falls back to bytes, so a text has at most as many tokens as bytes. Some normalize the text first,
    which can make it longer: the Arabic ligature U+FDFA is 3 bytes, and 33 once it is spelled out.
    """
    return sum(most_bytes(message["role"]) + most_bytes(message["content"]) for message in messages)


def overhead_bound(messages: Sequence[Message]) -> int:
    """Tokens that a template can add to them at most, of a model that nothing is known of."""
    return overhead_of(len(messages))


def overhead_of(messages: int) -> int:
    """The same for so many messages."""
    return PROMPT_OVERHEAD + MESSAGE_OVERHEAD * messages


def prompt_bound(messages: Sequence[Message]) -> int:
    """Tokens of input that these messages can be billed at most. To be held, never to be charged."""
    return text_bound(messages) + overhead_bound(messages)


def most_bytes(text: str) -> int:
    """Bytes of a text at most, in whichever normal form.

    Marks are put in order by insertion, which took 4.7 s over 8 MB of them, and as much of U+FDFA took 2.5 s. Pieces of
    such are counted letter by letter, each spelled out, which is a little more than any form has.
    """
    if text.isascii():
        return len(text)
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
    return sum(map(_most_of_piece, pieces)) + _SEAM * (len(pieces) - 1)


def _most_of_piece(piece: str) -> int:
    as_it_is = _bytes(piece)
    if piece.isascii() or unicodedata.is_normalized("NFKC", piece):
        return as_it_is
    marks, longer = _letters()
    # Spelled out. What is composed again afterwards only becomes shorter.
    more = sum([longer.get(letter, 0) for letter in piece])
    if more == 0 or more > _MUCH_LONGER * len(piece) or _MANY_MARKS in bytes(map(marks.__contains__, piece)):
        return as_it_is + more
    return max(as_it_is, *(_bytes(unicodedata.normalize(form, piece)) for form in _NORMAL_FORMS))


@functools.cache
def _letters() -> tuple[frozenset[str], dict[str, int]]:
    """Those that are marks, or become some; and those that are longer when spelled out, with the bytes more."""
    marks, longer = set(), {}
    for letter in (chr(code) for start, end in _BLOCKS_THAT_CHANGE for code in range(start, end)):
        is_mark = bool(unicodedata.combining(letter))
        if unicodedata.decomposition(letter):
            forms = [unicodedata.normalize(form, letter) for form in ("NFD", "NFKD")]
            is_mark = is_mark or any(unicodedata.combining(form[0]) for form in forms)
            if (more := max(map(_bytes, forms)) - _bytes(letter)) > 0:
                longer[letter] = more
        if is_mark:
            marks.add(letter)
    return frozenset(marks), longer


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
