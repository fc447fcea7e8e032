"""One request in this process, to web or to the plane, and all that its answer shows. Must not judge it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.http.cookie import SimpleCookie
from django.test import Client
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart

from tests.isolation.crawler.room import Credential
from tests.isolation.crawler.spellings import Spelling
from tests.isolation.crawler.walk import Pattern
from tests.support.plane import PlaneClient

# What is asked in JSON, and with a key.
PROGRAMS = ("/api/", "/v1/")

# Of a documentation net: limits on addresses must count nobody else's requests with these.
ADDRESS = "203.0.113.77"


@dataclass(frozen=True)
class Request:
    """`ids` says whose the ids in it are: the slug of a workspace."""

    pattern: Pattern
    method: str
    path: str
    credential: Credential
    spelling: Spelling
    ids: str
    body: Any = None
    headers: dict[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.pattern} by {self.credential}, {self.spelling}, ids of {self.ids}"

    @property
    def names(self) -> frozenset[str]:
        """The workspaces that it names: by host or header, or else by its key, which the API alone reads."""
        return self.spelling.names or (self.credential.names if self.path.startswith(PROGRAMS) else frozenset())

    def sent(self) -> dict[str, str]:
        """Its headers, but for cookies."""
        return {"host": self.spelling.host, **(self.headers or {}), **self.spelling.headers, **self.credential.headers}

    def encoded(self) -> tuple[bytes, str]:
        """The body, and what kind it is."""
        if self.body is None:
            return b"", "application/json"
        if self.path.startswith(PROGRAMS) or not isinstance(self.body, dict):
            return json.dumps(self.body).encode(), "application/json"
        if any(hasattr(value, "read") for value in self.body.values()):
            return encode_multipart(BOUNDARY, self.body), MULTIPART_CONTENT
        return urlencode(self.body, doseq=True).encode(), "application/x-www-form-urlencoded"

    def shown(self) -> bytes:
        """All that was sent: what an answer repeats of it is no news."""
        body, _ = self.encoded()
        headers = "\n".join([self.path, *self.sent().values(), *self.credential.cookies.values()])
        return headers.encode() + b"\n" + body


@dataclass(frozen=True)
class Answer:
    status: int
    head: bytes
    body: bytes
    error: str = ""


class Asker:
    """Asks as many requests as one likes, each as if it were the first: no cookie stays."""

    def __init__(self) -> None:
        self._web = Client(raise_request_exception=False)

    def ask(self, request: Request) -> Answer:
        return self._ask_plane(request) if request.pattern.door == "plane" else self._ask_web(request)

    def _ask_web(self, request: Request) -> Answer:
        body, kind = request.encoded()
        self._web.cookies = SimpleCookie(request.credential.cookies)
        extra: dict[str, Any] = {"REMOTE_ADDR": ADDRESS}
        if request.spelling.script_name:
            extra["SCRIPT_NAME"] = request.spelling.script_name
        answer: Any = self._web.generic(request.method, request.path, body, kind, headers=request.sent(), **extra)
        error = ""
        if (raised := getattr(answer, "exc_info", None)) is not None:
            error = f"{raised[0].__name__}: {raised[1]}"
        try:
            content = b"".join(answer.streaming_content) if answer.streaming else answer.content
        except Exception as exc:  # a stream that breaks
            content, error = b"", f"{type(exc).__name__}: {exc}"
        head = f"{answer.status_code} {answer.reason_phrase}\n{answer.serialize_headers().decode()}\n{answer.cookies}"
        return Answer(answer.status_code, head.encode(), content, error)

    def _ask_plane(self, request: Request) -> Answer:
        body, kind = request.encoded()
        client = PlaneClient()
        client.cookies = SimpleCookie(request.credential.cookies)
        try:
            answer = client.request(request.method, request.path, body, content_type=kind, headers=request.sent())
            content = answer.content
        except Exception as exc:
            return Answer(500, b"", b"", f"{type(exc).__name__}: {exc}")
        head = "\n".join([str(answer.status_code), *(f"{name}: {value}" for name, value in answer.headers.items())])
        return Answer(answer.status_code, f"{head}\n{answer.cookies}".encode(), content)
