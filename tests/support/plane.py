"""The plane for tests: in this process on a loop of its own thread, or as production runs it.

`PlaneClient` has the shape of Django's test client, so that what was written for that one can ask the plane.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from collections.abc import Iterator
from typing import Any

from django.http.cookie import SimpleCookie

from billing.engine.habits import Habits
from billing.engine.loop import here, loop_thread
from tests.support.web import WebProcess

WAIT = 60.0


# --- the plane's loop in this process: the engine's own ---


def loop() -> asyncio.AbstractEventLoop:
    return loop_thread().loop


def run(coroutine: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(coroutine, loop()).result(WAIT)


def forget_habits() -> None:
    """What earlier tests have taught of their models: past twenty reports a call holds a slice and not the whole."""

    async def forget() -> None:
        engine = here()
        engine.habits = Habits(engine.store)
        await engine.store.fetch("DELETE FROM public.billing_habit")

    run(forget())


# --- a client in this process ---


class PlaneResponse:
    """An answer of the plane: `status_code`, `response["Header"]`, and `content` or `streaming_content`."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        start = exchange.next_message()
        assert start["type"] == "http.response.start", start
        self.status_code: int = start["status"]
        pairs = [(name.decode("latin1"), value.decode("latin1")) for name, value in start["headers"]]
        self.headers = {name.lower(): value for name, value in pairs if name.lower() != "set-cookie"}
        self.cookies = SimpleCookie()
        for name, value in pairs:
            if name.lower() == "set-cookie":
                self.cookies.load(value)
        self.streaming = "content-length" not in self.headers
        self._content = None if self.streaming else b"".join(self._parts())

    def __getitem__(self, name: str) -> str:
        return str(self.headers[name.lower()])

    def has_header(self, name: str) -> bool:
        return name.lower() in self.headers

    @property
    def content(self) -> bytes:
        if self._content is None:
            self._content = b"".join(self.streaming_content)
        return self._content

    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def streaming_content(self) -> Iterator[bytes]:
        """The parts as they come; the plane sends no further than one part ahead of who reads here."""
        return self._parts()

    def _parts(self) -> Iterator[bytes]:
        more = True
        while more:
            message = self._exchange.next_message()
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    def close(self) -> None:
        """The reader leaves; comes back when the plane is done with the request."""
        self._exchange.leave()


class _Exchange:
    """One request on the plane's loop, seen from the thread of the test."""

    def __init__(self, application: Any, scope: dict[str, Any], body: list[bytes]) -> None:
        self._sent: queue.SimpleQueue[dict[str, Any] | BaseException] = queue.SimpleQueue()
        self._body = body
        self._room: asyncio.Semaphore
        self._left: asyncio.Event
        self._done = asyncio.run_coroutine_threadsafe(self._serve(application, scope), loop())

    async def _serve(self, application: Any, scope: dict[str, Any]) -> None:
        self._room, self._left = asyncio.Semaphore(2), asyncio.Event()
        try:
            await application(scope, self._receive, self._send)
        except BaseException as exc:
            self._sent.put(exc)
            raise

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            part = self._body.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._body)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self._room.acquire()
        self._sent.put(message)

    def next_message(self) -> dict[str, Any]:
        message = self._sent.get(timeout=WAIT)
        if isinstance(message, BaseException):
            raise message
        loop().call_soon_threadsafe(self._room.release)
        return message

    @property
    def is_over(self) -> bool:
        return self._done.done()

    def leave(self) -> None:
        loop().call_soon_threadsafe(self._left.set)
        self._done.result(WAIT)


class PlaneClient:
    """`client.post(path, body)` as a program or a browser would ask the plane. `cookies` as Django's client keeps."""

    def __init__(self, *, headers: dict[str, str] | None = None, application: Any = None) -> None:
        from config.asgi import application as plane

        self.headers = {name.lower(): value for name, value in (headers or {}).items()}
        self.cookies = SimpleCookie()
        self._application = application or plane

    def get(self, path: str, **extra: Any) -> PlaneResponse:
        return self.request("GET", path, **extra)

    def post(self, path: str, body: Any = b"", **extra: Any) -> PlaneResponse:
        return self.request("POST", path, body, **extra)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | dict[str, Any] | list[bytes] = b"",
        *,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> PlaneResponse:
        """`body`: bytes, text, a dict to send as JSON, or a list of bytes to send in parts without a length."""
        return PlaneResponse(self.begin(method, path, body, content_type=content_type, headers=headers))

    def begin(
        self, method: str, path: str, body: Any = b"", *, content_type: str = "application/json", headers: Any = None
    ) -> _Exchange:
        """The request under way: its reader may `leave()` before there is an answer."""
        if isinstance(body, dict):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode()
        sent = {**self.headers, **{name.lower(): value for name, value in (headers or {}).items()}}
        if isinstance(body, bytes) and body:
            sent |= {"content-length": str(len(body))}
        if body:
            sent.setdefault("content-type", content_type)
        if self.cookies:
            sent["cookie"] = "; ".join(f"{name}={cookie.coded_value}" for name, cookie in self.cookies.items())
        where, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "method": method,
            "path": where, "raw_path": where.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.encode("latin1"), value.encode("latin1")) for name, value in sent.items()],
            "client": ("127.0.0.1", 1), "server": ("localhost", 80),
        }  # fmt: skip
        return _Exchange(self._application, scope, body if isinstance(body, list) else [body])


# --- the process ---


class PlaneProcess(WebProcess):
    """`with PlaneProcess(database_url=…, authority=…) as plane:` serves on a real socket until the block ends."""

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "uvicorn", "config.asgi:application", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--ws", "none", "--no-access-log", "--log-level", "warning"]
        return [*command, "--lifespan", "on", "--timeout-keep-alive", "75", "--timeout-graceful-shutdown", "10"]
