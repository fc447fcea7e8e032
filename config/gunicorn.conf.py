"""How the web process serves, on a laptop and in production.

Owns workers, threads and time-outs. Must not load the application before the fork: a pool that crosses a fork
hangs.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # gunicorn's own script does not

from config.env import envint, envport

bind = f"127.0.0.1:{envport('PORT', 8000)}"  # the supervisor and a container say --bind
worker_class = "gthread"
workers = envint("WEB_WORKERS", 2, minimum=1, maximum=64)
threads = envint("WEB_THREADS", 16, minimum=1, maximum=1000)
preload_app = False

# Who writes to a unix socket is trusted by gunicorn: it would take a client's X-Forwarded-Ssl and SCRIPT_NAME, which
# come through the front, for the front's own. Whether a request came by TLS is decided once, in settings.
secure_scheme_headers: dict[str, str] = {}
forwarder_headers = ""

# Each thread may need a connection, none needs two.
os.environ.setdefault("DB_POOL_MAX", str(threads))
# A workspace that is being migrated locks its tables for as long as that takes. Requests that name it would wait for
# them in every thread, so that all other workspaces' did, too. Set to nothing, it is off: some poolers take no options.
os.environ.setdefault("PGOPTIONS", "-c lock_timeout=1s")

# Longer than a proxy or client keeps an idle connection: else it writes to one that is closing.
keepalive = 75
# A gthread worker's heartbeat comes from its main loop: a long stream is not silence, a starved machine is.
timeout = 60
graceful_timeout = 10


def post_worker_init(worker: Any) -> None:
    """Near the end of their grace the streams that still run are cut, settled and told so.

    Killed with the process instead, they would leave their holds open and their readers without an end.
    """
    from django.utils.module_loading import import_string

    cut_all = import_string("billing.engine.loop.cut_all")
    stop = signal.getsignal(signal.SIGTERM)

    def leave(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(graceful_timeout - 3, cut_all)
        timer.daemon = True
        timer.start()
        if callable(stop):
            stop(number, frame)

    signal.signal(signal.SIGTERM, leave)


accesslog = None
errorlog = "-"
# One socket per user, in $HOME: two copies on one machine would take it from each other.
control_socket_disable = True
