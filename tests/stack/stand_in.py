"""Small stand-ins for the parts that `make run` starts, so that the supervisor is tested without them.

    python -m tests.stack.stand_in            the real supervisor over stand-ins
    python -m tests.stack.stand_in PART …     one of them

STAND_IN_FAILS=<part> makes that part end at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ME = [sys.executable, "-m", "tests.stack.stand_in"]


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def serve(*ports: int) -> None:
    for port in ports:
        server = ThreadingHTTPServer(("127.0.0.1", port), Ready)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    if os.fork() == 0:
        pass  # a worker that nobody told to end, as after a kill -9 of its parent
    while True:
        time.sleep(60)


def main(arguments: list[str]) -> int:
    if not arguments:
        from config.stack import supervisor  # here: its imports would cost every part a quarter of a second

        supervisor.MANAGE, supervisor.MODEL, supervisor.WEB = ME, [*ME, "model"], [*ME, "web"]
        return supervisor.main()
    part, options = arguments[0], arguments[1:]
    if part == os.environ.get("STAND_IN_FAILS"):
        print(f"{part} cannot go on")
        return 3
    if part == "ensure_demo":
        facts = {"slug": "demo", "email": "alice@demo.example", "password": "pass", "api_key": "key"}
        (Path(os.environ["STATE_DIR"]) / "demo.json").write_text(json.dumps(facts))
    elif part == "web":
        serve(int(os.environ["PORT"]))
    elif part != "migrate_schemas":
        serve(*(int(option) for option in options if option.isdigit()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
