"""The door of /v1: an ASGI application beside Django, for what Django's frame costs each call.

Owns routes, the body, the headers of every answer and the log of what was refused. Must not know a rule of money, nor
of who may ask: chat.v1.asking asks tenants.resolve, chat.v1.answering buys by chat.buying.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from secrets import token_hex

from django.conf import settings

from billing.engine.repeats import WHAT_A_KEY_IS, is_key
from chat.passed import Kind, Passed
from chat.standing import Standing
from chat.v1 import catalog, cors, relaying
from chat.v1.answering import Outgoing, answer
from chat.v1.asking import asker_of, fetch_of_plane, found_by
from chat.v1.reading import read
from chat.v1.refusals import refusal
from tenants.asgi import ReaderLeft, Receive, Scope, Send, read_body, while_read
from tenants.bodies import read_object
from tenants.context import bind
from tenants.headers import headers_of_programs
from tenants.http import ApiError, BareRequest, Invalid, MethodNotAllowed, NotFound, NotJson, TooLarge, Unavailable
from tenants.kept import Used
from tenants.middleware import as_api_error
from tenants.models import Tenant
from tenants.resolve import Asker, Found

logger = logging.getLogger(__name__)

KINDS = {f"/v1/{kind.value}": kind for kind in Kind}
MODELS = "/v1/models"
WHAT_THERE_IS = "There is no such address here: /v1 has chat/completions, completions, embeddings and models."
# Some clients ask there unless they are told not to.
RESPONSES = "/v1/responses"
NO_RESPONSES = (
    "The Responses API is not here. Let the client use chat/completions: `openai.chat(model)` in the AI SDK, "
    "`openai-chat:model` in pydantic-ai, `use_responses_api=False` in LangChain."
)
# OpenAI's own clients send it, and those built on them.
STOCK_CLIENT = b"x-stainless-lang"
# Of all requests of this process that are not yet answered. A body becomes some times its size in memory.
BODIES_BYTES = 64 * 1024 * 1024
SMALL_BYTES = 64 * 1024
# A text of token numbers, or a long history: 200,000 values take 20 ms to read.
MOST_VALUES = 200_000


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    # The task is this request's own, so that the tenant stays bound for as long as its stream runs.
    bind(None)
    await Door(scope, receive, send).serve()


class Door:
    """One request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._method: str = scope["method"]
        self._path: str = scope["path"]
        self._headers = _joined(scope["headers"])
        self._request = BareRequest(scope)
        self._tenant: Tenant | None = None
        self._used: Used = []  # rows that say who asks
        self._id = token_hex(16)

    async def serve(self) -> None:
        try:
            await self._serve()
        except ReaderLeft:
            return
        except Exception as exc:
            error = as_api_error(exc)
            if error is None:
                logger.exception("A request of /v1 failed on our side: %s %s", self._method, self._id)
                error = ApiError()
            await self._refuse(error)

    async def _serve(self) -> None:
        if cors.is_preflight(self._method, self._headers):
            await self._preflight()
            return
        found = await found_by(self._request, self._used)
        self._enter(found)
        kind = self._routed()
        asker = await asker_of(self._request, found, self._used)
        if kind is None:
            await self._send_whole(200, {"content-type": "application/json"}, self._listed(asker))
            return
        standing = Standing(self._request, asker)
        key = self._idempotency_key()
        with _room_for(asker.tenant.pk, self._announced()) as hold:
            body = await self._body()
            # Without a length as much as there may be was held, and a stream would keep it for all of its time.
            hold(len(body))
            await while_read(self._receive, self._answer(standing, kind, body, key))

    def _enter(self, found: Found) -> None:
        self._tenant = found.tenant
        bind(found.tenant)

    def _routed(self) -> Kind | None:
        """What is asked of a model; None for the list of models. Raises NotFound or MethodNotAllowed."""
        kind = KINDS.get(self._path)
        is_list = self._path == MODELS or self._path.startswith(f"{MODELS}/")
        if kind is None and not is_list:
            is_responses = self._path == RESPONSES or self._path.startswith(f"{RESPONSES}/")
            raise NotFound(NO_RESPONSES if is_responses else WHAT_THERE_IS)
        wanted = ("POST",) if kind else ("GET", "HEAD")
        if self._method not in wanted:
            raise _OtherMethod(wanted)
        return kind

    def _listed(self, asker: Asker) -> bytes:
        if self._path == MODELS:
            return relaying.as_json(catalog.models_for(asker))
        return relaying.as_json(catalog.model_for(asker, self._path.removeprefix(f"{MODELS}/")))

    def _idempotency_key(self) -> str | None:
        given = self._headers.get(b"idempotency-key")
        if given is None:
            return None
        key = given.decode("latin1").strip()
        if not is_key(key):
            raise Invalid({"Idempotency-Key": [WHAT_A_KEY_IS]})
        return key

    def _announced(self) -> int:
        """Bytes of the body, at most."""
        kind = self._headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise NotJson
        most: int = settings.API_BODY_BYTES
        announced = self._headers.get(b"content-length", b"")
        if not announced.isdigit():
            return most
        if len(announced) > 12 or int(announced) > most:
            raise _too_large(most)
        return int(announced)

    async def _body(self) -> bytes:
        most: int = settings.API_BODY_BYTES
        body = await read_body(self._receive, most)
        if body is None:
            raise _too_large(most)
        return body

    async def _answer(self, standing: Standing, kind: Kind, body: bytes, key: str | None) -> None:
        passed = await _passed(kind, body)
        del body
        if passed.is_stream and STOCK_CLIENT in self._headers:
            passed = replace(passed, for_stock_client=True)
        outgoing = await answer(standing, passed, key)
        try:
            await self._send_out(outgoing)
        finally:
            outgoing.leave()

    # --- sending ---

    async def _send_out(self, outgoing: Outgoing) -> None:
        if outgoing.parts is None:
            await self._send_whole(outgoing.status, outgoing.headers, outgoing.body)
            return
        await self._start(outgoing.status, outgoing.headers)
        async for part in outgoing.parts:
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
        await self._send({"type": "http.response.body"})

    async def _send_whole(self, status: int, headers: dict[str, str], body: bytes) -> None:
        await self._start(status, {**headers, "content-length": str(len(body))})
        await self._send({"type": "http.response.body", "body": b"" if self._method == "HEAD" else body})

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        said = headers_of_programs(self._request)
        allowed = cors.allowed(self._headers, self._tenant)
        if "vary" in allowed:
            allowed["vary"] = f"{said[b'vary'].decode()}, {allowed['vary']}"
        for name, value in {**headers, **allowed, "x-request-id": self._id}.items():
            said[name.encode("ascii")] = value.encode("latin1", "replace")
        await self._send({"type": "http.response.start", "status": status, "headers": list(said.items())})

    async def _refuse(self, error: ApiError) -> None:
        status, headers, body = refusal(error)
        level = logging.ERROR if status >= 500 and error.why else logging.WARNING
        # Neither the path, which may hold anything, nor a header.
        logger.log(level, "/v1 refused: status=%d code=%s request=%s %s", status, error.code, self._id, error.why)
        if isinstance(error, _OtherMethod):
            headers["allow"] = ", ".join(error.wanted)
        await self._send_whole(status, {"content-type": "application/json", **headers}, relaying.as_json(body))

    async def _preflight(self) -> None:
        # Its key comes with the call itself; here the host alone says whose pages it is about.
        self._request.META.pop("HTTP_AUTHORIZATION", None)
        self._request.META.pop("HTTP_X_TENANT_ID", None)
        self._enter(await found_by(self._request, self._used))
        headers = await cors.preflight(self._headers, self._tenant, fetch_of_plane())
        await self._start(204, headers)
        await self._send({"type": "http.response.body"})


class _OtherMethod(MethodNotAllowed):
    def __init__(self, wanted: tuple[str, ...]) -> None:
        self.wanted = wanted
        super().__init__(f"This address answers {' and '.join(wanted)}.")


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"The request is larger than {most // 1024 // 1024} MiB. Send less at a time.")


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Twice in a request, a header is one that nobody can say the meaning of: neither of its values counts."""
    joined: dict[bytes, bytes] = {}
    for name, value in headers:
        joined[name] = joined[name] + b"," + value if name in joined else value
    return joined


# One at a time: several would only take the processor from the loop and from each other.
_reader = ThreadPoolExecutor(1, thread_name_prefix="v1-reader")


async def _passed(kind: Kind, body: bytes) -> Passed:
    """A large one is read beside the loop. A few letters take long to bound: 8 MiB of them, refused for want of money
    each time, kept everybody's streams from their words for two seconds.
    """
    if len(body) <= SMALL_BYTES:
        return _read(kind, body)
    reading = asyncio.get_running_loop().run_in_executor(_reader, _read, kind, body)
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        # Its room is given back with its memory: whoever sends and leaves, again and again, would fill the line.
        await asyncio.wait([reading])
        raise


def _read(kind: Kind, body: bytes) -> Passed:
    return read(kind, read_object(body, most_values=MOST_VALUES))


_in_flight: dict[int, int] = {}  # bytes, by the workspace whose they are


@contextmanager
def _room_for(whose: int, size: int) -> Iterator[Callable[[int], None]]:
    """A place for a large body, whose size can be told better later. Many of them at once would be more than the
    process has memory for.

    A workspace's second one, and each after it, leaves as much room as the workspace then has: sixteen pictures under
    slow answers of one kept all others' large requests out for as long as the answers took.
    """
    held = 0

    def hold(size: int) -> None:
        nonlocal held
        size = 0 if size <= SMALL_BYTES else size
        if size == held:
            return
        others, before = sum(_in_flight.values()) - held, _in_flight.get(whose, 0) - held
        left = BODIES_BYTES - others - size
        if size > held and (left < 0 or (before and left < before + size)):
            raise Unavailable("Many large requests are being read just now. Try again in a moment.")
        held = size
        if before + held:
            _in_flight[whose] = before + held
        else:
            _in_flight.pop(whose, None)

    try:
        hold(size)
        yield hold
    finally:
        hold(0)
