"""The web process as production runs it: gunicorn with its workers, on a free port, against the test's own parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import httpx

from tests.support.authority import START_SECONDS, authority_variables
from tests.support.ports import free_port
from tests.support.roles import serving_url
from tests.support.said import said_so_far

ROOT = Path(__file__).resolve().parents[2]


class Served:
    """Something that answers on `port` of this machine."""

    port: int

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def address(self, slug: str | None = None) -> str:
        """The address as a browser types it; programs connect to 127.0.0.1 with a Host header instead."""
        return self.url if slug is None else f"http://{slug}.localhost:{self.port}"

    def client(self, workspace, key: str) -> httpx.Client:
        """A program of `workspace` on the bare host."""
        headers = {"Host": f"localhost:{self.port}", "X-Tenant-ID": workspace.slug, "Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=60, trust_env=False)


class WebProcess(Served):
    """`with WebProcess(database_url=…, authority=…) as web:` serves until the block ends."""

    def __init__(self, *, database_url: str, authority, workers: int = 2, threads: int = 32, **variables: str) -> None:
        self.port = free_port()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LLM_", "CYCLES_BASE"))},
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "DATABASE_URL": serving_url(database_url),
            "DB_POOL_MAX": str(threads),
            "WEB_WORKERS": str(workers),
            "WEB_THREADS": str(threads),
            "PORT": str(self.port),
            **authority_variables(authority),
            **variables,
        }

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.conf.py", "config.wsgi"]

    def __enter__(self) -> Self:
        # A file and no pipe: nobody reads while it serves, and a full pipe would stop it.
        self._log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            self._command(),
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,
        )
        self._wait()
        return self

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"{type(self).__name__} did not start: {self.log()[-2000:]}")
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise RuntimeError(f"{type(self).__name__} did not start in {START_SECONDS:.0f} s")

    def log(self) -> str:
        """What it has written so far."""
        return said_so_far(self._log)

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
