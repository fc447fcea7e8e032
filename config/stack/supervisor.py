"""`make run`: every process the product needs, started in order, watched, and ended in order.

Owns the order and what the person at the terminal reads. Must not know how a part works inside: it knows
commands, ports and answers over HTTP.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.parse import urlsplit

import psycopg
from django.core.exceptions import ImproperlyConfigured

from config.env import embedded_database, envint, envport, envstr, envurl, state_dir
from config.stack import StackError
from config.stack.children import Child, end_orphans, record
from config.stack.places import make_state
from config.stack.ports import check_ports
from config.stack.postgres import SharedPostgres
from config.stack.secrets import ensure_secrets
from config.stack.server import SETTINGS, check_version, last_lines

# What is started; each with the options that say where.
MANAGE = [sys.executable, "manage.py"]
MODEL = [sys.executable, "-m", "chat.local_model"]
WEB = [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.conf.py", "config.wsgi"]
AUTHORITY_POOL = 4
SPARE_CONNECTIONS = 20  # for commands and a test run beside us
HEALTH = "/actuator/health/readiness"


class Stopped(Exception):
    """Ctrl-C or TERM came while something was being waited for."""


class Supervisor:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.embedded_database = embedded_database()
        self.embedded_authority = authority_is_embedded()
        self.embedded_model = not envurl("LLM_BASE_URL")
        self.port = envport("PORT", 8000)
        self.runtime_port = envport("AUTHORITY_RUNTIME_PORT", 7878)
        self.admin_port = envport("AUTHORITY_ADMIN_PORT", 7979)
        self.model_port = envport("MODEL_PORT", 8081)
        self._records = state / "processes.json"
        self._children: list[Child] = []
        self._began = time.monotonic()
        self._postgres: SharedPostgres | None = None
        self._looked = 0.0  # when at it
        self._asked = 0  # Ctrl-C or TERM, counted
        self._waiting: tuple[str, float] | None = None  # for what, and when to say so next

    # The whole life

    def run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)
        make_state(self.state)
        with ExitStack() as stack:
            stack.enter_context(only_one(self.state))
            self._clear_the_way()
            stack.callback(self._records.unlink, missing_ok=True)
            try:
                self._start(stack)
                self._watch()
            except Stopped:
                return 0
            finally:
                self._stop()
        return 0

    def _clear_the_way(self) -> None:
        # A run that was killed leaves its record. Its last processes see that and go, which takes a moment.
        patience = 6 if self._records.exists() else 0
        for name in end_orphans(self._records, self.state):
            self.say(f"ended {name}, left behind by an earlier run")
        check_ports(self._ports(), patience)
        self._check_connections()
        ensure_secrets(self.state)
        for folder in ("logs", "journal"):
            (self.state / folder).mkdir(mode=0o700, exist_ok=True)
        try:
            # Here rather than in the first child that reads them: one sentence instead of its traceback.
            import_module("config.settings")
        except ImproperlyConfigured as nonsense:
            raise StackError(str(nonsense)) from None

    def _start(self, stack: ExitStack) -> None:
        if self.embedded_database:
            with self._step("Postgres"):
                postgres = SharedPostgres(self.state)
                stack.enter_context(postgres)
                self._postgres = postgres
        else:
            check_database(envstr("DATABASE_URL"))
        if self.embedded_model:
            where = ["--host", "127.0.0.1", "--port", str(self.model_port)]
            self._spawn("model", [*MODEL, *where, "--model-dir", str(self.state / "model")])
        if self.embedded_authority:
            ports = ["--runtime-port", str(self.runtime_port), "--admin-port", str(self.admin_port)]
            self._spawn("authority", [*MANAGE, "authority", *ports], grace=8, DB_POOL_MAX=str(AUTHORITY_POOL))
        self._command("migrations", "migrate_schemas")
        if self.embedded_authority:
            with self._step("budget authority"):
                self._wait_for_answer(self.runtime_port, HEALTH)
                self._wait_for_answer(self.admin_port, HEALTH)
        # A further step that must be done before the first request goes here.
        # Web loads while the demo workspace is made; it calls itself ready only when both are done.
        self._spawn("web", WEB, grace=12)  # gunicorn itself gives streams 10 s
        self._command("demo workspace", "ensure_demo")
        with self._step("web"):
            self._wait_for_answer(self.port, "/readyz")
        print(banner(self.state, self.port, time.monotonic() - self._began), flush=True)

    def _watch(self) -> None:
        while True:
            self._pause(0.2)

    def _stop(self) -> None:
        """Web first: its streams settle with the authority, and the authority writes to Postgres."""
        if self._children:
            self.say("stopping")
        order = {"web": 0, "authority": 2, "model": 3}
        for child in sorted(self._children, key=lambda child: order.get(child.name, 1)):
            self._end(child)
        self._children.clear()

    # Parts

    def _ports(self) -> dict[str, int]:
        ports = {"PORT": self.port}
        if self.embedded_authority:
            ports |= {"AUTHORITY_RUNTIME_PORT": self.runtime_port, "AUTHORITY_ADMIN_PORT": self.admin_port}
        return ports | ({"MODEL_PORT": self.model_port} if self.embedded_model else {})

    def _check_connections(self) -> None:
        workers = envint("WEB_WORKERS", 2, minimum=1) or 2
        threads = envint("WEB_THREADS", 32, minimum=1) or 32
        most = int(SETTINGS["max_connections"])
        if self.embedded_database and workers * threads + AUTHORITY_POOL + SPARE_CONNECTIONS > most:
            raise StackError(
                f"WEB_WORKERS × WEB_THREADS is {workers * threads}: the embedded Postgres has room for "
                f"{most - AUTHORITY_POOL - SPARE_CONNECTIONS}."
            )

    def _spawn(self, name: str, command: list[str], *, grace: float = 5, **extra: str) -> Child:
        # A pool is for who serves. A command that inherits one hangs at its end.
        env = {key: value for key, value in os.environ.items() if key != "DB_POOL_MAX"}
        env |= {"STATE_DIR": str(self.state), "PYTHONUNBUFFERED": "1", **extra}
        log = self.state / "logs" / f"{name.replace(' ', '-')}.log"
        child = Child(name, command, env=env, log=log, grace=grace)
        self._children.append(child)
        record(self._records, self._children)
        return child

    def _command(self, name: str, *arguments: str) -> None:
        """A management command, to its end."""
        with self._step(name):
            child = self._spawn(name, [*MANAGE, *arguments])
            while child.poll() is None:
                self._pause(0.05, but=child)
            self._children.remove(child)
            record(self._records, self._children)
            if code := child.poll():
                raise StackError(failure(child, f"failed with exit code {code}"))
            child.finish()

    def _wait_for_answer(self, port: int, path: str) -> None:
        deadline = time.monotonic() + 90
        while (answer := get(port, path))[0] != 200:
            if time.monotonic() > deadline:
                raise StackError(f"http://127.0.0.1:{port}{path} is not ready after 90 s; it says: {answer[1]}")
            self._pause(0.1)

    def _pause(self, seconds: float, but: Child | None = None) -> None:
        """Every wait comes by here: it notices a Ctrl-C, and a part that ended by itself."""
        if self._asked:
            raise Stopped
        for child in self._children:
            if child is not but and (code := child.poll()) is not None:
                raise StackError(failure(child, f"ended by itself (exit code {code}); everything else is stopped"))
        self._check_postgres()
        self._progress()
        time.sleep(seconds)

    def _check_postgres(self) -> None:
        if self._postgres and time.monotonic() > self._looked + 1:
            self._looked = time.monotonic()
            if not self._postgres.is_up():
                log = self.state / "logs" / "postgres.log"
                raise StackError(f"Postgres ended by itself; everything else is stopped. Its log is {log}.")

    def _end(self, child: Child) -> None:
        since, told = time.monotonic(), 0
        while child.poll() is None and not child.late(since):
            if told < (2 if self._asked > 1 else 1):  # a second Ctrl-C hurries
                child.ask()
                told += 1
            time.sleep(0.05)
        child.finish()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1

    # What the person reads

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self._waiting = (name, began + 5)
        try:
            yield
        finally:
            self._waiting = None
        self.say(f"{name} ready ({time.monotonic() - began:.1f} s)")

    def _progress(self) -> None:
        if self._waiting and time.monotonic() > self._waiting[1]:
            self.say(f"{self._waiting[0]} …")
            self._waiting = (self._waiting[0], time.monotonic() + 5)

    def say(self, text: str) -> None:
        # The terminal may be gone; the processes must be ended all the same.
        with contextlib.suppress(OSError):
            print(f"[{time.monotonic() - self._began:5.1f} s] {text}", flush=True)


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[IO[str]]:
    """The lock of a running stack; its file tells the pid to the one who comes second."""
    try:
        lock = (state / "supervisor.lock").open("a+")
    except OSError as exc:
        raise StackError(f"{state} cannot be written ({exc.strerror}): does it belong to someone else?") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"This stack is already running (pid {lock.read().strip() or 'unknown'}): "
                "stop it, or give this one its own STATE_DIR and ports."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock
        lock.truncate(0)


def authority_is_embedded() -> bool:
    given = {name for name in ("CYCLES_BASE_URL", "CYCLES_ADMIN_URL") if envurl(name)}
    if len(given) == 1:
        (missing,) = {"CYCLES_BASE_URL", "CYCLES_ADMIN_URL"} - given
        raise StackError(f"{missing} is not set: an external authority needs it beside {given.pop()}.")
    if given and not envstr("CYCLES_ADMIN_API_KEY"):
        raise StackError("CYCLES_ADMIN_API_KEY is not set: an external authority needs its admin key.")
    return not given


def check_database(url: str) -> None:
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            check_version(connection.info.server_version)
    except psycopg.Error as exc:
        raise StackError(f"The database of DATABASE_URL cannot be used: {exc}") from None


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body; 0 and why when nobody answers. Asked directly: a proxy knows no loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(2000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as exc:
        return 0, str(exc) or type(exc).__name__
    finally:
        connection.close()


def failure(child: Child, what: str) -> str:
    return f"{last_lines(child.log)}\n\n{child.name} {what}. The lines above are the end of {child.log}"


def banner(state: Path, port: int, seconds: float) -> str:
    demo = json.loads((state / "demo.json").read_text())
    site = envurl("SITE_URL", f"http://{envstr('BASE_DOMAIN', 'localhost')}:{port}")
    parts = urlsplit(site)
    asking = '{"prompt": "Say hello in five words.", "stream": true}'
    return f"""
  Ready after {seconds:.0f} s.

    {site:<34} sign up, or read on
    {f"{parts.scheme}://{demo['slug']}.{parts.netloc}":<34} the demo workspace
    log in as  {demo["email"]}  with  {demo["password"]}

  A streamed, paid answer:

    curl -N {site}/api/chat/ -H 'X-Tenant-ID: {demo["slug"]}' \
-H 'Authorization: Bearer {demo["api_key"]}' -H 'Content-Type: application/json' -d '{asking}'

  Ctrl-C stops everything; `make test` runs the tests. Logs are in {state / "logs"}.
"""


def main() -> int:
    try:
        return Supervisor(state_dir()).run()
    except (StackError, ImproperlyConfigured) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
