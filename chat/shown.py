"""The events that show a stream's words as a page has them, for a reader who asked for that.

Owns `block` events and the `html` of `done`. Must not be in the way of anybody else's stream, nor hold up the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from chat.markdown import Blocks, rendered, rendered_block
from chat.sse import event

T = TypeVar("T")

# Rendering a text of this length takes about as long as handing it to a thread is worth.
IN_LOOP_CHARS = 4 * 1024


class Shown:
    """The blocks of one stream, each rendered once it has ended."""

    def __init__(self) -> None:
        self._blocks = Blocks()

    async def after(self, words: Sequence[str]) -> bytes:
        """What is to be sent after these words; often nothing. `length` is in characters since the last one."""
        ended = [block for word in words for block in self._blocks.feed(word)]
        length = sum(map(len, ended))
        if not length:
            return b""
        return event("block", {"html": await _beside(_joined, ended, length), "length": length})


async def html_of(text: str) -> str:
    """A whole answer's."""
    return await _beside(rendered, text, len(text))


async def _beside(render: Callable[[T], str], what: T, length: int) -> str:
    return render(what) if length <= IN_LOOP_CHARS else await asyncio.to_thread(render, what)


def _joined(blocks: list[str]) -> str:
    return "\n".join(map(rendered_block, blocks))
