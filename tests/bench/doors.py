"""`make bench-doors`: what a burst of log-ins at one workspace does to its neighbour's pages, before and now.

Starts the product of an earlier commit (`base`) and of this checkout (`now`), one after the other, each with its own
supervisor, database and authority. Reads CPU-seconds of web and Postgres, how the log-ins were answered, and how long
the neighbour waited for a page. It writes a database at a time and a temporary folder, and removes them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.bench.authority import own_database
from tests.bench.cells import ROOT
from tests.bench.room import room
from tests.bench.stacks import Stack, Workspace, checkout_of

BASE = "73227e1"
PAUSE = 0.02  # between two pages of the neighbour


@dataclass
class Seen:
    """Of one load: the neighbour's waits in milliseconds, the log-ins' answers, their longest wait."""

    pages: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def line(self, cpu: dict[str, float]) -> str:
        pages = sorted(self.pages)
        p50, p99 = pages[len(pages) // 2], pages[int(len(pages) * 0.99)]
        answers = ", ".join(f"{count} × {status}" for status, count in sorted(self.answers.items())) or "–"
        return (
            f"{p50:9.1f}{p99:9.1f}{pages[-1]:9.1f}{len(pages):7}{cpu.get('web', 0):9.1f}{cpu['postgres']:9.1f}"
            f"{self.slowest:9.1f}  {answers}"
        )


class Burst:
    """Wrong passwords at one workspace, so many a second, however they are answered; pages at the other."""

    def __init__(self, stack: Stack, *, rate: float, seconds: float, addresses: bool) -> None:
        self._target, self._neighbour = stack.workspaces
        self._base = f"http://127.0.0.1:{stack.port}"
        self._port, self._rate, self._seconds, self._addresses = stack.port, rate, seconds, addresses
        self.seen = Seen()

    async def run(self) -> Seen:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as client:
            neighbour = asyncio.create_task(self._pages(client))
            tries = []
            began = time.monotonic()
            for number in itertools.count() if self._rate else ():
                due = began + number / self._rate
                if due > began + self._seconds:
                    break
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tries.append(asyncio.create_task(self._log_in(client, number)))
            await neighbour
            await asyncio.gather(*tries)
        return self.seen

    def _headers(self, workspace: Workspace) -> dict[str, str]:
        return {"Host": f"{workspace.slug}.localhost:{self._port}", "Cookie": workspace.cookie}

    async def _pages(self, client: aiohttp.ClientSession) -> None:
        until = time.monotonic() + self._seconds
        while time.monotonic() < until:
            began = time.monotonic()
            async with client.get(f"{self._base}/settings/keys/", headers=self._headers(self._neighbour)) as answer:
                await answer.read()
                assert answer.status == 200, answer.status
            self.seen.pages.append((time.monotonic() - began) * 1000)
            await asyncio.sleep(PAUSE)

    async def _log_in(self, client: aiohttp.ClientSession, number: int) -> None:
        address = f"198.18.{number // 250 % 250}.{number % 250}" if self._addresses else "198.18.0.1"
        headers = self._headers(self._target) | {"X-Forwarded-For": address}
        form = {
            "email": f"{secrets.token_hex(4)}@nowhere.example",
            "password": secrets.token_hex(8),
            "csrfmiddlewaretoken": self._target.token,
        }
        began = time.monotonic()
        try:
            async with client.post(f"{self._base}/login/", data=form, headers=headers) as answer:
                await answer.read()
                self.seen.answers[str(answer.status)] += 1
        except aiohttp.ClientError as exc:
            self.seen.answers[type(exc).__name__] += 1
        self.seen.slowest = max(self.seen.slowest, time.monotonic() - began)


def main() -> None:
    options = parse_arguments()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {options.seconds:g} s each")
    print(
        f"{'':26}{'page p50':>9}{'p99':>9}{'worst ms':>9}{'pages':>7}{'web CPU s':>10}{'postgres':>9}"
        f"{'log-in s':>9}  log-ins answered"
    )
    with room() as (folder, server):
        for name in options.stacks:
            checkout = checkout_of(ROOT, options.base, folder) if name == "base" else ROOT
            proxies: dict[str, Any] = {"FRONT_TRUSTED_PROXIES": "private_ranges"}
            with own_database() as url, Stack(name, checkout, url, folder, server.port, **proxies) as product:
                product.sign_up(2)
                for what, rate, addresses in (
                    ("quiet", 0.0, True),
                    (f"{options.rate:g}/s, one address", options.rate, False),
                    (f"{options.rate:g}/s, many addresses", options.rate, True),
                ):
                    measure(product, f"{name} {what}", rate, addresses, options.seconds)


def measure(product: Stack, name: str, rate: float, addresses: bool, seconds: float) -> None:
    asyncio.run(Burst(product, rate=0.0, seconds=1.0, addresses=True).run())  # every thread and pool has been used
    before = product.cpu()
    seen = asyncio.run(Burst(product, rate=rate, seconds=seconds, addresses=addresses).run())
    print(f"{name:26}{seen.line(product.cpu().since(before))}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A burst of log-ins, and what its neighbour feels of it.")
    parser.add_argument("--base", default=BASE, help=f"the commit to compare with ({BASE})")
    parser.add_argument("--only", choices=["base", "now"], help="one of the two")
    parser.add_argument("--rate", type=float, default=40.0, help="log-ins a second (40)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load (10)")
    options = parser.parse_args()
    options.stacks = [options.only] if options.only else ["base", "now"]
    return options


if __name__ == "__main__":
    main()
