"""Which processes run: who they are, who they belong to, when they started.

Owns reading the process table, from /proc or, where there is none, from `ps`. Must not signal anybody.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A living process. `started` tells it from a later one that was given the same pid."""

    pid: int
    parent: int
    group: int
    started: str


def table() -> list[Process]:
    """Every living process. Zombies are left out: they hold nothing, and some PID 1 never reaps them."""
    # Names only, and a thousand Path objects a call are not free.
    return list(_from_proc(os.listdir(PROC)) if _has_proc() else _from_ps())  # noqa: PTH208


def lives(process: Process) -> bool:
    """Whether that very process still runs. On Linux it reads one entry, for it is asked every second."""
    now = _from_proc([str(process.pid)]) if _has_proc() else table()
    return any((other.pid, other.started) == (process.pid, process.started) for other in now)


def find(pid: int) -> Process | None:
    return next((process for process in table() if process.pid == pid), None)


def in_group(group: int) -> list[Process]:
    return [process for process in table() if process.group == group]


def postgres_on(data: Path) -> list[Process]:
    """The server processes of one data directory, postmaster first.

    A pid file is not asked: after a crash its pid may be anybody's. Each Postgres process works in its data
    directory, also one that outlived its postmaster.
    """
    living = table()
    if _has_proc():
        ours = [process for process in living if _works_in(process.pid, data)]
    else:
        heads = _started_on(data)
        ours = [process for process in living if process.pid in heads or process.parent in heads]
    pids = {process.pid for process in ours}
    return sorted(ours, key=lambda process: process.parent in pids)


def environment(pid: int) -> dict[str, str]:
    """What a process was started with; empty where the system does not tell."""
    try:
        raw = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in raw.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def _has_proc() -> bool:
    return (PROC / "self" / "stat").exists()


def _from_proc(entries: Iterable[str]) -> Iterator[Process]:
    boot = _boot_id()
    for entry in entries:
        if not entry.isdigit():
            continue
        try:
            text = (PROC / entry / "stat").read_text(errors="replace")
        except OSError:
            continue  # ended since the listing
        # The name stands in brackets and may hold spaces and brackets itself: count from the last one.
        fields = text.rpartition(")")[2].split()
        if fields and fields[0] not in {"Z", "X"}:
            # Ticks since boot: without the boot's id two boots could agree by chance.
            yield Process(int(entry), int(fields[1]), int(fields[2]), f"{boot}:{fields[19]}")


def _boot_id() -> str:
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _ps(columns: str) -> list[str]:
    found = subprocess.run(
        ["ps", "-axww", "-o", columns],  # noqa: S607 - its place differs between systems
        env={"PATH": os.defpath + ":/usr/bin:/bin", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.splitlines()


def _from_ps() -> Iterator[Process]:
    for line in _ps("pid=,ppid=,pgid=,stat=,lstart="):
        pid, parent, group, state, started = line.split(None, 4)
        if not state.startswith("Z"):
            yield Process(int(pid), int(parent), int(group), started.strip())


def _started_on(data: Path) -> set[int]:
    """Postmasters by their command line; our launcher always writes `postgres -D <data> -k`."""
    lines = (line.strip().partition(" ") for line in _ps("pid=,command="))
    return {int(pid) for pid, _, command in lines if f"/postgres -D {data} -k" in command}


def _works_in(pid: int, data: Path) -> bool:
    try:
        folder = os.readlink(PROC / str(pid) / "cwd")  # noqa: PTH115 - may not exist any more, as text it compares
        name = (PROC / str(pid) / "comm").read_text()
    except OSError:
        return False  # ended, or another user's: then it is not our server
    return folder == str(data) and name.startswith("postgres")
