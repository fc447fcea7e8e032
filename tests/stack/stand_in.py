"""Small stand-ins for the parts that `make run` starts, so that the supervisor is tested without them.

Only the front is the real one.

    python -m tests.stack.stand_in            the real supervisor over stand-ins
    python -m tests.stack.stand_in PART …     one of them

STAND_IN_FAILS=<part> makes that part end at once. STATE_DIR/told says in which order parts were told to end.
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

ME = [sys.executable, "-m", "tests.stack.stand_in"]


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        if self.path.endswith("/endless/"):
            time.sleep(60)

    def log_message(self, *words: object) -> None:
        """Nothing: a client of a unix socket has no address to write down."""


class OnSocket(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def serve(part: str, *places: str) -> None:
    """On ports and socket files, until told to end."""

    def leave(number: int, frame: FrameType | None) -> None:
        with (Path(os.environ["STATE_DIR"]) / "told").open("a") as told:
            told.write(f"{part}\n")
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    print(f"{part} begins")  # not before: who waits for it may tell it to end
    for place in places:
        server = ThreadingHTTPServer(("127.0.0.1", int(place)), Ready) if place.isdigit() else OnSocket(place, Ready)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    if os.fork() == 0:
        signal.signal(
            signal.SIGTERM, signal.SIG_DFL
        )  # a worker that nobody told to end, as after a kill -9 of its parent
    while True:
        time.sleep(60)


def main(arguments: list[str]) -> int:
    if not arguments:
        from config.stack import supervisor  # here: its imports would cost every part a quarter of a second

        supervisor.MANAGE, supervisor.MODEL = ME, [*ME, "model"]
        supervisor.WEB, supervisor.PLANE = [*ME, "web"], [*ME, "plane"]
        return supervisor.main()
    part, options = arguments[0], arguments[1:]
    if part == os.environ.get("STAND_IN_FAILS"):
        print(f"{part} cannot go on")
        return 3
    if part == "ensure_demo":
        facts = {"slug": "demo", "email": "alice@demo.example", "password": "pass", "api_key": "key"}
        (Path(os.environ["STATE_DIR"]) / "demo.json").write_text(json.dumps(facts))
    elif part != "migrate_schemas":
        places = [option.removeprefix("unix:").removeprefix("127.0.0.1:") for option in options]
        serve(part, *(place for place in places if place.endswith(".sock") or (place.isdigit() and int(place) > 1024)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
