"""Ports for the servers that tests start.

Owns which port is given to whom. Below those from which a system takes its own for outgoing connections: one of these
may be taken by any client in the moment between asking for it and listening on it, and several workers have many.
"""

from __future__ import annotations

import os
import random
import socket

_FIRST, _LAST = 16_000, 31_000
# Each worker has ports of its own: what one has given to a server that takes seconds to come up is still free to all.
SLICES = 8
_given: set[int] = set()
_random = random.Random()  # by the system's own entropy, so that each run draws others


def free_port() -> int:
    """One on loopback that nobody listens on, and that neither this process nor another worker was given before."""
    while True:
        port = _random.randrange(_FIRST + _slice(), _LAST, SLICES)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


def _slice() -> int:
    """By the number of the worker, gw0 and so on. Whoever is none, such as the run on the stand-in, has the last."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    return int(number) % (SLICES - 1) if number.isdigit() else SLICES - 1


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
