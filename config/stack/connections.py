"""How many database connections the parts take at most, and whether the embedded Postgres has room for them.

Owns that sum. Must not be asked where DATABASE_URL names a server: its limit is not ours to know.
"""

from __future__ import annotations

from config.env import envint
from config.stack import StackError
from config.stack.server import SETTINGS

AUTHORITY = 4
ENGINE = 5  # of paid calls; each process that buys has one. Four for its calls, one for its heartbeat
PLANE_ENGINE = 9  # the plane's has eight
# Of a process that serves: it hears of changes to what it keeps, and of answers to stop.
LISTENERS = 1
# One for each task at a time: four, three sign-ups, and two mails; and one for the heartbeat, which must wait for none.
JOBS_POOL = 10
# Procrastinate's own three, one that listens for each of three workers, two that lock for each sign-up, one for a mail,
# and one for each of the other four tasks: some build, migrate or close a workspace under a lock.
JOBS_QUEUE = 18
SPARE = 20  # for commands and a test run beside us


def check_connections() -> None:
    web = _setting("WEB_WORKERS", 2) * (_setting("WEB_THREADS", 16) + ENGINE + LISTENERS)
    plane = plane_workers() * (PLANE_ENGINE + LISTENERS)
    others = AUTHORITY + JOBS_POOL + JOBS_QUEUE + ENGINE + SPARE
    room = int(SETTINGS["max_connections"]) - others
    if web + plane > room:
        raise StackError(
            f"WEB_WORKERS × (WEB_THREADS + {ENGINE + LISTENERS}) + PLANE_WORKERS × {PLANE_ENGINE + LISTENERS} is "
            f"{web + plane}: "
            f"the embedded Postgres has room for {room}."
        )


def plane_workers() -> int:
    return _setting("PLANE_WORKERS", 1)


def _setting(name: str, default: int) -> int:
    return envint(name, default, minimum=1) or default
