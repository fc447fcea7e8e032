"""Folders, ports and processes for the stack's tests. Each test has a STATE_DIR of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import httpx
import psycopg
import pytest

from config.env import BASE_DIR
from config.stack import processes
from config.stack.front import Listener
from config.stack.places import places_for
from config.stack.postgres import SharedPostgres
from tests.support.front import Front

GIVEN = (
    "DATABASE_URL",
    "DATABASE_OWNER_URL",
    "CYCLES_BASE_URL",
    "CYCLES_ADMIN_URL",
    "LLM_BASE_URL",
    "DB_POOL_MAX",
    "SITE_URL",
    "BASE_DOMAIN",
    "FRONT",
    "FRONT_TRUSTED_PROXIES",
    "PLANE_PORT",
    "PLANE_WORKERS",
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own: that lies below a 0700 folder, where root's server would move its data away."""
    path = Path(tempfile.mkdtemp(prefix="stack-", dir="/tmp")).resolve()
    path.chmod(0o755)
    yield path
    forget(path)


@pytest.fixture
def state(folder: Path) -> Path:
    return folder / "state"


@pytest.fixture(scope="session")
def made_once() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="stack-", dir="/tmp")).resolve()
    path.chmod(0o755)
    with SharedPostgres(path):
        pass
    yield path
    forget(path)


def forget(folder: Path) -> None:
    """The folder, and what root's servers of it have kept elsewhere because they could not reach this checkout."""
    for state in (folder, *folder.glob("*/")):
        kill_server(state)
        if (places := places_for(state)).moved:
            shutil.rmtree(places.home, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def warm(state: Path, made_once: Path) -> Path:
    """A STATE_DIR whose database exists: a copy, for making one takes a second of every test."""
    if places_for(made_once).moved:
        with SharedPostgres(state):
            return state
    state.mkdir()
    subprocess.run(["cp", "-a", str(made_once / "pg"), str(state / "pg")], check=True)  # noqa: S607
    return state


def environment(state: Path, **extra: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in GIVEN}
    return env | {"STATE_DIR": str(state), "PYTHONDONTWRITEBYTECODE": "1"} | extra


def start(*command: str, state: Path, **options: object) -> subprocess.Popen[str]:
    """A Python command in a process of its own, its output in one pipe."""
    options = {"env": environment(state), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    started: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, *command],
        cwd=BASE_DIR,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    return started


def run(*command: str, state: Path, **options: object) -> tuple[int, str]:
    process = start(*command, state=state, **options)
    output = process.communicate(timeout=180)[0]
    return process.returncode, output


def server(state: Path) -> list[processes.Process]:
    return processes.postgres_on(places_for(state).data)


def kill_server(state: Path) -> None:
    for process in server(state):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not server(state))


def ask(url: str, sql: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


# --- the front, and stand-ins behind it ---


class Upstream:
    """web or plane, by its socket."""

    def __init__(self, path) -> None:
        self.listener = Listener(path=path)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "tests.stack.upstream:app", "--log-level", "critical"]
        self._process = subprocess.Popen([*command, *self.listener.for_uvicorn()], cwd=BASE_DIR)
        wait_until(self.listener.answers)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def renewed(self) -> Self:
        """Up, and without a memory of what the last test asked."""
        if self._process.poll() is not None:
            self.start()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.listener.path))) as client:
            client.delete("http://upstream/seen")
        return self

    def seen(self):
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.listener.path))) as client:
            return client.get("http://upstream/seen").json()


@pytest.fixture(scope="module")
def upstreams():
    """Started once: most of a test's time would be theirs."""
    with tempfile.TemporaryDirectory(prefix="front-", dir="/tmp") as folder:
        pair = [Upstream(Path(folder) / name) for name in ("web.sock", "plane.sock")]
        yield pair
        for upstream in pair:
            upstream.stop()


@pytest.fixture
def web(upstreams):
    return upstreams[0].renewed()


@pytest.fixture
def plane(upstreams):
    return upstreams[1].renewed()


@pytest.fixture
def front(folder, web, plane):
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    variables = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
    with Front(folder, web=web.listener, plane=plane.listener, **variables) as front:
        yield front
