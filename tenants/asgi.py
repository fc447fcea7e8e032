"""What every frame of the plane needs of a connection: a bounded body, and the news that its reader has left.

Owns that for Django's frame (config/asgi.py) and for applications that are served beside it. Must not know a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class ReaderLeft(Exception):
    """The connection ended before the answer did."""


async def read_body(receive: Receive, most: int) -> bytes | None:
    """The whole body, in memory; None once it is larger than `most` bytes. Raises ReaderLeft."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ReaderLeft
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def while_read(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, which ends when its reader goes; after the body alone, for it reads what comes."""
    task, left = asyncio.current_task(), asyncio.Event()
    assert task is not None  # an ASGI server calls within a task
    watch = asyncio.create_task(_watch(receive, task, left))
    try:
        await work
    except asyncio.CancelledError:
        # The reader's going cancels what works for it; anything else that cancels us wants to be heard.
        if not left.is_set():
            raise
        task.uncancel()
    finally:
        watch.cancel()


async def _watch(receive: Receive, task: asyncio.Task[Any], left: asyncio.Event) -> None:
    # The rest of a body that was too large comes first.
    while (await receive())["type"] != "http.disconnect":
        pass
    left.set()
    task.cancel()
