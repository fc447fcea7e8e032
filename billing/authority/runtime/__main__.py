"""Starts the runtime plane in this process: `python -m billing.authority.runtime --host … --port … --watch FD`."""

from __future__ import annotations

import gc

import django
import uvicorn
from django.db import connection

from billing.authority.conf import setting
from billing.authority.database import BY_INDEX
from billing.authority.processes import plane_arguments, watch_parent
from billing.authority.runtime.app import Runtime
from billing.authority.runtime.pool import Pool

KEEP_ALIVE_SECONDS = 75  # longer than any client keeps an idle connection: the client closes first, never mid-request


def main() -> None:
    arguments = plane_arguments("runtime")
    watch_parent(arguments.watch)
    django.setup()
    parameters = connection.get_connection_params()
    for name in ("cursor_factory", "context", "prepare_threshold"):
        parameters.pop(name, None)
    # A call that waits longer than its client does is better refused than queued.
    parameters["options"] += f" -c statement_timeout=10s {BY_INDEX}"
    pool = Pool(parameters, setting("AUTHORITY_CONNECTIONS"))
    app = Runtime(pool, setting("AUTHORITY_ADMIN_KEY"), gather=setting("AUTHORITY_GATHER"))
    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=3,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody's address matters here, and looking for it costs each request
        ws="none",
        backlog=2048,
    )
    # What is loaded by now stays for good: the collector need not walk through it after every few hundred calls.
    gc.collect()
    gc.freeze()
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
