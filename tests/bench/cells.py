"""What is measured at once: one kind of call at a number of connections, at one stack or at the model itself.

Owns the loads of each kind, the numbers read around one, and whether the books are right after it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.bench import model
from tests.bench.stacks import Books, Stack
from tests.bench.talk import Load

ROOT = Path(__file__).resolve().parents[2]
MAX_TOKENS = 20
SETTLE_SECONDS = 30.0  # for the last settlements of a cell


@dataclass(frozen=True)
class Cell:
    """`plain:8`, `stream+session:4`, `plain+pages:8`, `slow+v1:2000`: kind, how, connections."""

    kind: str
    connections: int
    how: frozenset[str] = frozenset()

    KINDS = ("plain", "stream", "slow")
    HOWS = ("session", "follow", "pages", "v1")

    @classmethod
    def parse(cls, text: str) -> Cell:
        name, _, connections = text.partition(":")
        kind, *how = name.split("+")
        if kind not in cls.KINDS or not set(how) <= set(cls.HOWS) or not connections.isdigit():
            raise ValueError(f"{text}: write {'|'.join(cls.KINDS)}, +{'|+'.join(cls.HOWS)}, and :connections")
        return cls(kind, int(connections), frozenset(how))

    def __str__(self) -> str:
        return f"{'+'.join([self.kind, *sorted(self.how)])}:{self.connections}"

    @property
    def streams(self) -> bool:
        return self.kind != "plain"


@dataclass(frozen=True)
class Sizes:
    """How long and how much, for all cells of a run."""

    seconds: float = 4.0
    times: int = 0  # calls of each connection, instead of seconds
    plain_chunks: int = 4
    stream_chunks: int = 20
    slow_delay: float = 1.0  # seconds between two chunks of a slow stream
    slow_over: float = 0.0  # seconds within which slow streams begin, one after the other

    def chunks(self, cell: Cell) -> int:
        return self.stream_chunks if cell.streams else self.plain_chunks

    def behaviour(self, cell: Cell) -> dict[str, Any]:
        return {"chunks": self.chunks(cell), "delay": self.slow_delay if cell.kind == "slow" else 0.0}


@dataclass
class Outcome:
    """One cell, measured once. CPU in milliseconds a call, memory in MB."""

    tally: dict[str, Any]
    cpu: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    pages: dict[str, Any] | None = None
    wrong: list[str] = field(default_factory=list)

    @property
    def all_cpu(self) -> float:
        return sum(self.cpu.values())

    @property
    def per_second(self) -> float:
        seconds = self.tally["seconds"]
        return float(self.tally["calls"] / seconds) if seconds else 0.0


class Model:
    """The made-up model's process."""

    def __init__(self, *count: int) -> None:
        command = [sys.executable, "-m", "tests.bench.model"]
        for port in count:
            command += ["--count", str(port)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C must not end it under the streams that it feeds
        )
        assert self._process.stdout is not None
        said = json.loads(self._process.stdout.readline())
        self.port: int = said["port"]
        self.counted: list[int] = said["counted"]
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False)

    def behave(self, **behaviour: Any) -> None:
        self._http.post("/control", json=behaviour).raise_for_status()

    def counts(self) -> dict[str, Any]:
        return dict(self._http.get("/counts").raise_for_status().json())

    def stop(self) -> None:
        self._http.close()
        self._process.communicate()


def measure(cell: Cell, sizes: Sizes, stack: Stack, server: Model) -> Outcome:
    """One cell at a stack, from the first request to the last settlement."""
    server.behave(**sizes.behaviour(cell))
    books = stack.books()
    loads = [_load(cell, sizes, stack)]
    if "pages" in cell.how:
        loads.append(_pages(sizes, stack))
    before = stack.cpu()
    with _watching(stack) as memory:
        tallies = _talk(loads)
        wrong = _settled(stack, books, server, messages=0 if "v1" in cell.how else 2)
    calls = max(tallies[0]["calls"], 1)
    cpu = {name: seconds * 1000 / calls for name, seconds in stack.cpu().since(before).items()}
    wrong += [f"{count} × {what}" for tally in tallies for what, count in tally["wrong"].items()]
    return Outcome(tallies[0], cpu, memory, tallies[1] if tallies[1:] else None, wrong)


def direct(cell: Cell, sizes: Sizes, server: Model) -> Outcome:
    """The same asked of the model itself."""
    server.behave(**sizes.behaviour(cell))
    [tally] = _talk([_direct_load(cell, sizes, server)])
    return Outcome(tally, wrong=[f"{count} × {what}" for what, count in tally["wrong"].items()])


def _load(cell: Cell, sizes: Sizes, stack: Stack) -> Load:
    chunks = sizes.chunks(cell)
    if "v1" in cell.how:
        return _in_the_models_language(cell, sizes, stack.chat_port, stack.keys_alone())
    return Load(
        port=stack.chat_port,
        callers=stack.browsers() if "session" in cell.how else stack.programs(),
        path="/api/chat/",
        body={"max_tokens": MAX_TOKENS, "stream": cell.streams},
        expect="word",
        expect_count=chunks,
        ending="event: done" if cell.streams else "",
        follow="follow" in cell.how,
        **_length(cell, sizes),
    )


def _direct_load(cell: Cell, sizes: Sizes, server: Model) -> Load:
    return _in_the_models_language(cell, sizes, server.port, [{"Host": "bench"}])


def _in_the_models_language(cell: Cell, sizes: Sizes, port: int, callers: list[dict[str, str]]) -> Load:
    return Load(
        port=port,
        callers=callers,
        path="/v1/chat/completions",
        body={"messages": [], "model": model.NAME, "max_tokens": MAX_TOKENS, "stream": cell.streams},
        expect="word",
        expect_count=sizes.chunks(cell),
        ending="[DONE]" if cell.streams else "",
        **_length(cell, sizes),
    )


def _length(cell: Cell, sizes: Sizes) -> dict[str, Any]:
    if cell.kind == "slow":
        lasts = sizes.slow_delay * sizes.stream_chunks
        return {"connections": cell.connections, "times": 1, "lasts": lasts, "over": sizes.slow_over}
    if sizes.times:
        return {"connections": cell.connections, "times": sizes.times}
    return {"connections": cell.connections, "seconds": sizes.seconds}


def _pages(sizes: Sizes, stack: Stack) -> Load:
    """Two people who open the chat page again and again."""
    return Load(
        port=stack.port,
        callers=stack.browsers(),
        path="/",
        body=None,
        connections=2,
        seconds=sizes.seconds,
        expect="</html>",
    )


def _talk(loads: list[Load]) -> list[dict[str, Any]]:
    given = json.dumps([asdict(load) for load in loads])
    command = [sys.executable, "-m", "tests.bench.talk"]
    said = subprocess.run(command, cwd=ROOT, input=given, stdout=subprocess.PIPE, text=True, start_new_session=True)
    if said.returncode:
        raise RuntimeError("the callers' process failed; what it said is above")
    return list(json.loads(said.stdout))


@contextmanager
def _watching(stack: Stack) -> Iterator[dict[str, float]]:
    """The most memory that each part had, looked at twice a second."""
    most: dict[str, float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            for name, megabytes in stack.memory().items():
                most[name] = max(most.get(name, 0.0), megabytes)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def _settled(stack: Stack, before: Books, server: Model, *, messages: int) -> list[str]:
    """Wait until the books say what the model says; what they still say otherwise. `messages`: kept of each call."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (wrong := _differences(stack.books(), before, server.counts(), messages)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return wrong


def _differences(after: Books, before: Books, counts: dict[str, Any], messages: int) -> list[str]:
    pairs = {
        "spent": (after.spent - before.spent, counts["cost"]),
        "lines' cost": (after.cost - before.cost, counts["cost"]),
        "lines": (after.lines - before.lines, counts["calls"]),
        "messages": (after.messages - before.messages, messages * counts["calls"]),
        "finished": (counts["finished"], counts["calls"]),
        "inexact lines": (after.inexact - before.inexact, 0),
        "holds": (after.holds, 0),
        "reserved": (after.reserved, 0),
    }
    return [f"{name} {found}, not {right}" for name, (found, right) in pairs.items() if found != right]
