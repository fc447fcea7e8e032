"""Who calls: keep-alive connections that ask one thing after the other, in a process of its own.

Owns the requests' bytes, the clock around each answer, and whether an answer was whole. Knows of the product only how
one asks it. A load comes as JSON on standard input, the tally goes as JSON to standard output.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import httptools
import uvloop

PATIENCE = 60.0  # seconds for one answer; a slow stream gets what it must take, too
OPENING = 256  # connections that are opened at the same moment


@dataclass
class Load:
    """What to ask, how often and by how many. `callers` ask in turn; who follows a conversation stays on its line."""

    port: int
    callers: list[dict[str, str]]  # headers
    body: dict[str, Any] | None  # none: a GET
    path: str
    connections: int = 1
    seconds: float = 0.0  # 0: each connection asks `times`
    times: int = 1
    expect: bytes | str = ""  # stands in a whole answer …
    expect_count: int = 1  # … so many times
    ending: str = ""  # stands in a whole answer once
    follow: bool = False  # stay in the conversation of the first answer
    lasts: float = 0.0  # seconds that an answer takes by intention
    over: float = 0.0  # seconds within which the connections begin, one after the other


@dataclass
class Tally:
    """What callers saw; times in milliseconds."""

    calls: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    first_p50: float = 0.0
    first_p99: float = 0.0
    reopened: int = 0  # connections that were closed between two calls
    wrong: Counter[str] = field(default_factory=Counter)

    @property
    def per_second(self) -> float:
        return self.calls / self.seconds if self.seconds else 0.0


class Line(asyncio.Protocol):
    """One connection, one call at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self.open = False

    async def ask(self, request: bytes, seconds: float) -> tuple[int, bytes, float]:
        """Status, body, and when its first byte came."""
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._first = 0.0
        self._done = asyncio.get_running_loop().create_future()
        assert self._transport is not None
        self._transport.write(request)
        async with asyncio.timeout(seconds):
            await self._done
        return self._parser.get_status_code(), b"".join(self._body), self._first

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # Of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ConnectionError(str(error)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._end(ConnectionError("closed"))

    # Of the parser

    def on_body(self, data: bytes) -> None:
        self._first = self._first or time.perf_counter()
        self._body.append(data)

    def on_message_complete(self) -> None:
        self.open = self.open and self._parser.should_keep_alive()
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)


async def run(load: Load) -> Tally:
    tally, times, firsts = Tally(), [], []
    loop = asyncio.get_running_loop()
    opening = asyncio.Semaphore(OPENING)
    numbers = itertools.count(1)
    began = time.perf_counter()
    until = began + load.seconds

    async def opened() -> Line:
        async with opening:
            return (await loop.create_connection(Line, "127.0.0.1", load.port))[1]

    async def one(line: Line, caller: dict[str, str], more: dict[str, Any]) -> bytes:
        started = time.perf_counter()
        status, body, first = await line.ask(
            request(load, caller, more | _prompt(next(numbers))), load.lasts + PATIENCE
        )
        now = time.perf_counter()
        trouble = fault(load, status, body)
        if trouble:
            tally.wrong[trouble] += 1
            return b""
        tally.calls += 1
        times.append((now - started) * 1000)
        firsts.append((first - started) * 1000)
        return body

    async def connection(first: int) -> None:
        await asyncio.sleep(load.over * first / load.connections)
        line = await opened()
        more: dict[str, Any] = {}
        for turn in _turns(load, until):
            caller = load.callers[(first + (0 if load.follow else turn * load.connections)) % len(load.callers)]
            if not line.open:
                tally.reopened += 1
                line = await opened()
            try:
                body = await one(line, caller, more)
            except (OSError, TimeoutError) as error:
                tally.wrong[type(error).__name__] += 1
                line.close()
                continue
            if load.follow and body and not more:
                more = {"conversation_id": json.loads(body)["conversation_id"]}
        line.close()

    for outcome in await asyncio.gather(*map(connection, range(load.connections)), return_exceptions=True):
        if isinstance(outcome, BaseException):
            tally.wrong[f"{type(outcome).__name__}: {outcome}"] += 1
    tally.seconds = time.perf_counter() - began
    tally.p50, tally.p99 = percentile(times, 0.5), percentile(times, 0.99)
    tally.first_p50, tally.first_p99 = percentile(firsts, 0.5), percentile(firsts, 0.99)
    return tally


def _turns(load: Load, until: float) -> Iterator[int]:
    """At least one, so that many connections on a slow server are all seen."""
    if not load.seconds:
        yield from range(load.times)
        return
    for turn in itertools.count():
        if turn and time.perf_counter() >= until:
            return
        yield turn


def _prompt(number: int) -> dict[str, Any]:
    return {"prompt": f"Tell me something about the number {number}."}


def request(load: Load, caller: dict[str, str], more: dict[str, Any]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in caller.items())
    if load.body is None:
        return f"GET {load.path} HTTP/1.1\r\n{lines}\r\n".encode()
    content = dict(load.body)
    if "messages" in content:  # a model's own language
        content["messages"] = [{"role": "user", "content": more["prompt"]}]
    else:
        content |= more
    body = json.dumps(content).encode()
    return (
        f"POST {load.path} HTTP/1.1\r\n{lines}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def fault(load: Load, status: int, body: bytes) -> str:
    """What is wrong with an answer; nothing, as a rule."""
    if status != 200:
        return f"{status} {body[:60].decode(errors='replace')}"
    found = body.count(_bytes(load.expect)) if load.expect else load.expect_count
    if found != load.expect_count:
        return f"{found} of {load.expect_count} words"
    if load.ending and body.count(_bytes(load.ending)) != 1:
        return f"no {load.ending}"
    return ""


def _bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def percentile(times: list[float], share: float) -> float:
    if not times:
        return 0.0
    return statistics.quantiles(times, n=100, method="inclusive")[round(share * 100) - 1] if times[1:] else times[0]


async def run_all(loads: list[Load]) -> list[Tally]:
    return await asyncio.gather(*map(run, loads))


def main() -> None:
    loads = [Load(**given) for given in json.load(sys.stdin)]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * sum(load.connections for load in loads) + 100
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, 1024), hard))
    gc.disable()
    own = time.process_time()
    tallies = uvloop.run(run_all(loads))
    for tally in tallies:
        tally.cpu = time.process_time() - own
    json.dump([asdict(tally) for tally in tallies], sys.stdout)


if __name__ == "__main__":
    main()
