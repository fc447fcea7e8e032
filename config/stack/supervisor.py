"""`make run`: every process the product needs, started in order, watched, started again, and ended in order.

Owns the order and what the person at the terminal reads. Must not know how a part works inside: it knows
commands, ports and answers over HTTP.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import FrameType

from django.core.exceptions import ImproperlyConfigured

from config.database import embedded_database
from config.env import envbool, envport, envstr, envurl, state_dir
from config.stack import StackError
from config.stack.banner import banner
from config.stack.checks import authority_is_embedded, check_database, only_one
from config.stack.children import Child, Part, end_orphans, record
from config.stack.connections import AUTHORITY, JOBS_POOL, check_connections, plane_workers
from config.stack.front import Listener, front_command, front_environment
from config.stack.places import make_run_folder, make_state, run_folder
from config.stack.ports import check_ports
from config.stack.postgres import SharedPostgres
from config.stack.secrets import ensure_secrets
from config.stack.server import last_lines

# What is started; each with the options that say where.
MANAGE = [sys.executable, "manage.py"]
MODEL = [sys.executable, "-m", "chat.local_model"]
WEB = [sys.executable, "-m", "gunicorn", "-c", "config/gunicorn.conf.py", "config.wsgi"]
PLANE = [
    *(sys.executable, "-m", "uvicorn", "config.asgi:application"),
    *("--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-access-log", "--no-server-header"),
    *("--timeout-graceful-shutdown", "10", "--timeout-keep-alive", "75"),
]
NO_COMMANDS = ("model", "web", "plane", "front")
HEALTH = "/actuator/health/readiness"
# Together, the first named first: the front takes nothing new, and passes on what plane and web still say.
STOPPING = (("front", "plane", "web"), ("jobs",), ("authority",), ("model",))


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
        self.front = envbool("FRONT", True)
        if self.front:
            self.web = Listener(path=run_folder(state) / "web.sock")
            self.plane = Listener(path=run_folder(state) / "plane.sock")
        else:
            self.web = Listener(port=self.port)
            self.plane = Listener(port=envport("PLANE_PORT", self.port + 1))
        self._records = state / "processes.json"
        self._parts: list[Part] = []
        self._commands: list[Child] = []  # under way; at most one
        self._began = time.monotonic()
        self._ready = False
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
        if self.embedded_database:
            check_connections()
        ensure_secrets(self.state)
        for folder in ("logs", "journal"):
            (self.state / folder).mkdir(mode=0o700, exist_ok=True)
        if self.front:
            make_run_folder(self.state)
            front_command()  # here, so that a missing Caddy is told before anything is started
        try:
            # Here rather than in the first child that reads them: one sentence instead of its traceback.
            self.embedded_model = import_module("config.settings").MODEL_IS_EMBEDDED
        except ImproperlyConfigured as nonsense:
            raise StackError(str(nonsense)) from None

    def _start(self, stack: ExitStack) -> None:
        if self.embedded_database:
            with self._step("Postgres"):
                postgres = SharedPostgres(self.state)
                stack.enter_context(postgres)
                self._postgres = postgres
        else:
            for name in ("DATABASE_URL", "DATABASE_OWNER_URL"):
                if url := envstr(name):
                    check_database(name, url)
        if self.embedded_model:
            where = ["--host", "127.0.0.1", "--port", str(self.model_port)]
            self._run("model", [*MODEL, *where, "--model-dir", str(self.state / "model")])
        if self.embedded_authority:
            ports = ["--runtime-port", str(self.runtime_port), "--admin-port", str(self.admin_port)]
            self._run("authority", [*MANAGE, "authority", *ports], grace=8, env={"DB_POOL_MAX": str(AUTHORITY)})
        self._command("migrations", "migrate_schemas")
        if self.embedded_authority:
            with self._step("budget authority"):
                self._wait_for_answer(self.runtime_port, HEALTH)
                self._wait_for_answer(self.admin_port, HEALTH)
        # A further step that must be done before the first request goes here.
        # These load while the demo workspace is made; web calls itself ready only when all is there.
        self._run("web", [*WEB, *self.web.for_gunicorn()], grace=12, listener=self.web)  # gunicorn gives streams 10 s
        workers = ["--workers", str(plane_workers())]
        self._run("plane", [*PLANE, *workers, *self.plane.for_uvicorn()], grace=13, listener=self.plane)
        self._run("jobs", [*MANAGE, "jobs"], grace=11, env={"DB_POOL_MAX": str(JOBS_POOL)})
        self._command("demo workspace", "ensure_demo")
        with self._step("plane"):
            self._wait_until_it_listens(self.plane)
        if self.front:
            told = front_environment(self.state, self.port, web=self.web, plane=self.plane)
            self._run("front", front_command(), grace=14, env=told)
        with self._step("web"):
            self._wait_for_answer(self.port, "/readyz")
        self._ready = True
        chat_port = self.port if self.front else self.plane.port or self.port
        print(banner(self.state, self.port, time.monotonic() - self._began, chat_port=chat_port), flush=True)

    def _watch(self) -> None:
        while True:
            self._pause(0.2)

    def _stop(self) -> None:
        """From the outside in: streams settle with the authority, and the authority writes to Postgres."""
        living = [*self._commands, *(part.child for part in self._parts if not part.resting)]
        if living:
            self.say("stopping")
        self._end(self._commands)
        for names in STOPPING:
            self._end(sorted((c for c in living if c.name in names), key=lambda child: names.index(child.name)))
        self._parts.clear()
        if self.front:
            self._forget_sockets()

    # Parts

    def _ports(self) -> dict[str, int]:
        ports = {"PORT": self.port} | ({} if self.front else {"PLANE_PORT": self.plane.port})
        if self.embedded_authority:
            ports |= {"AUTHORITY_RUNTIME_PORT": self.runtime_port, "AUTHORITY_ADMIN_PORT": self.admin_port}
        return ports | ({"MODEL_PORT": self.model_port} if self.embedded_model else {})

    def _run(
        self,
        name: str,
        command: list[str],
        *,
        grace: float = 5,
        env: Mapping[str, str] | None = None,
        listener: Listener | None = None,
    ) -> None:
        """A part: from now on it runs, whatever ends it, until we stop."""

        def start(again: bool) -> Child:
            if listener:
                listener.clear()
            return self._spawn(name, command, grace=grace, env=env, again=again)

        self._parts.append(Part(start))
        self._record()

    def _spawn(
        self,
        name: str,
        command: list[str],
        *,
        grace: float = 5,
        env: Mapping[str, str] | None = None,
        again: bool = False,
    ) -> Child:
        # A pool is for who serves: a command that inherits one hangs at its end. The owner's password is for commands.
        not_theirs = {"DB_POOL_MAX"} | ({"DATABASE_OWNER_URL"} if name in NO_COMMANDS else set())
        inherited = {key: value for key, value in os.environ.items() if key not in not_theirs}
        full = inherited | {"STATE_DIR": str(self.state), "PYTHONUNBUFFERED": "1"} | dict(env or {})
        log = self.state / "logs" / f"{name.replace(' ', '-')}.log"
        return Child(name, command, env=full, log=log, grace=grace, again=again)

    def _command(self, name: str, *arguments: str) -> None:
        """A management command, to its end."""
        with self._step(name):
            child = self._spawn(name, [*MANAGE, *arguments])
            self._commands.append(child)
            self._record()
            while child.poll() is None:
                self._pause(0.05)
            self._commands.remove(child)
            self._record()
            if code := child.poll():
                raise StackError(failure(child, f"failed with exit code {code}"))
            child.finish()

    def _record(self) -> None:
        record(self._records, [*(part.child for part in self._parts), *self._commands])

    def _wait_for_answer(self, port: int, path: str) -> None:
        deadline = time.monotonic() + 90
        while (answer := get(port, path))[0] != 200:
            if time.monotonic() > deadline:
                raise StackError(f"http://127.0.0.1:{port}{path} is not ready after 90 s; it says: {answer[1]}")
            self._pause(0.1)

    def _wait_until_it_listens(self, listener: Listener) -> None:
        deadline = time.monotonic() + 90
        while not listener.answers():
            if time.monotonic() > deadline:
                raise StackError(f"Nobody listens on {listener.for_caddy()} after 90 s.")
            self._pause(0.1)

    def _pause(self, seconds: float) -> None:
        """Every wait comes by here: it notices a Ctrl-C, and a part that ended by itself."""
        if self._asked:
            raise Stopped
        # First, for nothing else lives long without it, and its end is the reason to name.
        self._check_postgres(every=1)
        for part in self._parts:
            self._care_for(part)
        self._progress()
        time.sleep(seconds)

    def _care_for(self, part: Part) -> None:
        if part.rested:
            part.run(again=True)
            self._record()
        elif not part.resting and (code := part.child.poll()) is not None:
            self._check_postgres(every=0)
            if not self._ready:
                # What cannot even start would only be tried again and again.
                raise StackError(failure(part.child, f"ended by itself (exit code {code}); everything else is stopped"))
            said = last_lines(part.child.log, 1).strip() or "nothing"
            self.say(
                f"{part.child.name} ended by itself (exit code {code}) and is started again in {part.rest():.1f} s; "
                f"it said last: {said}"
            )

    def _check_postgres(self, every: float) -> None:
        if self._postgres and time.monotonic() > self._looked + every:
            self._looked = time.monotonic()
            if not self._postgres.is_up():
                log = self.state / "logs" / "postgres.log"
                raise StackError(f"Postgres ended by itself; everything else is stopped. Its log is {log}.")

    def _end(self, children: list[Child]) -> None:
        """Ask them all, in order, and wait for them together."""
        since, told = time.monotonic(), 0
        while living := [child for child in children if child.poll() is None and not child.late(since)]:
            if told < (2 if self._asked > 1 else 1):  # a second Ctrl-C hurries
                for child in living:
                    child.ask()
                    time.sleep(0.05)
                told += 1
            time.sleep(0.05)
        for child in children:
            child.finish()

    def _forget_sockets(self) -> None:
        self.web.clear()
        self.plane.clear()
        (run_folder(self.state) / "front.sock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            run_folder(self.state).rmdir()

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


def main() -> int:
    try:
        return Supervisor(state_dir()).run()
    except (StackError, ImproperlyConfigured) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
