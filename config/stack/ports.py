"""Ports: free or not, found out by binding them.

Owns that question only. Must not ask a tool for it: what lists sockets differs from system to system.
"""

from __future__ import annotations

import errno
import socket
import time

from config.stack import StackError

LAST = 65535
# The first that needs no rights of its own.
FREE_FOR_ALL = 1_024
ADDRESSES = (
    (socket.AF_INET, "127.0.0.1"),
    # Some systems let a narrow address be bound beside a wide one. Bound for a moment, never listened on.
    (socket.AF_INET, "0.0.0.0"),  # noqa: S104
    # For `localhost` a browser tries this one first, and would meet the other program.
    (socket.AF_INET6, "::1"),
)


def check_ports(ports: dict[str, int], patience: float = 0) -> None:
    """One sentence about the first port that cannot be had. Keys are the variables that move them."""
    deadline = time.monotonic() + patience
    taken: dict[int, str] = {}
    for variable, port in ports.items():
        if port > LAST:
            raise StackError(f"{variable} would be {port}, and there is no such port: set it to a free one.")
        if port in taken:
            raise StackError(f"{variable} and {taken[port]} are both {port}: give each its own port.")
        taken[port] = variable
        while trouble := _trouble_anywhere(port):
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            raise StackError(f"Port {port} {trouble}: set {variable} to another one, e.g. {variable}={_other(port)}.")


def _other(port: int) -> int:
    if port < FREE_FOR_ALL:
        return port + 8_000  # 8080 and 8443, as people know them
    return port + 100 if port + 100 <= LAST else port - 100


def _trouble_anywhere(port: int) -> str | None:
    return next((trouble for family, host in ADDRESSES if (trouble := _trouble(family, host, port))), None)


def _trouble(family: socket.AddressFamily, host: str, port: int) -> str | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: connections of the last run that wait to be forgotten are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return "is in use by another program"
        if exc.errno == errno.EACCES:
            return "needs more rights than this user has"
        # No IPv6 on this machine: then nobody can be in the way there.
        return None
    return None
