"""Ports for the servers that tests start.

Owns which port is given to whom. Below those from which a system takes its own for outgoing connections: one of these
may be taken by any client in the moment between asking for it and listening on it, and several workers have many.
"""

from __future__ import annotations

import random
import socket

_FIRST, _LAST = 16_000, 31_000
_given: set[int] = set()
_random = random.Random()  # by the system's own entropy, so each worker draws others


def free_port() -> int:
    """One on loopback that nobody listens on, and that this process was not given before."""
    while True:
        port = _random.randint(_FIRST, _LAST)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
