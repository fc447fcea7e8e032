"""A light client: asyncio on bare sockets, one lifecycle after the other on each, no parsing beyond what it needs.

Owns the requests' bytes and the clock around each answer. Knows nothing of the database.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

UNIT = "USD_MICROCENTS"


@dataclass
class Tally:
    """What a load saw. Times in milliseconds."""

    lifecycles: int = 0
    refused: int = 0
    committed: int = 0
    reserve_ms: list[float] = field(default_factory=list)
    commit_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.reserve_ms) or [0.0]
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


class Connection(asyncio.Protocol):
    """One socket, one request at a time. Answers are read by status and length."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._read += data
        head = self._read.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._read.index(b"content-length: ") + 16
        length = int(self._read[at : self._read.index(b"\r\n", at)])
        if len(self._read) >= head + 4 + length:
            status, body = int(self._read[9:12]), self._read[head + 4 : head + 4 + length]
            self._read = b""  # one request at a time: nothing can follow
            if self.answer is not None and not self.answer.done():
                self.answer.set_result((status, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(exc or ConnectionError("closed"))

    async def post(self, path: str, key: str, body: bytes) -> tuple[int, bytes]:
        if self.transport is None:
            raise ConnectionError("closed")
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(
            f"POST {path} HTTP/1.1\r\nhost: bench\r\nx-cycles-api-key: {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        return await self.answer


def reserve_body(key: str, tenant: str, amount: int) -> bytes:
    return json.dumps(
        {
            "idempotency_key": key,
            "subject": {"tenant": tenant, "app": "chat"},
            "action": {"kind": "llm.completion", "name": "test-model"},
            "estimate": {"unit": UNIT, "amount": amount},
            "ttl_ms": 60_000,
            "overage_policy": "ALLOW_IF_AVAILABLE",
        }
    ).encode()


def commit_body(key: str, amount: int) -> bytes:
    return json.dumps({"idempotency_key": key, "actual": {"unit": UNIT, "amount": amount}}).encode()


async def run_load(
    port: int, keys: dict[str, str], *, clients: int, seconds: float, too_much: int = 0, refused_every: int = 0
) -> Tally:
    """Lifecycles over `clients` sockets for some seconds; every `refused_every`th asks for `too_much`."""
    tally = Tally()
    loop = asyncio.get_running_loop()
    tenants = itertools.cycle(keys)
    run = f"{time.time_ns():x}"
    numbers = itertools.count(1)
    until = time.monotonic() + seconds

    async def client() -> None:
        _, line = await loop.create_connection(Connection, "127.0.0.1", port)
        while time.monotonic() < until:
            tenant, number = next(tenants), next(numbers)
            key = keys[tenant]
            wanted = too_much if refused_every and number % refused_every == 0 else 100
            started = time.perf_counter()
            status, body = await line.post("/v1/reservations", key, reserve_body(f"{run}-{number}", tenant, wanted))
            tally.reserve_ms.append((time.perf_counter() - started) * 1000)
            if status == 409 and wanted == too_much:
                tally.refused += 1
            elif status == 200:
                at = body.index(b'"reservation_id": "') + 19
                hold = body[at : at + 36].decode()
                started = time.perf_counter()
                status, _ = await line.post(
                    f"/v1/reservations/{hold}/commit", key, commit_body(f"{run}-{number}-c", 70)
                )
                tally.commit_ms.append((time.perf_counter() - started) * 1000)
                tally.committed += status == 200
            if status not in (200, 409):
                tally.errors[str(status)] += 1
            tally.lifecycles += 1
        if line.transport is not None:
            line.transport.close()

    for outcome in await asyncio.gather(*(client() for _ in range(clients)), return_exceptions=True):
        if isinstance(outcome, BaseException):
            tally.errors[type(outcome).__name__] += 1
    return tally
