"""Starts the admin plane: `python -m billing.authority.admin --host … --port … --watch FD`."""

from __future__ import annotations

from typing import Any

from django.core.wsgi import get_wsgi_application
from gunicorn.app.base import BaseApplication

from billing.authority.conf import setting
from billing.authority.processes import plane_arguments, watch_parent

KEEP_ALIVE_SECONDS = 75  # longer than any client keeps an idle connection: the client closes first, never mid-request


class AdminPlane(BaseApplication):  # type: ignore[misc]
    """gunicorn with its settings here instead of a file or a command line. One worker: threads are enough."""

    def __init__(self, bind: str) -> None:
        self.options: dict[str, Any] = {
            "bind": bind,
            "worker_class": "gthread",
            "threads": setting("AUTHORITY_ADMIN_THREADS"),
            "keepalive": KEEP_ALIVE_SECONDS,
            "graceful_timeout": 3,
            "loglevel": "warning",
            "proc_name": "authority-admin",
            "control_socket_disable": True,
            # Whoever writes from this machine would say where the plane is mounted (SCRIPT_NAME), and by which scheme.
            "forwarder_headers": "",
            "secure_scheme_headers": {},
            "post_worker_init": start_webhooks,
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self.options.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        handler = get_wsgi_application()
        from billing.authority.admin.request import ReceivedRequest  # needs Django's settings to be set up

        handler.request_class = ReceivedRequest
        return handler


def start_webhooks(worker: Any) -> None:
    """In the worker, after the fork: threads do not live through one."""
    from billing.authority.webhooks import start  # needs Django's settings to be set up

    start()


def main() -> None:
    arguments = plane_arguments("admin")
    watch_parent(arguments.watch)
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    AdminPlane(f"{host}:{arguments.port}").run()


if __name__ == "__main__":
    main()
