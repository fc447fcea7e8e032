"""The two planes as processes: starting them together, ending them together, never outliving each other.

A plane holds the reading end of a pipe whose writing end only its starter has. When the starter is gone, however it
went, the pipe ends and the plane stops itself: a kill -9 leaves no server behind on the port.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

GRACE_SECONDS = 5.0


class StartError(Exception):
    """The planes cannot start; the text is one sentence for the terminal."""


def plane_arguments(plane: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m billing.authority.{plane}")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--watch", type=int, default=-1, help="file descriptor that ends when the starter does")
    return parser.parse_args()


def watch_parent(descriptor: int) -> None:
    """Stop this process when the pipe ends; kill it if it does not stop in time."""
    if descriptor < 0:
        return

    def wait() -> None:
        while os.read(descriptor, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="watch-parent").start()


def check_port(host: str, port: int, variable: str) -> None:
    """Busy or not is found out by binding, the one test that every system has."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartError(f"Port {port} on {host} cannot be used ({error.strerror}): set {variable}.") from None


@dataclass
class Planes:
    """Both planes, or neither."""

    host: str
    runtime_port: int
    admin_port: int
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _pipe: int = -1

    def start(self) -> None:
        check_port(self.host, self.runtime_port, "AUTHORITY_RUNTIME_PORT")
        check_port(self.host, self.admin_port, "AUTHORITY_ADMIN_PORT")
        watched, self._pipe = os.pipe()
        for plane, port in (("runtime", self.runtime_port), ("admin", self.admin_port)):
            command = [sys.executable, "-m", f"billing.authority.{plane}", "--host", self.host]
            command += ["--port", str(port), "--watch", str(watched)]
            # A session of its own: Ctrl-C reaches the starter, and the starter says when the planes stop.
            self._running[plane] = subprocess.Popen(
                command, pass_fds=[watched], stdin=subprocess.DEVNULL, start_new_session=True
            )
        os.close(watched)

    def wait_until_ready(self, seconds: float = 30.0) -> None:
        until = time.monotonic() + seconds
        for plane, port in (("runtime", self.runtime_port), ("admin", self.admin_port)):
            while not answers(self.host, port):
                if gone := self.gone():
                    raise StartError(f"The {gone} plane ended while starting; its reason stands above.")
                if time.monotonic() > until:
                    raise StartError(f"The {plane} plane does not answer on port {port} after {seconds:.0f} s.")
                time.sleep(0.05)

    def gone(self) -> str | None:
        return next((plane for plane, process in self._running.items() if process.poll() is not None), None)

    def stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        until = time.monotonic() + GRACE_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # gunicorn's worker too: it leads no session of its own
                process.wait()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/actuator/health/liveness")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
