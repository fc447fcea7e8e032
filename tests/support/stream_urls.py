"""Sync views of web that stream, as a builder might write them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from tenants.http import Invalid

ran: list[str] = []
closed: list[str] = []
enough = threading.Event()


class Words:
    """What a paid answer is to its view: something that must be closed."""

    def __init__(self, name: str) -> None:
        self._name = name
        ran.append(name)

    def __iter__(self) -> Iterator[bytes]:
        yield b"data: 1\n\n"
        until = time.monotonic() + 30
        while not enough.wait(0.1) and time.monotonic() < until:
            yield b": waiting\n\n"

    def close(self) -> None:
        closed.append(self._name)


def stream(request: HttpRequest, name: str) -> StreamingHttpResponse:
    if name == "odd":
        raise Invalid({"name": ["An odd name."]})
    return StreamingHttpResponse(Words(name), content_type="text/event-stream")


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


urlpatterns = [
    path("api/stream/<name>/", stream),
    path("api/other/<name>/", lambda request, name: stream(request, name)),
    path("api/plain/", plain),
]
