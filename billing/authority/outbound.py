"""One signed POST to a webhook's URL. Owns signature, headers, time limits; knows no table and tries once. Secrets come
sealed and are opened here, for the one request that needs them.

The name is resolved here and the connection goes to the address that was judged, so that a name which changes its
address between the two cannot lead inside. Redirects are not followed for the same reason.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from billing.authority.destinations import Security
from billing.authority.sealing import SealError, unseal

TIMEOUT = httpx.Timeout(5.0)
SECONDS_IN_ALL = 10.0  # far below the lease of a delivery
AGENT = "tenantry-authority-webhooks"


@dataclass(frozen=True)
class Outcome:
    """What came of it. Delivered means a 2xx answer."""

    response_time_ms: int
    response_status: int | None = None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        return self.response_status is not None and 200 <= self.response_status < 300


@dataclass(frozen=True)
class Message:
    """An event on its way, with all that its request needs."""

    url: str
    sealed_secret: str
    body: bytes
    event_id: str
    event_type: str
    trace_id: str
    trace_flags: str = "01"
    request_id: str | None = None
    sealed_headers: Mapping[str, str] | None = None

    def all_headers(self) -> dict[str, str]:
        """The subscriber's own first: none of them may stand in for ours."""
        ours = {
            "Content-Type": "application/json",
            "User-Agent": AGENT,
            "X-Cycles-Event-Id": self.event_id,
            "X-Cycles-Event-Type": self.event_type,
            "X-Cycles-Signature": signature(unseal(self.sealed_secret), self.body),
            "X-Cycles-Trace-Id": self.trace_id,
            "traceparent": f"00-{self.trace_id}-{self.event_id.encode().hex()[-16:]}-{self.trace_flags}",
        }
        if self.request_id is not None and self.request_id.isascii() and self.request_id.isprintable():
            ours["X-Request-Id"] = self.request_id
        taken = {name.lower() for name in ours}
        theirs = {name: unseal(sealed) for name, sealed in (self.sealed_headers or {}).items()}
        return {name: value for name, value in theirs.items() if name.lower() not in taken} | ours


def signature(secret: str, body: bytes) -> str:
    """HMAC-SHA256 over the raw body; the key is the whole secret, `whsec_` included."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def send(message: Message, security: Security) -> Outcome:
    started = time.monotonic()

    def outcome(status: int | None = None, error: str | None = None) -> Outcome:
        return Outcome(int((time.monotonic() - started) * 1000), status, error)

    if refused := security.why_not(message.url):
        return outcome(error=refused)
    try:
        url, headers, extensions = _addressed(message, security)
    except SealError as error:  # never unsigned, never without what the receiver asks for
        return outcome(error=str(error))
    except (OSError, ValueError) as error:
        return outcome(error=f"{type(error).__name__}: {error}"[:500])
    try:
        status = asyncio.run(_post(url, message.body, headers, extensions))
    except TimeoutError:
        return outcome(error=f"no whole answer within {SECONDS_IN_ALL} seconds")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return outcome(error=f"{type(error).__name__}: {error}"[:500])
    return outcome(status, None if 200 <= status < 300 else f"HTTP {status}")


async def _post(url: str, body: bytes, headers: dict[str, str], extensions: dict[str, str]) -> int:
    """In a loop of its own, for that is what can cut off a receiver who sends a byte now and then for ever. The body
    of the answer is nobody's business and is not read."""
    async with (
        asyncio.timeout(SECONDS_IN_ALL),
        httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False, trust_env=False) as client,
        client.stream("POST", url, content=body, headers=headers, extensions=extensions) as answer,
    ):
        return answer.status_code


def _addressed(message: Message, security: Security) -> tuple[str, dict[str, str], dict[str, str]]:
    """The request to the very address that was judged; the name goes along for the certificate and the host."""
    parts = urlsplit(message.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    address = str(found[0][4][0])
    if security.blocked(address):
        raise ValueError(f"{host} has an address in a range that webhook-security blocks")
    literal = f"[{address}]" if ":" in address else address
    url = parts._replace(netloc=f"{literal}:{port}", fragment="").geturl()
    return url, {**message.all_headers(), "Host": parts.netloc}, {"sni_hostname": host}
