"""Runs one command and ends it when asked, or when the supervisor is gone.

    python -m config.stack.child GRACE CMD…

Owns the command's process group: it leads it, and leaves nobody in it behind. Standard input is a pipe from
the supervisor; its end of file says that the supervisor died, by kill -9 too, which no handler would tell.
Must stay free of imports that take time, for it stands before every process.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

from config.stack import processes


class _Asked:
    """How often we were told to end. The handler only counts; the loop below acts."""

    times = 0

    def count(self, number: int, frame: FrameType | None) -> None:
        self.times += number != signal.SIGCHLD


def main(arguments: list[str]) -> int:
    grace, command = float(arguments[0]), arguments[1:]
    asked = _Asked()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    # Handlers, not SIG_IGN: what is ignored stays ignored in the command, and gunicorn would not hear TERM.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, asked.count)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as exc:
        print(f"{command[0]}: {exc.strerror}", file=sys.stderr)
        return 127
    code = _watch(child, asked, woken, grace)
    _end_the_rest()
    return code if code >= 0 else 128 - code


def _watch(child: subprocess.Popen[bytes], asked: _Asked, woken: int, grace: float) -> int:
    told, deadline = 0, float("inf")
    sources = [woken, sys.stdin.fileno()]
    while (code := child.poll()) is None:
        if asked.times > told:
            # Once: finish what you are doing. Twice: hurry.
            deadline = min(deadline, time.monotonic() + (grace if asked.times == 1 else 0.5))
            if told == 0:
                child.terminate()
            told = asked.times
        if time.monotonic() >= deadline:
            child.kill()
            return child.wait()
        timeout = None if told == 0 else max(0.0, deadline - time.monotonic())
        for source in select.select(sources, [], [], timeout)[0]:
            if not os.read(source, 1024):
                sources.remove(source)
                asked.times += 1
    return code


def _end_the_rest() -> None:
    """Workers of a command that was killed, or forgot them, must not keep its port."""
    me, deadline = os.getpid(), time.monotonic() + 2
    while rest := [process for process in processes.in_group(os.getpgrp()) if process.pid != me]:
        for process in rest:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
