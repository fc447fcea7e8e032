"""What one chunk of a stream costs on the way from its words to the reader's bytes: CPU of one thread, no network.

Owns the answer that it is measured with. Must not measure what the call costs: tests.bench.chat does.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from tests.bench.cells import ROOT

PARAGRAPH = ["Some ", "words ", "and ", "*others*", ".\n\n", "- an item\n", "- `code`\n", "\n"]
TIMES = 250
ROUNDS = 5


class _Answering:
    failure = None

    async def events(self) -> AsyncIterator[list[str]]:
        for _ in range(TIMES):
            for word in PARAGRAPH:
                yield [word]

    async def finished(self) -> Any:
        return SimpleNamespace(shown="".join(PARAGRAPH) * TIMES)

    def leave(self) -> None:
        pass


def microseconds(*, shows: bool) -> float:
    """Of a chunk, the best of some rounds."""
    return min(asyncio.run(_seconds(shows)) for _ in range(ROUNDS)) / (TIMES * len(PARAGRAPH)) * 1e6


async def _seconds(shows: bool) -> float:
    from chat.async_api import EventStream

    reply: Any = SimpleNamespace(answering=_Answering(), held=dict, facts=lambda completion: {}, titling=None)
    begun = time.process_time()
    async for _ in EventStream(reply, shows=shows):
        pass
    return time.process_time() - begun


def text() -> str:
    plain, shown = microseconds(shows=False), microseconds(shows=True)
    return f"a chunk's events: {plain:.1f} µs of CPU; {shown:.1f} µs with its words rendered"


def measured(env: dict[str, str]) -> str:
    """The same, of a process of its own with a stack's settings."""
    program = "import django; django.setup(); from tests.bench.chunks import text; print(text())"
    env = env | {"DJANGO_SETTINGS_MODULE": "config.settings"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout.strip()
