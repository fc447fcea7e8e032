"""The door of /v1: an ASGI application beside Django, for what Django's frame costs each call.

Owns routes, the body, who asks (by tenants.resolve, as everywhere), and the answer's headers. Buys through
chat.buying, as everything does. Must not know a rule of money, nor of who may ask.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from billing.engine.loop import here
from billing.engine.payers import payer_for
from billing.errors import BudgetDenied
from billing.subjects import Key
from chat.buying import Wanted, begin
from chat.passed import Kind, Passed
from chat.streams import Answering
from chat.v1 import relaying
from chat.v1.reading import read
from chat.v1.refusals import refusal
from chat.v1.ways_out import tell_ways_out
from tenants.bodies import read_object
from tenants.context import bind
from tenants.http import ApiError, BareRequest, Forbidden, NotFound, TenantRequired, TooLarge, Unauthenticated
from tenants.middleware import as_api_error
from tenants.resolve import Asker, aanswered, find_member, find_tenant
from tenants.roles import Action

logger = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

APP = "api"
KINDS = {f"/v1/{kind.value}": kind for kind in Kind}


class ReaderLeft(Exception):
    """The connection ended before the request did."""


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    bind(None)
    try:
        body = await _body(receive)
        await _answer(scope, body, receive, send)
    except ReaderLeft:
        return
    except Exception as exc:
        error = as_api_error(exc)
        if error is None:
            logger.exception("A request of /v1 failed on our side: %s", scope["path"])
            error = ApiError()
        status, headers, said = refusal(error)
        await _send_json(send, status, said, headers)


async def _answer(scope: Scope, raw: bytes, receive: Receive, send: Send) -> None:
    kind = KINDS.get(scope["path"])
    if kind is None or scope["method"] != "POST":
        raise NotFound
    asker = await who_asks(scope)
    passed = read(kind, read_object(raw))
    answering = await bought(asker, passed)
    task, left = asyncio.current_task(), asyncio.Event()
    assert task is not None  # an ASGI server calls within a task
    watch = asyncio.create_task(_watch(receive, task, left))
    try:
        await (_stream(answering, passed, send) if passed.is_stream else _whole(answering, send))
    except asyncio.CancelledError:
        if not left.is_set():
            raise
        task.uncancel()
    finally:
        answering.leave()
        watch.cancel()


async def _watch(receive: Receive, task: asyncio.Task[Any], left: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    left.set()
    task.cancel()


async def who_asks(scope: Scope) -> Asker:
    """By key alone: a session is a browser's, and says nothing here."""
    request, fetch = BareRequest(scope), import_string(settings.PLANE_SQL)
    found = await aanswered(find_tenant(request), fetch)
    if found.tenant is None:
        raise TenantRequired if "HTTP_AUTHORIZATION" in request.META else Unauthenticated
    bind(found.tenant)
    if "HTTP_AUTHORIZATION" not in request.META:
        raise Unauthenticated
    asker = found.asker
    if asker is None:
        asker = await aanswered(find_member(request, found.tenant), fetch)
    if not asker.may(Action.CHAT):
        raise Forbidden("This key may not ask models here.", needs=Action.CHAT.value)
    return asker


async def bought(asker: Asker, passed: Passed) -> Answering[Any]:
    engine, tenant = here(), asker.tenant
    payer = await payer_for(
        engine, tenant_id=tenant.pk, slug=tenant.slug, schema=tenant.schema_name, account=asker.beside
    )
    assert asker.spends_as is not None  # it asks by key
    wanted = Wanted(
        passed=passed,
        model=passed.model,
        max_tokens=passed.max_tokens,
        app=APP,
        user_id=asker.user_id,
        key=Key(asker.spends_as, asker.limited_apps, asker.key_models, asker.rates),
    )
    try:
        return await begin(engine, payer, wanted)
    except BudgetDenied as exc:
        tell_ways_out(exc, engine, payer, wanted)
        raise


async def _stream(answering: Answering[Any], passed: Passed, send: Send) -> None:
    await answering.begun()
    headers = {
        "content-type": "text/event-stream",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
        **relaying.headers(answering.call, None),
    }
    await send({"type": "http.response.start", "status": 200, "headers": _encoded(headers)})
    async for part in relaying.stream(answering, passed):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


async def _whole(answering: Answering[Any], send: Send) -> None:
    await _send(send, 200, *await relaying.whole(answering))


async def _send_json(send: Send, status: int, said: Any, headers: dict[str, str]) -> None:
    await _send(send, status, json.dumps(said, separators=(",", ":")).encode(), headers)


async def _send(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    headers = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin1")) for name, value in headers.items()]


async def _body(receive: Receive) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ReaderLeft
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            raise TooLarge
        more = message.get("more_body", False)
    return b"".join(parts)
