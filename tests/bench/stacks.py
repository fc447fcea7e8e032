"""One checkout's whole product for benchmarks: its own supervisor starts it, on a database and authority of its own.

Owns starting and ending it, the workspaces in it, and what is read from outside: CPU, memory, the books. Asks only what
any version of the product has: `make run`'s supervisor, the public API, the log-in form, the tables of money.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import psycopg
from psycopg import sql

from tests.bench import model
from tests.support.authority import SEALING_KEY, UNIT
from tests.support.ports import free_port

PASSWORD = "a-long-enough-pass-phrase"
ALLOCATED = 10**15
START_SECONDS = 90
AUTHORITY_POOL = "4"  # as the supervisor gives it
# What a shell says about another stack has no place here.
FOREIGN = ("LLM_", "CYCLES_", "AUTHORITY_", "DATABASE_", "DJANGO_", "DB_POOL", "PORT", "SITE_URL", "BASE_DOMAIN", "PG")
SIGN_UP_RATES = ("SIGN_UP_ADDRESS_RATE", "SIGN_UP_SITE_RATE", "SIGN_UP_FORM_RATE")


@dataclass
class Workspace:
    slug: str
    subject: str
    key: str
    cookie: str = ""
    token: str = ""


@dataclass(frozen=True)
class Books:
    """Money and rows, as the database has them."""

    spent: int
    reserved: int
    holds: int
    lines: int
    cost: int
    messages: int
    inexact: int


@dataclass
class Cpu:
    """CPU-seconds since each process began, by part."""

    parts: dict[str, float] = field(default_factory=dict)

    def since(self, before: Cpu) -> dict[str, float]:
        return {name: used - before.parts.get(name, 0.0) for name, used in self.parts.items()}


class Process:
    """A command that ends with us, however we end: its watcher reads a pipe of ours."""

    def __init__(self, command: list[str], *, cwd: Path, env: dict[str, str], log: Path, grace: int) -> None:
        self.log = log
        self._grace = grace
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "config.stack.child", str(grace), *command],
                cwd=cwd,
                env=env,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_until(self, ready: Any) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self.popen.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it did not start:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        self.popen.terminate()
        try:
            self.popen.wait(self._grace + 5)
        finally:
            assert self.popen.stdin is not None
            self.popen.stdin.close()


class Stack:
    """`with Stack("base", checkout, url, folder, model_port) as stack:` serves until the block ends."""

    def __init__(
        self,
        name: str,
        checkout: Path,
        database_url: str,
        folder: Path,
        model_port: int,
        *,
        plane: bool = False,
        **more: str,
    ) -> None:
        self.name, self.checkout, self.database_url = name, checkout, database_url
        self.port = free_port()
        self.runtime_port, self.admin_port = free_port(), free_port()
        self.state = folder / name
        self.state.mkdir()
        self.workspaces: list[Workspace] = []
        self._admin_key = secrets.token_hex(16)
        self._authority: Process | None = None
        self._supervisor: Process | None = None
        self._plane_by_hand = plane  # a plane that no supervisor starts, asked without a front
        self._plane: Process | None = None
        self._plane_port = free_port()
        self._env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)},
            "DATABASE_URL": database_url,
            "STATE_DIR": str(self.state),
            "PORT": str(self.port),
            "KEY_SEALING_KEY": SEALING_KEY,
            "CYCLES_ADMIN_API_KEY": self._admin_key,
            "LLM_BASE_URL": f"http://127.0.0.1:{model_port}/v1",
            "LLM_MODEL": model.NAME,
            "LLM_PRICES": model.PRICES,
            # All of them sign up from one address.
            **dict.fromkeys(SIGN_UP_RATES, "1000000/0.001"),
            "TRIAL_POOL_USD": "1000000",
            **more,
        }
        self.connection = psycopg.connect(database_url, autocommit=True)

    # Its life

    def __enter__(self) -> Self:
        try:
            self._start_authority()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        if self._authority is not None:
            self._authority.stop()
        self.connection.close()

    def _start_authority(self) -> None:
        command = [sys.executable, "manage.py", "authority"]
        command += ["--runtime-port", str(self.runtime_port), "--admin-port", str(self.admin_port)]
        env = self._env | {"DJANGO_SETTINGS_MODULE": "config.settings_authority", "DB_POOL_MAX": AUTHORITY_POOL}
        log = self.state / "authority.log"
        self._authority = Process(command, cwd=self.checkout, env=env, log=log, grace=8)
        ready = "/actuator/health/readiness"
        self._authority.wait_until(lambda: _answers(self.runtime_port, ready) and _answers(self.admin_port, ready))

    def start(self, *, runtime_port: int | None = None, admin_port: int | None = None) -> None:
        """Everything but the authority, which may be reached through other ports."""
        env = self.environment(runtime_port=runtime_port, admin_port=admin_port)
        log = self.state / "supervisor.log"
        log.write_bytes(b"")
        command = [sys.executable, "-m", "config.stack.supervisor"]
        self._supervisor = Process(command, cwd=self.checkout, env=env, log=log, grace=25)
        self._supervisor.wait_until(lambda: b"Ready after" in log.read_bytes())
        if self._plane_by_hand:
            self._start_plane(env)

    def environment(self, *, runtime_port: int | None = None, admin_port: int | None = None) -> dict[str, str]:
        """Of its processes, and of a command beside them."""
        return self._env | {
            "CYCLES_BASE_URL": f"http://127.0.0.1:{runtime_port or self.runtime_port}",
            "CYCLES_ADMIN_URL": f"http://127.0.0.1:{admin_port or self.admin_port}",
        }

    def _start_plane(self, env: dict[str, str]) -> None:
        command = [sys.executable, "-m", "uvicorn", "config.asgi:application", "--no-access-log"]
        command += ["--port", str(self._plane_port), "--timeout-keep-alive", "75", "--log-level", "warning"]
        self._plane = Process(command, cwd=self.checkout, env=env, log=self.state / "plane.log", grace=12)
        self._plane.wait_until(lambda: _listens(self._plane_port))

    @property
    def chat_port(self) -> int:
        return self._plane_port if self._plane else self.port

    def stop(self) -> None:
        if self._plane is not None:
            self._plane.stop()
            self._plane = None
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None

    # Who calls

    def sign_up(self, count: int) -> None:
        """Workspaces with a key, a signed-in owner, and money that lasts."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False) as client:
            for _ in range(count):
                self.workspaces.append(self._sign_up(client))

    def _sign_up(self, client: httpx.Client) -> Workspace:
        slug = f"bench-{secrets.token_hex(5)}"
        email = f"owner@{slug}.example"
        bare = {"Host": f"localhost:{self.port}"}
        asked = {"name": slug, "slug": slug, "email": email, "password": PASSWORD}
        made = client.post("/api/signup/", json=asked, headers=bare)
        assert made.status_code == 201, made.text
        key = made.json()["api_key"]
        program = bare | {"X-Tenant-ID": slug, "Authorization": f"Bearer {key}"}
        money = client.get("/api/budget/", headers=program).json()
        workspace = Workspace(slug=slug, subject=money["subject_tenant"], key=key)
        self._fund(workspace)
        self._log_in(workspace, email)
        return workspace

    def _fund(self, workspace: Workspace) -> None:
        query = {"tenant_id": workspace.subject, "scope": f"tenant:{workspace.subject}", "unit": UNIT}
        body = {
            "operation": "CREDIT",
            "amount": {"unit": UNIT, "amount": ALLOCATED},
            "idempotency_key": secrets.token_hex(8),
        }
        answer = httpx.post(
            f"http://127.0.0.1:{self.admin_port}/v1/admin/budgets/fund",
            params=query,
            json=body,
            headers={"X-Admin-API-Key": self._admin_key},
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text

    def _log_in(self, workspace: Workspace, email: str) -> None:
        host = {"Host": f"{workspace.slug}.localhost:{self.port}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=host, trust_env=False) as browser:
            page = browser.get("/login/")
            found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
            assert found, page.text
            form = {"email": email, "password": PASSWORD, "csrfmiddlewaretoken": found.group(1)}
            cookies = _cookies(page)
            answer = browser.post("/login/", data=form, headers={"Cookie": _cookie_header(cookies)})
            assert answer.status_code == 302, answer.text
            cookies |= _cookies(answer)
        workspace.cookie, workspace.token = _cookie_header(cookies), cookies["csrftoken"]

    def keys_alone(self) -> list[dict[str, str]]:
        """Of programs that name their workspace by nothing but their key."""
        return [
            {"Host": f"localhost:{self.port}", "Authorization": f"Bearer {workspace.key}"}
            for workspace in self.workspaces
        ]

    def programs(self) -> list[dict[str, str]]:
        """Headers of a program of each workspace, on the bare host."""
        return [
            {"Host": f"localhost:{self.port}", "X-Tenant-ID": one.slug, "Authorization": f"Bearer {one.key}"}
            for one in self.workspaces
        ]

    def browsers(self) -> list[dict[str, str]]:
        """Headers of the owner's browser in each workspace."""
        return [
            {"Host": f"{one.slug}.localhost:{self.port}", "Cookie": one.cookie, "X-CSRFToken": one.token}
            for one in self.workspaces
            if one.cookie
        ]

    # What is read from outside

    def _pids(self) -> dict[str, int]:
        rows = json.loads((self.state / "processes.json").read_text())
        assert self._authority is not None
        pids = {row["name"]: row["pid"] for row in rows} | {"authority": self._authority.popen.pid}
        return pids | ({"plane": self._plane.popen.pid} if self._plane else {})

    def _families(self) -> Iterator[tuple[str, list[psutil.Process]]]:
        """Each part's processes, without the watcher that stands before them on a laptop alone."""
        for name, pid in self._pids().items():
            try:
                yield name, psutil.Process(pid).children(recursive=True)
            except psutil.NoSuchProcess:
                yield name, []  # it died; the calls that it took along say so

    def cpu(self) -> Cpu:
        parts = {}
        for name, family in self._families():
            parts[name] = sum(_cpu_of(process) for process in family)
        parts["postgres"] = self._postgres_cpu()
        return Cpu(parts)

    def _postgres_cpu(self) -> float:
        """Of the whole server but our own connection; 0 where it runs elsewhere. The postmaster has what ended."""
        try:
            ours = psutil.Process(self.connection.info.backend_pid)
            postmaster = ours.parent()
        except psutil.NoSuchProcess:
            return 0.0
        if postmaster is None:
            return 0.0
        ended = float(sum(postmaster.cpu_times()[2:4]))
        family = [postmaster, *postmaster.children()]
        return ended + sum(_cpu_of(process) for process in family if process != ours)

    def memory(self) -> dict[str, float]:
        """Resident MB by part."""
        return {name: sum(_rss_of(process) for process in family) / 1e6 for name, family in self._families()}

    def books(self) -> Books:
        ledgers = (
            "SELECT coalesce(sum(spent), 0)::bigint, coalesce(sum(reserved), 0)::bigint"
            " FROM authority.ledger WHERE scope NOT LIKE '%/%'"
        )
        spent, reserved = self._row(ledgers)
        (holds,) = self._row("SELECT count(*) FROM public.billing_hold")
        lines = cost = messages = inexact = 0
        schemas = self.connection.execute("SELECT schema_name FROM public.tenants_tenant").fetchall()
        for (schema,) in schemas:
            for_lines, for_messages = (
                sql.Identifier(schema, "usage_usageline"),
                sql.Identifier(schema, "chat_message"),
            )
            row = self._row(
                sql.SQL(
                    "SELECT count(*), coalesce(sum(cost), 0)::bigint, count(*) FILTER (WHERE outcome <> 'exact'),"
                    " (SELECT count(*) FROM {}) FROM {}"
                ).format(for_messages, for_lines)
            )
            lines, cost, inexact, messages = lines + row[0], cost + row[1], inexact + row[2], messages + row[3]
        return Books(spent, reserved, holds, lines, cost, messages, inexact)

    def _row(self, query: Any) -> tuple[Any, ...]:
        row = self.connection.execute(query).fetchone()
        assert row is not None
        return row


def _cpu_of(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.NoSuchProcess:
        return 0.0


def _rss_of(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0


def _cookies(response: httpx.Response) -> dict[str, str]:
    """By hand: a cookie jar knows no host that differs from the address."""
    return dict(line.partition(";")[0].partition("=")[::2] for line in response.headers.get_list("set-cookie"))


def _cookie_header(cookies: dict[str, str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in cookies.items())


def _answers(port: int, path: str) -> bool:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        line.request("GET", path)
        return line.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        line.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def checkout_of(root: Path, commit: str, folder: Path) -> Path:
    """The files of a commit, in a new folder; the repository is only read."""
    target = folder / "checkout"
    target.mkdir()
    git = shutil.which("git")
    if git is None:
        raise SystemExit("There is no git here to take the base from: --no-base measures this checkout alone.")
    archive = subprocess.run([git, "-C", str(root), "archive", commit], capture_output=True, check=False)
    if archive.returncode:
        raise SystemExit(f"{commit} is not to be had here: --no-base measures this checkout alone.")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(target, filter="data")
    return target
