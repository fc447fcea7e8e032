"""All tests, as runs side by side: most of them wait for other processes, and a machine has two cores at least.

Owns which folder is on which side, and the exit code. Each run has a test database of its own. Beside the two sides a
part of the app's tests runs on the stand-in for the real servers; not where variables name servers for all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.servers import NAMES

TESTS = Path(__file__).resolve().parent
PYTEST = ["-p", "no:cacheprovider"]
# The rest is on the other side. Move a folder when one side takes much longer.
ONE_SIDE = ("authority", "protocol", "stack", "isolation", "config", "e2e", "tenants")


def main(arguments: list[str]) -> int:
    one = [str(TESTS / name) for name in ONE_SIDE]
    other = [str(TESTS), *(f"--ignore={folder}" for folder in one)]
    with tempfile.TemporaryFile() as beside, tempfile.TemporaryFile() as on_standin:
        runs = [
            _run(["pytest", *PYTEST, *one, *arguments], "test_app_beside", beside),
            _run(["pytest", *PYTEST, *other, *arguments], "test_app", None),
        ]
        if not any(os.environ.get(name) for name in NAMES):
            runs.append(_run(["tests.on_standin"], "", on_standin))
        codes = [run.wait() for run in runs]
        for said in (beside, on_standin):
            said.seek(0)
            sys.stdout.write(said.read().decode(errors="replace"))
    return max(codes, key=abs)


def _run(module: list[str], database: str, output: object) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "TEST_DATABASE": database}
    command = [sys.executable, "-m", *module]
    return subprocess.Popen(command, env=environment, stdout=output, stderr=output)  # type: ignore[call-overload, no-any-return]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
