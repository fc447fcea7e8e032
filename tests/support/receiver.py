"""A webhook's receiver for tests: a real server on loopback, and how one is subscribed."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

QUICK = {"max_retries": 2, "initial_delay_ms": 100, "backoff_multiplier": 1.0, "max_delay_ms": 1_000}
OPEN = {"allow_http": True, "blocked_cidr_ranges": []}


class Receiver:
    """A subscriber's server on loopback: keeps what it got, answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/hook"

    def wait_for(self, count: int, seconds: float = 30) -> list[tuple[dict[str, str], bytes]]:
        until = time.monotonic() + seconds
        while len(self.got) < count and time.monotonic() < until:
            time.sleep(0.05)
        return self.got


def subscribe(probe, owner: str, url: str, **settings):
    body = {"url": url, "event_types": ["budget.funded"], "retry_policy": QUICK, **settings}
    answer = probe.admin.post("/v1/admin/webhooks", params={"tenant_id": owner}, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def signature(secret: str, body: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def eventually(condition, seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False
