"""A proxy that loses answers: the request arrives and is worked on, and the caller never hears of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import httpx

from tests.support.cast import Workspace
from tests.support.gate import is_about


class LossyProxy:
    """`with LossyProxy(target) as proxy:` passes all on. `proxy.lose["/commit"] = 2` loses the next two answers to
    paths that end so; `proxy.refuse["/extend"] = 3` answers the next three with a 500 and passes nothing on;
    `proxy.delay["/commit"] = 0.5` keeps each of them back for so many seconds.
    `proxy.before["/commit"] = act` calls `act()` once when the next request to such a path has come, and `after` when
    it has been worked on: to kill the caller just there, for example.

    `only`: as a Gate's. What others ask for is passed on, and neither counted nor lost.
    """

    def __init__(self, target: str, *, only: Iterable[Workspace] | None = None) -> None:
        self.only = only
        self.lose: dict[str, int] = {}
        self.refuse: dict[str, int] = {}
        self.delay: dict[str, float] = {}
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}
        self.seen: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, target))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def taken(self, counts: dict[str, int], path: str) -> bool:
        with self._lock:
            for suffix, left in counts.items():
                if path.endswith(suffix) and left > 0:
                    counts[suffix] = left - 1
                    return True
        return False

    def act(self, acts: dict[str, Callable[[], object]], path: str) -> None:
        with self._lock:
            found = [acts.pop(suffix) for suffix in list(acts) if path.endswith(suffix)]
        for act in found:
            act()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(proxy: LossyProxy, target: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            if not is_about(proxy.only, self.headers.get("X-Cycles-API-Key", ""), self.path):
                answer = httpx.request(self.command, target + self.path, content=body, headers=headers, timeout=20)
                return self._say(answer.status_code, answer.content)
            proxy.seen.append((self.command, self.path))
            time.sleep(next((seconds for end, seconds in proxy.delay.items() if self.path.endswith(end)), 0))
            proxy.act(proxy.before, self.path)
            if proxy.taken(proxy.refuse, self.path):
                return self._say(500, b'{"error": "INTERNAL_ERROR", "message": "refused on the way"}')
            answer = httpx.request(self.command, target + self.path, content=body, headers=headers, timeout=20)
            proxy.act(proxy.after, self.path)
            if proxy.taken(proxy.lose, self.path):
                self.close_connection = True
                return None
            return self._say(answer.status_code, answer.content)

        def _say(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            with suppress(ConnectionError):  # whoever asked may be dead by now
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = do_PATCH = _pass_on

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
