"""A proxy before the authority that writes down what came, and does as the test says before it passes anything on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

import httpx

from billing.client import default_client
from billing.keys import unseal
from tests.support.cast import Workspace


@dataclass(frozen=True)
class Came:
    """One request as it came."""

    method: str
    path: str  # without its query
    key: str  # the tenant's
    name: str  # of a repeat the same
    at: float


class Gate:
    """`with Gate(authority.runtime_url) as gate:` passes all on. `gate.act(came)` is called first; it may take time, or
    return (status, body) to answer itself. `gate.came`: all so far.

    `only`: the workspaces that this is about. Its address is the whole process's, and calls of earlier tests may still
    give money back or settle in the background: those of other workspaces are passed on, and neither seen nor acted on.
    """

    def __init__(self, target: str, *, only: Iterable[Workspace] | None = None) -> None:
        self.came: list[Came] = []
        self.only = only
        self.act: Callable[[Came], tuple[int, bytes] | None] = lambda came: None
        self.onward = httpx.Client(base_url=target, timeout=20, trust_env=False, limits=httpx.Limits())
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def asked(self, method: str, path: str) -> list[Came]:
        return [came for came in self.came if (came.method, came.path) == (method, path)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.onward.close()


def is_about(only: Iterable[Workspace] | None, key: str, address: str) -> bool:
    """Whether a request is one of these workspaces'; None: of all. `key` is the one that it came under, and `address`
    has its query: the admin plane's requests name the tenant there, and come under no key of its.
    """
    return only is None or any(
        key == unseal(one.account.sealed_key) if key else one.account.subject_tenant in unquote(address) for one in only
    )


class SlowKeys:
    """For `gate.act`: as a real authority checks a key that was quiet, by half a second of one of its two cores.

    Each request under such a key pays for itself until one has been answered.
    """

    def __init__(self, *, quiet: float, seconds: float = 0.4, cores: int = 2) -> None:
        self._quiet, self._seconds = quiet, seconds
        self._cores = threading.Semaphore(cores)
        self._warm_until: dict[str, float] = {}
        self.paid = 0

    def __call__(self, came: Came) -> None:
        if came.key and self._warm_until.get(came.key, 0) < time.monotonic():
            with self._cores:
                time.sleep(self._seconds)
                self.paid += 1
        self._warm_until[came.key] = time.monotonic() + self._quiet


def warm(workspace: Workspace) -> None:
    """The authority has answered under the workspace's key within the last minute. Any answer will do."""
    nothing = f"{workspace.account.subject_tenant}~00000000-0000-0000-0000-000000000000"
    assert default_client().get_reservation(nothing).status == 404


class _Server(ThreadingHTTPServer):
    request_queue_size = 128


def _handler(gate: Gate) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            key = self.headers.get("X-Cycles-API-Key", "")
            name = self.headers.get("X-Idempotency-Key", "")
            own = None
            if is_about(gate.only, key, self.path):
                came = Came(self.command, self.path.partition("?")[0], key, name, time.monotonic())
                gate.came.append(came)
                own = gate.act(came)
            if own is None:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                answer = gate.onward.request(self.command, self.path, content=content, headers=headers)
                own = (answer.status_code, answer.content)
            self.send_response(own[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(own[1])))
            with suppress(ConnectionError):  # whoever asked has given up
                self.end_headers()
                self.wfile.write(own[1])

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
