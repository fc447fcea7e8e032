"""The messages of a call: how strict models take them, and how many tokens they can be. Pure.

Owns `Message`, the order that every model accepts, and the bound of a prompt. Must not know conversations or prices.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypedDict

# What a chat template adds, with room: the markers around each message, and around the whole a system prompt of the
# model's own, a date, the opening of the answer. SmolLM2 adds 5 or 6 tokens a message, and 25 once.
MESSAGE_OVERHEAD = 32
PROMPT_OVERHEAD = 256

# The same markers as bytes of text, without the room: some six tokens of four bytes.
MARKER_BYTES = 24

# A mark may belong to a letter on the other side of a seam, and keep it from being composed: at most that much more.
_PIECE, _SEAM = 500, 16
_NORMAL_FORMS: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")

# Some providers renamed the role; the words go to the same place.
_SYSTEM = ("system", "developer")


class Message(TypedDict):
    role: str
    content: str


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
    return merged


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
    """Bytes of a text in whichever normal form has the most.

    Piece by piece: marks are put in order by insertion, which took 0.65 s over 20,000 of them.
    """
    if text.isascii():
        return len(text)
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
    return max(sum(map(_bytes, form)) for form in _forms(pieces)) + _SEAM * (len(pieces) - 1)


def _forms(pieces: list[str]) -> Iterator[Iterable[str]]:
    yield pieces
    for form in _NORMAL_FORMS:
        yield (unicodedata.normalize(form, piece) for piece in pieces)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
