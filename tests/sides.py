"""All tests, as two runs side by side: most of them wait for other processes, and a machine has two cores at least.

Owns which folder is on which side, and the exit code. Each side has a test database of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
# The rest is on the other side. Move a folder when one side takes much longer.
ONE_SIDE = ("authority", "protocol", "stack", "isolation", "config", "e2e")


def main(arguments: list[str]) -> int:
    one = [str(TESTS / name) for name in ONE_SIDE]
    other = [str(TESTS), *(f"--ignore={folder}" for folder in one)]
    with tempfile.TemporaryFile() as said:
        beside = _pytest("test_app_beside", [*one, *arguments], said)
        here = _pytest("test_app", [*other, *arguments], None)
        codes = [here.wait(), beside.wait()]
        said.seek(0)
        sys.stdout.write(said.read().decode(errors="replace"))
    return max(codes, key=abs)


def _pytest(database: str, arguments: list[str], output: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TEST_DATABASE": database}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.Popen(command, env=environment, stdout=output, stderr=output)  # type: ignore[call-overload, no-any-return]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
