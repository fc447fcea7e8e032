"""A client of the storm: lifecycles of every kind at once, each call repeated under its key until it is answered.

Run as a process: `python -m tests.support.storm`, its orders as JSON on stdin, what it saw as JSON on stdout. Owns what
a caller may believe: the sums that were answered as charged. Looks into no table.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from typing import Any

from tests.bench.load import UNIT, Connection, commit_body, reserve_body

PATIENCE_SECONDS = 60.0


class Client:
    """One socket at a time; dials anew when it is lost."""

    def __init__(self, port: int, pick: random.Random, seen: Counter[str], charged: Counter[str]) -> None:
        self.port = port
        self.pick = pick
        self.seen = seen
        self.charged = charged
        self.line: Connection | None = None

    async def ask(self, path: str, key: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Until it is answered for certain: a lost answer or a 500 may have been stored or not."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                line = await self._dial()
                if self.pick.random() < 0.01:
                    await self._hang_up_on(line, path, key, body)
                    continue
                status, answer = await line.post(path, key, body)
                if status < 500:
                    return status, json.loads(answer)
                self.seen["500"] += 1
            except OSError:
                self.seen["lost"] += 1
            self._drop()
            if time.monotonic() > until:
                raise TimeoutError(path)
            await asyncio.sleep(0.05)

    async def _dial(self) -> Connection:
        if self.line is None:
            loop = asyncio.get_running_loop()
            _, self.line = await loop.create_connection(Connection, "127.0.0.1", self.port)
        return self.line

    async def _hang_up_on(self, line: Connection, path: str, key: str, body: bytes) -> None:
        """Ask and go, as an app does that is killed: it may be done or not."""
        asking = asyncio.ensure_future(line.post(path, key, body))
        await asyncio.sleep(self.pick.random() * 0.002)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        self._drop()
        self.seen["hung up"] += 1

    def _drop(self) -> None:
        if self.line is not None and self.line.transport is not None:
            self.line.transport.abort()
        self.line = None

    async def lifecycle(self, tenant: str, key: str, name: str) -> None:
        amount = self.pick.choice([0, 1, 10, 100, 100, 100, 10**12])
        fate = self.pick.choices(
            ["commit", "over", "release", "leave", "twice", "race", "event"], [60, 5, 8, 5, 8, 6, 8]
        )[0]
        if fate == "event":
            body = json.loads(reserve_body(name, tenant, self.pick.randint(0, 50)))
            body["actual"] = body.pop("estimate")
            del body["ttl_ms"]
            status, answer = await self.ask("/v1/events", key, json.dumps(body).encode())
            if status == 201:
                self.charged[tenant] += answer.get("charged", body["actual"])["amount"]
            self.seen[f"event {status}"] += 1
            return
        body = reserve_body(name, tenant, amount)
        if fate == "leave":
            body = body.replace(b'"ttl_ms": 60000', b'"ttl_ms": 1000, "grace_period_ms": 0')
        status, answer = await self.ask("/v1/reservations", key, body)
        self.seen[f"reserve {status}"] += 1
        if status != 200:
            assert status == 401 or answer["error"] in ("BUDGET_EXCEEDED", "OVERDRAFT_LIMIT_EXCEEDED", "BUDGET_CLOSED")
            return
        hold = answer["reservation_id"]
        if self.pick.random() < 0.1:
            status, again = await self.ask("/v1/reservations", key, body)
            assert status == 401 or again["reservation_id"] == hold, again
        await self.settle(tenant, key, name, hold, amount, fate)

    async def settle(self, tenant: str, key: str, name: str, hold: str, amount: int, fate: str) -> None:
        path = f"/v1/reservations/{hold}/commit"
        actual = self.pick.randint(0, amount) if fate != "over" else amount + self.pick.randint(1, 50)
        if fate == "release":
            release = f"/v1/reservations/{hold}/release"
            await self.ask(release, key, json.dumps({"idempotency_key": name}).encode())
        elif fate == "race":
            other = Client(self.port, self.pick, self.seen, self.charged)
            tries = [
                client.ask(path, key, commit_body(f"{name}-{i}", actual)) for i, client in enumerate((self, other))
            ]
            answers = await asyncio.gather(*tries)
            other._drop()
            assert sorted(status for status, _ in answers) in ([200, 409], [401, 401], [200, 401], [401, 409]), answers
            for status, answer in answers:
                self._count(tenant, status, answer)
        elif fate != "leave":
            status, answer = await self.ask(path, key, commit_body(name, actual))
            self._count(tenant, status, answer)
            if fate == "twice":
                status, again = await self.ask(path, key, commit_body(name, actual))
                assert status == 401 or again == answer, (answer, again)

    def _count(self, tenant: str, status: int, answer: dict[str, Any]) -> None:
        self.seen[f"commit {status}"] += 1
        if status == 200:
            assert answer["charged"]["unit"] == UNIT
            self.charged[tenant] += answer["charged"]["amount"]


async def storm(orders: dict[str, Any]) -> dict[str, Any]:
    pick = random.Random(orders["seed"])
    seen: Counter[str] = Counter()
    charged: Counter[str] = Counter()

    def goes_on(number: int) -> bool:
        waits = orders["until_lost"] and not (seen["lost"] or seen["500"])
        return number < orders["lifecycles"] or bool(waits)

    numbers = itertools.takewhile(goes_on, itertools.count())
    tenants = sorted(orders["keys"])

    async def work() -> None:
        client = Client(orders["port"], pick, seen, charged)
        for number in numbers:
            tenant = pick.choice(tenants)
            await client.lifecycle(tenant, orders["keys"][tenant], f"{orders['seed']}-{number}")
        client._drop()

    await asyncio.gather(*(work() for _ in range(orders["clients"])))
    return {"seen": seen, "charged": charged}


if __name__ == "__main__":
    import uvloop

    print(json.dumps(uvloop.run(storm(json.loads(sys.stdin.read())))))
