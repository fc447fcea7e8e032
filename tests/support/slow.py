"""Many slow streams at once, cheap enough to share a small machine with what serves them.

Owns a model in a process of its own, and readers on one event loop of a thread. A thread a stream, as FakeUpstream and
httpx have, would be what a test measures.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from typing import Any, Self

import aiohttp
import httpx

from tests.support.web import ROOT

MODEL = "slow-model"
PRICE = {"input": 10, "output": 40}


class SlowModel:
    """`with SlowModel(chunks=40, delay=0.5) as model:` an answer takes 20 s, in a process of its own."""

    def __init__(self, **behaviour: Any) -> None:
        self._behaviour = behaviour

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.bench.model"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{json.loads(self._process.stdout.readline())['port']}"
        httpx.post(f"{self.url}/control", json=self._behaviour).raise_for_status()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def go_on(self) -> None:
        """Of `waits=True`: those that wait with their last word say it."""
        httpx.post(f"{self.url}/go_on").raise_for_status()

    def counts(self) -> dict[str, Any]:
        """Since it was told how to behave: calls, finished, left, tokens_input, tokens_output, cost."""
        found: dict[str, Any] = httpx.get(f"{self.url}/counts").json()
        return found


class Readers(threading.Thread):
    """`count` readers of streams. `events[n]`: what the n-th has been told, (name, data) each.

    So many ask at the same moment: all at once is another test, of who is refused.
    """

    def __init__(
        self, server: Any, workspace: Any, key: str, *, count: int, ask_at_once: int = 50, **body: Any
    ) -> None:
        super().__init__()
        self._url = f"http://127.0.0.1:{server.port}/api/chat/"
        self._headers = {"Host": workspace.host, "Authorization": f"Bearer {key}"}
        self._body = {"prompt": "hello", "model": MODEL, "stream": True, **body}
        self.statuses: list[int] = []
        self.events: list[list[tuple[str, Any]]] = [[] for _ in range(count)]
        self.failures: list[str] = []
        self._leave = threading.Event()
        self._asking = asyncio.Semaphore(ask_at_once)
        self.start()

    @property
    def begun(self) -> int:
        """Readers that have heard a word."""
        return sum(len(told) > 1 for told in self.events)

    def leave(self) -> None:
        """All of them go."""
        self._leave.set()
        self.join(30)

    def run(self) -> None:
        asyncio.run(self._read_all())

    async def _read_all(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
            tasks = {asyncio.create_task(self._read(session, told)) for told in self.events}
            while tasks and not self._leave.is_set():
                _, tasks = await asyncio.wait(tasks, timeout=0.2)
            for task in tasks:
                task.cancel()

    async def _read(self, session: aiohttp.ClientSession, told: list[tuple[str, Any]]) -> None:
        try:
            async with self._asking:
                answer = await session.post(self._url, json=self._body, headers=self._headers)
            async with answer:
                self.statuses.append(answer.status)
                name = ""
                async for raw in answer.content:
                    line = raw.decode().rstrip("\n")
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        told.append((name, json.loads(line.removeprefix("data: "))))
        except aiohttp.ClientError as exc:
            self.failures.append(repr(exc))
