"""The secrets of one STATE_DIR: made once, random, and kept.

Owns `STATE_DIR/secrets`. Must never print a secret, and never replace one: what is sealed or signed with it
would be lost.
"""

from __future__ import annotations

import base64
import fcntl
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from config.stack import StackError
from config.stack.places import make_state

MAKERS: dict[str, Callable[[], str]] = {
    "SECRET_KEY": lambda: secrets.token_urlsafe(48),
    # A Fernet key.
    "KEY_SEALING_KEY": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "CYCLES_ADMIN_API_KEY": lambda: secrets.token_urlsafe(32),
}


def ensure_secrets(state_dir: Path) -> None:
    """Make what is missing. Safe to repeat, and from several processes at once."""
    folder = state_dir / "secrets"
    if all(_is_there(folder / name) for name in MAKERS):
        return
    make_state(state_dir)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            # Two cold starts: the second waits, and finds the first one's secrets.
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name, make in MAKERS.items():
                if not _is_there(folder / name):
                    _write(folder / name, make())
    except OSError as exc:
        raise StackError(f"The secrets in {folder} cannot be made ({exc.strerror}).") from None


def _is_there(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise StackError(f"{path} cannot be read ({exc.strerror}): does STATE_DIR belong to someone else?") from None


def _write(path: Path, secret: str) -> None:
    """Written aside and renamed: a reader, or a power cut, never meets half a secret."""
    handle, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)  # mode 0600
    with os.fdopen(handle, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    Path(name).rename(path)


if __name__ == "__main__":
    from config.env import state_dir as configured

    ensure_secrets(configured())
