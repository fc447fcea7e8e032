"""The ASGI application that uvicorn serves as the plane: Django's frame for async views, without its thread hops.

Owns Django's frame: reading a request and sending an answer. Django's own handler sends signals,
logs and closes through threads, for the ORM's sake; the plane has no ORM, and those hops cost more than its views.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import resource
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

import django
from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.http import Http404, HttpRequest
from django.urls import get_resolver
from django.utils.log import log_response
from django.utils.module_loading import import_string

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Response = Any  # of Django's, whose types leave out what a handler needs

logger = logging.getLogger(__name__)

# Five thousand streams, which is more than one process can write to.
FILES = 10_240


class PlaneHandler(ASGIHandler):
    """Serves PLANE_URLCONF through PLANE_MIDDLEWARE.

    A middleware is `async def __call__` and may have `async def process_view`; what a view raises passes through it as
    an exception. A view is `async def`: a sync one would need a thread, where the tenant is not bound.
    """

    def load_middleware(self, is_async: bool = True) -> None:
        self.request_class = import_string(settings.PLANE_REQUEST)
        self._connection = import_module(settings.PLANE_CONNECTION)
        self._view_middleware: list[Any] = []
        chain = self._get_response_async
        for name in reversed(settings.PLANE_MIDDLEWARE):
            middleware = import_string(name)(chain)
            if not iscoroutinefunction(middleware.__call__) or hasattr(middleware, "process_exception"):
                raise ImproperlyConfigured(f"PLANE_MIDDLEWARE: {name} must be async and have no process_exception.")
            if hasattr(middleware, "process_view"):
                self._view_middleware.insert(0, middleware.process_view)
            chain = middleware
        self._middleware_chain = chain

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        try:
            body = await self._connection.read_body(receive, settings.DATA_UPLOAD_MAX_MEMORY_SIZE)
        except self._connection.ReaderLeft:
            return
        request = self._request(scope, body)
        await self._connection.while_read(receive, self._answer(request, send))

    async def _answer(self, request: HttpRequest, send: Send) -> None:
        response: Response | None = None
        try:
            response = await self.get_response_async(request)
            await self.send_response(response, send)
        finally:
            if response is not None:
                await self._close(response)

    def _request(self, scope: Scope, body: bytes | None) -> HttpRequest:
        # Django reads it strictly and answers in HTML where it cannot.
        query = scope.get("query_string", b"").decode("utf-8", "replace")
        request: HttpRequest = self.request_class({**scope, "query_string": query}, io.BytesIO(body or b""))
        # What was counted, whatever was announced: whoever reads the body then refuses one that is too large.
        size = settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1 if body is None else len(body)
        request.META["CONTENT_LENGTH"] = str(size)
        return request

    async def get_response_async(self, request: HttpRequest) -> Response:
        response: Response = await self._middleware_chain(request)
        response._resource_closers.append(request.close)
        if response.status_code >= 400:
            log_response("%s: %s", response.reason_phrase, request.path, response=response, request=request)
        return response

    async def _get_response_async(self, request: HttpRequest) -> Response:
        match = get_resolver(settings.PLANE_URLCONF).resolve(request.path_info)
        request.resolver_match = match
        view, args, kwargs = match
        if not iscoroutinefunction(view):
            logger.error(
                "The plane serves async views alone: %s is not, so it is 404. Move it to config/urls.py.", view
            )
            raise Http404
        for process_view in self._view_middleware:
            if response := await process_view(request, view, args, kwargs):
                return response
        response = await view(request, *args, **kwargs)
        self.check_response(response, view)  # None, or a coroutine without its await
        return response

    async def send_response(self, response: Response, send: Send) -> None:
        if response.streaming and not response.is_async:
            raise ImproperlyConfigured("A stream of the plane is an async iterator.")
        if not response.streaming and not response.has_header("Content-Length"):
            response["Content-Length"] = str(len(response.content))
        headers = [(name.encode("ascii"), value.encode("latin1")) for name, value in response.items()]
        headers += [(b"Set-Cookie", cookie.output(header="").strip().encode()) for cookie in response.cookies.values()]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        if not response.streaming:
            await send({"type": "http.response.body", "body": response.content})
            return
        async for part in response._iterator:
            await send({"type": "http.response.body", "body": response.make_bytes(part), "more_body": True})
        await send({"type": "http.response.body"})

    async def _close(self, response: Response) -> None:
        """End the stream, also one that never began: a generator of Django's around it would hide its `aclose`."""
        aclose = getattr(getattr(response, "_iterator", None), "aclose", None)
        if aclose is not None:
            await aclose()
        for closer in response._resource_closers:
            closer()


def _allow_many_files() -> None:
    """A stream takes two sockets, and a shell allows 256 files (macOS) or 1,024 unless it is told otherwise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # macOS has a lower limit than the one it names
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _lifespan(receive: Receive, send: Send) -> None:
    _allow_many_files()
    for step, name in (("startup", settings.PLANE_STARTUP), ("shutdown", settings.PLANE_SHUTDOWN)):
        await receive()
        try:
            if name:
                await import_string(name)()
        except Exception as exc:
            logger.exception("The plane's %s failed.", step)
            await send({"type": f"lifespan.{step}.failed", "message": str(exc)})
            return
        await send({"type": f"lifespan.{step}.complete"})


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
# What is loaded here stays: looking through it for garbage, again and again, is a tenth of the start.
gc.disable()
django.setup(set_prefix=False)
_http = PlaneHandler()
_bare = {prefix: import_string(name) for prefix, name in settings.PLANE_BARE.items()}
gc.enable()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "http":
        bare = next((app for prefix, app in _bare.items() if scope["path"].startswith(prefix)), None)
        await (bare or _http)(scope, receive, send)
    else:
        raise ValueError(f"The plane speaks HTTP, not {scope['type']}.")
