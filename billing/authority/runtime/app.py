"""The ASGI app: which path is which operation, who may call it, and what becomes of a failure.

Order of refusals: the key, then path and method, then the body, then the ledgers. A request with a good key costs one
round trip to the database, for the operation checks the key itself; only one refused here asks for the key alone.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from billing.authority.database import refused_by
from billing.authority.errors import Refusal, internal, unauthorized
from billing.authority.openapi.document import RUNTIME, document_text
from billing.authority.runtime import operations, reads
from billing.authority.runtime.gather import Gatherer
from billing.authority.runtime.http import Answer, Call, read_call, refused, send_answer
from billing.authority.runtime.pool import Caller, Pool
from billing.authority.runtime.sweep import sweep_forever
from billing.authority.tracing import HEALTH_MEDIA

log = logging.getLogger(__name__)

ROUTES: list[tuple[re.Pattern[str], dict[str, str]]] = [
    (re.compile(r"/v1/decide"), {"POST": "decide"}),
    (re.compile(r"/v1/reservations"), {"GET": "reservations", "POST": "reserve"}),
    (re.compile(r"/v1/reservations/([^/]+)"), {"GET": "reservation"}),
    (re.compile(r"/v1/reservations/([^/]+)/commit"), {"POST": "commit"}),
    (re.compile(r"/v1/reservations/([^/]+)/release"), {"POST": "release"}),
    (re.compile(r"/v1/reservations/([^/]+)/extend"), {"POST": "extend"}),
    (re.compile(r"/v1/events"), {"POST": "event"}),
    (re.compile(r"/v1/balances"), {"GET": "balances"}),
]
FOR_OPERATORS = {"reservations", "reservation", "release"}
MONEY: dict[str, Callable[..., Awaitable[Answer]]] = {
    "decide": operations.decide,
    "reserve": operations.reserve,
    "commit": operations.commit,
    "release": operations.release,
    "extend": operations.extend,
    "event": operations.event,
}
UP = json.dumps({"status": "UP"})


class Runtime:
    """The plane as an ASGI app. Its lifespan opens the connections and runs the sweep."""

    def __init__(self, pool: Pool, admin_key: str, *, gather: bool) -> None:
        self.pool = pool
        self.money: Caller = Gatherer(pool) if gather else pool
        self._admin_key = admin_key.encode()
        self._document = document_text(RUNTIME)
        self._sweeper: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            call = await read_call(scope, receive)
            await send_answer(call, await self._answer(call), send)

    async def _answer(self, call: Call) -> Answer:
        try:
            return await self._dispatch(call)
        except Refusal as refusal:
            return refused(call, refusal)
        except psycopg.DataError as error:  # a read with a value no text column takes
            return refused(call, refused_by(error))
        except psycopg.OperationalError as error:
            log.error("%s %s: database unavailable: %s", call.method, call.path, str(error).strip())
        except Exception:  # the process's edge: one broken request must not end the plane
            log.exception("%s %s failed, request %s", call.method, call.path, call.request_id)
        return refused(call, internal())

    async def _dispatch(self, call: Call) -> Answer:
        if call.path.startswith("/actuator/") or call.path == "/api-docs":
            return await self._actuator(call)
        operation, arguments, methods = route(call)
        if call.admin_key is not None and operation in FOR_OPERATORS:
            return await self._operator(call, operation, arguments)
        if not call.secret:
            raise unauthorized("Missing API key")
        try:
            check_route(call, operation, methods)
            if operation in MONEY:
                return await MONEY[operation](self.money, call, *arguments)
        except Refusal as refusal:
            if refusal.status == 401 or "x-cycles-tenant" in refusal.headers:
                raise
            tenant = await operations.authenticate(self.pool, call)
            refusal.headers = {**refusal.headers, "x-cycles-tenant": tenant}
            raise
        tenant = await operations.authenticate(self.pool, call)
        try:
            return await self._read(call, operation, arguments, methods, tenant)
        except Refusal as refusal:
            refusal.headers = {**refusal.headers, "x-cycles-tenant": tenant}
            raise

    async def _read(self, call: Call, operation: str, arguments: list[str], methods: list[str], tenant: str) -> Answer:
        if call.method == "OPTIONS":
            return Answer(200, tenant=tenant, headers={"allow": ", ".join(methods)})
        if operation == "balances":
            return await reads.balances(self.pool, call, tenant)
        if operation == "reservations":
            return await reads.reservations(self.pool, call, tenant)
        return await reads.reservation(self.pool, call, arguments[0], tenant)

    async def _operator(self, call: Call, operation: str, arguments: list[str]) -> Answer:
        """The three operations that the admin key opens; with it, a tenant's key beside it does not count."""
        self._check_admin_key(call)
        if operation == "release":
            return await operations.release(self.pool, call, arguments[0], operator=True)
        if operation == "reservations":
            return await reads.reservations(self.pool, call, None)
        return await reads.reservation(self.pool, call, arguments[0], None)

    async def _actuator(self, call: Call) -> Answer:
        if call.path == "/actuator/health/liveness":
            return Answer(200, UP, media=HEALTH_MEDIA)
        if call.path == "/actuator/health/readiness":
            try:
                await asyncio.wait_for(self.pool.rows("SELECT 1 FROM tenant LIMIT 1"), timeout=3)
            except (psycopg.Error, TimeoutError):
                return Answer(503, json.dumps({"status": "DOWN"}), media=HEALTH_MEDIA)
            return Answer(200, UP, media=HEALTH_MEDIA)
        self._check_admin_key(call)
        if call.path == "/actuator/health":
            return Answer(200, json.dumps({"status": "UP", "groups": ["liveness", "readiness"]}), media=HEALTH_MEDIA)
        if call.path == "/api-docs":
            return Answer(200, self._document)
        raise Refusal(404, "NOT_FOUND", f"There is nothing at {call.path}.")

    def _check_admin_key(self, call: Call) -> None:
        if not hmac.compare_digest((call.admin_key or "").encode(), self._admin_key):
            raise unauthorized("Invalid admin API key")

    async def _lifespan(self, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._sweeper = asyncio.create_task(sweep_forever(self.pool))
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if self._sweeper is not None:
                    self._sweeper.cancel()
                    await asyncio.gather(self._sweeper, return_exceptions=True)
                await self.pool.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def route(call: Call) -> tuple[str, list[str], list[str]]:
    """The operation (empty: none), its path arguments, and the methods of the path (empty: no such path)."""
    for pattern, methods in ROUTES:
        if found := pattern.fullmatch(call.path):
            allowed = sorted({*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"})
            method = "GET" if call.method == "HEAD" else call.method
            return methods.get(method, ""), list(found.groups()), allowed
    return "", [], []


def check_route(call: Call, operation: str, methods: list[str]) -> None:
    if not methods:
        raise Refusal(404, "NOT_FOUND", f"There is nothing at {call.path}.")
    if not operation and call.method != "OPTIONS":
        allow = ", ".join(methods)
        raise Refusal(405, "INVALID_REQUEST", f"Use one of {allow} here.", headers={"allow": allow})
    if call.method == "POST":
        media = call.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise Refusal(415, "INVALID_REQUEST", "Send the body as application/json.")
