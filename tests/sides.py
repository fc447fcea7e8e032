"""All tests, shared by a few workers: most of them wait for other processes, and a machine has two cores at least.

Owns how many workers there are, and the exit code. Each worker has a test database and an authority of its own. Beside
them a part of the app's tests runs on the stand-in for the real servers; not where variables name servers for all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from tests.support import first_database, memory
from tests.support.servers import NAMES

# Twice two cores, for tests wait a lot. No more on a larger machine: the workers share one Postgres.
WORKERS = 4


def main(arguments: list[str]) -> int:
    named = any(os.environ.get(name) for name in NAMES)
    # Some tests stop or pause the authority: where all share one, they have to come one after another.
    pytest = ["pytest", "-p", "no:cacheprovider", "-n", "0" if named else str(WORKERS), *arguments]
    # What each process would do for itself at the same time is done once, on the other core: pytest writes down how it
    # has read the files.
    reading = _run(["pytest", "-p", "no:cacheprovider", "--collect-only", "-q"], subprocess.DEVNULL)
    with memory.tablespace() as tablespace, first_database.made() as first, tempfile.TemporaryFile() as on_standin:
        os.environ.update({memory.VARIABLE: tablespace, first_database.VARIABLE: first})
        reading.wait()
        runs = [_run(pytest, None)]
        if not named:
            runs.append(_run(["tests.on_standin"], on_standin))
        codes = [run.wait() for run in runs]
        on_standin.seek(0)
        sys.stdout.write(on_standin.read().decode(errors="replace"))
    return max(codes, key=abs)


def _run(module: list[str], output: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", *module]
    return subprocess.Popen(command, env=_environment(), stdout=output, stderr=output)  # type: ignore[call-overload, no-any-return]


def _environment() -> dict[str, str]:
    """Ours, but for what would make each of the many processes compile the whole project anew."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
