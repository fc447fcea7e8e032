"""A stand-in for the real servers: a proxy before both planes of the embedded authority that plays how they differ.

    python -m tests.support.standin --runtime-url http://… --admin-url http://… [--cold-seconds 60] …
    python -m tests.support.standin control PID stop|start|pause|resume

Owns the differences that a caller can notice and a proxy can play. Knows nothing of budgets, and is known to nobody but
tests: to the app it is two addresses and an admin key, as the real servers are.

Played:
- A key that was quiet for a minute costs 0.4 s of one of two cores, each request that meets it cold for itself.
- The balances and the list of reservations take 2 s; without a sort their rows come in any order.
- There is no caps extension, so no answer ever has caps.
- A key that funded once answers what it answered then, whatever tenant, scope and unit it is used for.
- An unknown path, a wrong method of the runtime plane, another content type, an unreadable query: 500.
The embedded authority itself does the rest as the real servers do: the keys of a closed tenant are revoked, for one.

Not played: what their store does by itself (held money of a closed tenant, rounding past 2^53, an outage as a 401), a
tenant's settings that take up to a minute to be heard, a key of one tenant that looks up another's ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.authority import ROOT

RUNTIME, ADMIN = "runtime", "admin"
TENANT_KEY, ADMIN_KEY = "X-Cycles-API-Key", "X-Admin-API-Key"
LISTS = {"/v1/balances": "balances", "/v1/reservations": "reservations"}
CAPS = "/v1/x-embedded/"
FUND = "/v1/admin/budgets/fund"
OF_THE_CONNECTION = {"host", "connection", "content-length", "transfer-encoding", "keep-alive"}
SIGNALS = {
    "stop": signal.SIGUSR1,
    "start": signal.SIGUSR2,
    "pause": signal.SIGSTOP,
    "resume": signal.SIGCONT,
}


@dataclass(frozen=True)
class Figures:
    """How slow it is. Whoever wants to meet a cold key sooner than in a minute says so."""

    cold_seconds: float = 60.0
    check_seconds: float = 0.4
    cores: int = 2
    list_seconds: float = 2.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def becomes(self, status: int, error: str) -> None:
        """The same answer as a refusal, with the ids that it had."""
        given = self.json() or {}
        ids = {"request_id": given.get("request_id") or str(uuid.uuid4()), "trace_id": given.get("trace_id")}
        ids["trace_id"] = ids["trace_id"] or uuid.uuid4().hex
        self.status, self.body = status, json.dumps({"error": error, "message": error.capitalize(), **ids}).encode()
        self.headers.pop("Allow", None)


class Keys:
    """Which keys were used lately. Checking one that was not takes a core for a while: bcrypt."""

    def __init__(self, figures: Figures, cores: asyncio.Semaphore) -> None:
        self._figures = figures
        self._cores = cores
        self._used: dict[str, float] = {}
        self._refused: set[str] = set()

    async def check(self, key: str) -> None:
        cold = time.monotonic() - self._used.get(key, float("-inf")) > self._figures.cold_seconds
        if cold and key not in self._refused:
            async with self._cores:
                await asyncio.sleep(self._figures.check_seconds)
        self._used[key] = time.monotonic()

    def learn(self, key: str, answer: Answer) -> None:
        """A key that is not known, or known to be dead, is refused without being compared."""
        if answer.status == 401 and "KEY_" in str(answer.json()):
            self._refused.add(key)
        else:
            self._refused.discard(key)


class FundKeys:
    """Idempotency keys of funding, under the key alone: shared by all tenants, scopes and units."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[Any, Answer]] = {}

    def replay(self, body: Any) -> Answer | None:
        known = self._first.get(_idempotency_key(body))
        if known is None:
            return None
        asked, answer = known
        again = Answer(answer.status, dict(answer.headers), answer.body)
        if asked != body:
            again.becomes(409, "IDEMPOTENCY_MISMATCH")
        return again

    def learn(self, body: Any, answer: Answer) -> None:
        if answer.status == 200 and _idempotency_key(body):
            self._first.setdefault(_idempotency_key(body), (body, answer))


def _idempotency_key(body: Any) -> str:
    return str(body.get("idempotency_key") or "") if isinstance(body, dict) else ""


class Plane:
    """One plane: a port of its own before the plane that does the work."""

    def __init__(self, name: str, target: str, admin_key: str, keys: Keys, figures: Figures) -> None:
        self._name = name
        self._target = target
        self._onward = _onward()
        self._admin_key = admin_key
        self._keys = keys
        self._figures = figures
        self._fund_keys, self._funding = FundKeys(), asyncio.Lock()
        self._server = web.Server(self._serve)
        self._runner = web.ServerRunner(self._server)
        self.port = 0

    async def listen(self, port: int) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.port = self._runner.addresses[0][1]

    async def vanish(self) -> None:
        """As a server that was killed: nobody listens, and every connection is cut."""
        for site in list(self._runner.sites):
            await site.stop()
        for connection in list(self._server.connections):
            connection.force_close()
            if connection.transport is not None:
                connection.transport.abort()

    async def appear(self) -> None:
        if not self._runner.sites:
            await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def _serve(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        try:
            answer = await self._answer(request, body)
        except aiohttp.ClientError:
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    async def _answer(self, request: web.BaseRequest, body: bytes) -> Answer:
        key = request.headers.get(TENANT_KEY)
        if key:
            await self._keys.check(key)
        is_list = self._name == RUNTIME and request.method == "GET" and request.path in LISTS
        if is_list:
            await asyncio.sleep(self._figures.list_seconds)
        funds = request.method == "POST" and request.path == FUND
        answer = await (self._fund(request, body) if funds else self._pass_on(request, body))
        if key:
            self._keys.learn(key, answer)
        if _unlike_ours(self._name, request, answer):
            answer.becomes(500, "INTERNAL_ERROR")
        elif is_list and answer.status == 200:
            _shuffle(request, answer)
        return answer

    async def _fund(self, request: web.BaseRequest, body: bytes) -> Answer:
        try:
            asked = json.loads(body)
        except ValueError:
            asked = None
        async with self._funding:
            if request.headers.get(ADMIN_KEY) == self._admin_key and (known := self._fund_keys.replay(asked)):
                return known
            answer = await self._pass_on(request, body)
            self._fund_keys.learn(asked, answer)
        return answer

    async def _pass_on(self, request: web.BaseRequest, body: bytes) -> Answer:
        path = request.raw_path.replace(CAPS, "/v1/nothing/", 1)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in OF_THE_CONNECTION}
        async with self._onward.request(
            request.method,
            URL(self._target + path, encoded=True),
            data=body or None,
            headers=headers,
            allow_redirects=False,
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in OF_THE_CONNECTION}
            return Answer(answer.status, kept, await answer.read())


def _unlike_ours(plane: str, request: web.BaseRequest, answer: Answer) -> bool:
    """Whether the real servers take for their own failure what the embedded authority takes for the caller's."""
    if plane == RUNTIME and answer.status == 400:
        return request.path in LISTS and not _is_readable(request.query)
    unknown = answer.status == 404 and "There is nothing at" in str((answer.json() or {}).get("message"))
    return unknown or answer.status == 415 or (plane == RUNTIME and answer.status == 405)


def _is_readable(query: Any) -> bool:
    children = query.get("include_children", "").lower()
    try:
        return abs(int(query.get("limit") or 1)) < 2**31 and children in ("", "true", "false")
    except ValueError:
        return False


def _shuffle(request: web.BaseRequest, answer: Answer) -> None:
    if "sort_by" in request.query or "sort_dir" in request.query:
        return
    page = answer.json()
    random.shuffle(page[LISTS[request.path]])
    answer.body = json.dumps(page).encode()


def _onward() -> aiohttp.ClientSession:
    """What passes on to the embedded authority adds nothing of its own, and has more patience than any caller."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=60),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


# --- the process ---


async def serve(options: argparse.Namespace) -> None:
    figures = Figures(options.cold_seconds, options.check_seconds, options.cores, options.list_seconds)
    cores = asyncio.Semaphore(figures.cores)
    runtime = Plane(RUNTIME, options.runtime_url, options.admin_key, Keys(figures, cores), figures)
    admin = Plane(ADMIN, options.admin_url, options.admin_key, Keys(figures, cores), figures)
    await runtime.listen(options.runtime_port)
    await admin.listen(options.admin_port)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Future[None]] = set()

    def on(number: int, act: Any) -> None:
        def go() -> None:
            tasks.update(asyncio.ensure_future(act(plane)) for plane in (runtime, admin))

        loop.add_signal_handler(number, go)

    on(SIGNALS["stop"], Plane.vanish)
    on(SIGNALS["start"], Plane.appear)
    print(json.dumps({"runtime_port": runtime.port, "admin_port": admin.port, "pid": os.getpid()}), flush=True)
    starter = os.getppid()
    while os.getppid() == starter:  # noqa: ASYNC110 - no event says that whoever started it is gone
        await asyncio.sleep(0.5)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.support.standin", description=__doc__.splitlines()[0])
    parser.add_argument("--runtime-url", required=True, help="the runtime plane that does the work")
    parser.add_argument("--admin-url", required=True, help="its admin plane")
    parser.add_argument("--admin-key", default=os.environ.get("CYCLES_ADMIN_API_KEY", ""))
    parser.add_argument("--runtime-port", type=int, default=0, help="where it listens; unset: any free port")
    parser.add_argument("--admin-port", type=int, default=0)
    parser.add_argument("--cold-seconds", type=float, default=Figures.cold_seconds, help="a key is cold after so long")
    parser.add_argument("--check-seconds", type=float, default=Figures.check_seconds, help="what a cold key costs")
    parser.add_argument("--cores", type=int, default=Figures.cores)
    parser.add_argument("--list-seconds", type=float, default=Figures.list_seconds, help="what a list takes")
    return parser.parse_args(arguments)


def control(pid: int, act: str) -> None:
    os.kill(pid, SIGNALS[act])


class StandIn:
    """`with StandIn(authority, cold_seconds=1.0) as slow:` has the addresses and the key that an authority has.

    The figures are those of `Figures`.
    """

    def __init__(self, authority: Any, **figures: float) -> None:
        self.admin_key: str = authority.admin_key
        given = {"runtime_url": authority.runtime_url, "admin_url": authority.admin_url, **figures}
        self._options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.support.standin", *self._options]
        environment = {**os.environ, "CYCLES_ADMIN_API_KEY": self.admin_key}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        ports = json.loads(self.process.stdout.readline())
        self.runtime_url = f"http://127.0.0.1:{ports['runtime_port']}"
        self.admin_url = f"http://127.0.0.1:{ports['admin_port']}"
        return self

    @property
    def control(self) -> str:
        """For TEST_CYCLES_CONTROL."""
        return f"{sys.executable} -m tests.support.standin control {self.process.pid}"

    def __exit__(self, *exc: object) -> None:
        self.process.kill()  # it may be paused
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["control"]:
        control(int(arguments[1]), arguments[2])
        return
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(parse(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
