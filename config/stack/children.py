"""The processes of one STATE_DIR: started, recorded, ended; and those an earlier run left behind.

Owns `STATE_DIR/processes.json` and `STATE_DIR/logs`, and how long a part rests before it is started again. Must not
touch a process that is not recorded there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from config.env import BASE_DIR
from config.stack import processes


class Child:
    """One process with its watcher (child.py), in a session of its own, writing to its own log."""

    def __init__(
        self, name: str, command: list[str], *, env: Mapping[str, str], log: Path, grace: float, again: bool = False
    ) -> None:
        self.name = name
        self.log = log
        self._grace = grace
        # Started again, it writes below what it said last time: that is what somebody will want to read.
        with log.open("ab" if again else "wb") as output:
            self._watcher = subprocess.Popen(
                [sys.executable, "-m", "config.stack.child", str(grace), *command],
                cwd=BASE_DIR,
                env=env,
                stdin=subprocess.PIPE,  # never written to: its end tells the watcher that we are gone
                stdout=output,
                stderr=output,
                # So a Ctrl-C at the terminal reaches us alone, and we end things in order.
                start_new_session=True,
            )
        self.pid = self._watcher.pid
        found = processes.find(self.pid)
        self.started = found.started if found else ""

    def poll(self) -> int | None:
        return self._watcher.poll()

    def ask(self) -> None:
        """TERM; a second time means hurry."""
        if self.poll() is None:
            self._watcher.terminate()

    def late(self, since: float) -> bool:
        return time.monotonic() > since + self._grace + 3

    def finish(self) -> None:
        """No process of the group is left, also when the watcher itself was killed."""
        if self._watcher.stdin:
            self._watcher.stdin.close()
        if processes.in_group(self.pid):
            _end_group(self.pid, patience=0 if self.poll() is None else 2)
        self._watcher.wait()


class Part:
    """A process that is started again when it ends: soon the first time, later each time it does not last."""

    FIRST, LONGEST, LASTED = 0.5, 30.0, 60.0

    def __init__(self, start: Callable[[bool], Child]) -> None:
        self._start = start
        self._rest = self.FIRST
        self._due = 0.0  # when it is started again; 0 while it runs, as far as we know
        self.run()

    def run(self, *, again: bool = False) -> None:
        self.child = self._start(again)
        self._since, self._due = time.monotonic(), 0.0

    def rest(self) -> float:
        """It ended. How long it rests, and from now on does."""
        self.child.finish()
        if time.monotonic() - self._since >= self.LASTED:
            self._rest = self.FIRST
        rest, self._rest = self._rest, min(self._rest * 2, self.LONGEST)
        self._due = time.monotonic() + rest
        return rest

    @property
    def resting(self) -> bool:
        return self._due > 0

    @property
    def rested(self) -> bool:
        return 0 < self._due <= time.monotonic()


def record(path: Path, children: list[Child]) -> None:
    rows = [{"name": child.name, "pid": child.pid, "started": child.started} for child in children]
    new = path.with_suffix(".new")
    new.write_text(json.dumps(rows))
    new.replace(path)


def end_orphans(path: Path, state: Path) -> list[str]:
    """End what an earlier run of this STATE_DIR left, and say whom. Nobody else, whatever their pids say."""
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    orphans = [row for row in rows if _is_ours(row["pid"], row["started"], state)]
    for row in orphans:
        _end_group(row["pid"], patience=3)
    path.unlink(missing_ok=True)
    return [row["name"] for row in orphans]


def _is_ours(pid: int, started: str, state: Path) -> bool:
    """The recorded watcher lives, or it is gone and its group holds a process started for this STATE_DIR."""
    group = processes.in_group(pid)
    leader = next((process for process in group if process.pid == pid), None)
    if leader:
        return leader.started == started
    # As long as a group has members the system gives its number to nobody else.
    return any(processes.environment(process.pid).get("STATE_DIR") == str(state) for process in group)


def _end_group(group: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
    while processes.in_group(group):
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        time.sleep(0.05)
