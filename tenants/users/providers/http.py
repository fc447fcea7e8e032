"""Asking a provider over HTTP: the one place that does.

Owns the bounds: five seconds for all that one log-in asks, no redirects, bodies of 256 KiB, https outside of loopback,
so many at once in a process. Must not log an address or a body: codes and tokens stand in them.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx
from django.db import connection

from tenants.http import Unavailable
from tenants.users.providers.errors import ProviderFailed
from tenants.users.providers.known import Provider

SECONDS = 5.0
LONGEST = 256 * 1024
# Each takes a thread of web for as long as its provider takes. A provider that hangs must not stop every page.
PLACES = 4
# Uncompressed: a few KB of gzip can be a great many bytes, all at once.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}
_places = threading.BoundedSemaphore(PLACES)


class Conversation:
    """What is asked of one provider in one go."""

    def __init__(self, provider: Provider, *, by_proxy: bool) -> None:
        self._provider = provider
        self._by_proxy = by_proxy
        self._until = time.monotonic() + SECONDS

    def get(self, url: str, *, bearer: str = "") -> Any:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        status, body = self._send("GET", url, headers=headers)
        if status != 200:
            raise self.failed(f"an address it named answered {status}")
        return body

    def post(self, url: str, form: dict[str, str], *, auth: tuple[str, str] | None = None) -> tuple[int, Any]:
        return self._send("POST", url, data=form, auth=auth)

    def failed(self, reason: str) -> ProviderFailed:
        return ProviderFailed(self._provider.name, reason)

    def _send(self, method: str, url: str, **parts: Any) -> tuple[int, Any]:
        if not is_safe(url, self._provider):
            raise self.failed("it names an address that is not https")
        left = self._until - time.monotonic()
        try:
            return asyncio.run(self._answer(left, method, url, **parts))
        except TimeoutError:
            raise self.failed(f"it took longer than {SECONDS:.0f} s") from None

    async def _answer(self, seconds: float, method: str, url: str, **parts: Any) -> tuple[int, Any]:
        """In a loop of its own, for that is what can cut off a provider that sends a byte now and then for ever: a
        client's time-outs are for each read.
        """
        headers = {**_HEADERS, **parts.pop("headers", {})}
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(
                timeout=SECONDS, follow_redirects=False, trust_env=self._by_proxy, verify=_certificates()
            ) as client,
            client.stream(method, url, headers=headers, **parts) as response,
        ):
            return response.status_code, await self._json_of(response)

    async def _json_of(self, response: httpx.Response) -> Any:
        body = b""
        async for part in response.aiter_raw():
            body += part
            if len(body) > LONGEST:
                raise self.failed("an answer is too long")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return None


@cache
def _certificates() -> ssl.SSLContext:
    """The authorities that are trusted. To read them takes a client 20 ms of a core."""
    return httpx.create_ssl_context()


@contextmanager
def conversation(provider: Provider) -> Iterator[Conversation]:
    """Outside of any transaction, and with this thread's connection given back: the pool's others need it meanwhile."""
    if connection.in_atomic_block:
        raise RuntimeError("A provider is never asked inside a transaction.")
    if not _places.acquire(blocking=False):
        raise Unavailable
    near = urlsplit(provider.issuer).scheme == "http"
    try:
        connection.close()
        # An operator's proxy is for what is far away.
        yield Conversation(provider, by_proxy=not near)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise ProviderFailed(provider.name, type(exc).__name__) from None
    finally:
        _places.release()


def is_safe(url: Any, provider: Provider) -> bool:
    """https; or the issuer's own loopback host, where that is plain http (config.providers lets no other be so)."""
    try:
        parts, issuer = urlsplit(url if isinstance(url, str) else ""), urlsplit(provider.issuer)
        host = parts.hostname
    except ValueError:
        return False
    if not host or not url.isascii() or not url.isprintable() or " " in url or "@" in parts.netloc:
        return False
    return parts.scheme == "https" or (parts.scheme == issuer.scheme == "http" and host == issuer.hostname)
