"""The events that show a stream's words as a page has them, for a reader who asked for that.

Owns `block` events and the `html` of `done`. Must not be in the way of anybody else's stream, nor hold up the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from chat.markdown import MOST_CHARS, MOST_WORK, Blocks, rendered, rendered_block, work_of
from chat.sse import event

T = TypeVar("T")
R = TypeVar("R")

# Rendering words of this length, or of this work, takes about as long as handing them to a thread is worth.
IN_LOOP_CHARS = 4 * 1024
IN_LOOP_WORK = 500


class Shown:
    """The blocks of one stream, each rendered once it has ended. From where the whole is too long or too odd to be read
    as Markdown, and is shown plain in the end, nothing more is: an endless answer costs no more than another.
    """

    def __init__(self) -> None:
        self._blocks: Blocks | None = Blocks()
        self._chars = self._work = 0

    async def after(self, words: Sequence[str]) -> bytes:
        """What is to be sent after these words; often nothing. `length` is in characters since the last one."""
        if self._blocks is None:
            return b""
        come = sum(map(len, words))
        self._chars += come
        ended = [] if self._chars > MOST_CHARS else await _beside(self._feed, words, come)
        work = sum(map(work_of, ended))
        self._work += work
        if self._chars > MOST_CHARS or self._work > MOST_WORK:
            self._blocks = None
            return b""
        length = sum(map(len, ended))
        if not length:
            return b""
        return event("block", {"html": await _beside(_joined, ended, length, work), "length": length})

    def _feed(self, words: Sequence[str]) -> list[str]:
        assert self._blocks is not None
        return [block for word in words for block in self._blocks.feed(word)]


async def html_of(text: str) -> str:
    """A whole answer's."""
    chars = len(text)
    return await _beside(rendered, text, chars, work_of(text) if chars <= IN_LOOP_CHARS else 0)


async def _beside(do: Callable[[T], R], what: T, chars: int, work: int = 0) -> R:
    is_little = chars <= IN_LOOP_CHARS and work <= IN_LOOP_WORK
    return do(what) if is_little else await asyncio.to_thread(do, what)


def _joined(blocks: list[str]) -> str:
    return "\n".join(map(rendered_block, blocks))
