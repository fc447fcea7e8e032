"""`make clean`: deletes what the stack keeps for one STATE_DIR, after asking.

Owns that list. Must not delete a file it does not know: STATE_DIR may be a folder with other things in it.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from config.env import state_dir
from config.stack import StackError
from config.stack.checks import only_one
from config.stack.places import MOVED, fingerprint, run_folder
from config.stack.postgres import unused

OURS = (
    "pg",
    "pg-moved",
    "secrets",
    "model",
    "journal",
    "logs",
    "front",
    "run",
    "demo.json",
    "processes.json",
    "postgres.lock",
    "postgres-start.lock",
    "supervisor.lock",
)
# In `files`, a name that others may use too: a folder for each workspace, by the name of its schema (tenants.services).
UPLOADS = re.compile("t_[0-9a-f]{20}")


def main() -> int:
    state = state_dir()
    away = MOVED / fingerprint(state)
    # A set, for the sockets' folder is in STATE_DIR or far from it.
    ours = {*(state / name for name in OURS), away, run_folder(state)}
    ours |= {path for path in (state / "files").glob("t_*") if UPLOADS.fullmatch(path.name)}
    found = sorted(path for path in ours if path.exists())
    if not found:
        print(f"There is nothing in {state}.")
        return 0
    with only_one(state), unused(state):
        print("This deletes every workspace, its conversations, files and ledgers, and the keys that seal them:")
        print("\n".join(f"  {path}" for path in found))
        if input_line("Type yes to delete: ") != "yes":
            print("Nothing was deleted.")
            return 1
        for path in found:
            _delete(path)
    for folder in (state / "files", state, MOVED):
        # One that leads to another disk stays: it is whoever's made it.
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
    print("Deleted. The next `make run` starts anew.")
    return 0


def input_line(question: str) -> str:
    try:
        return input(question).strip().lower()
    except EOFError:
        print()
        return ""


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StackError as error:
        sys.exit(str(error))
