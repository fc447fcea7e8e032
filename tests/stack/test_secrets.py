"""The secrets of a STATE_DIR: private, random, made once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography.fernet import Fernet

from config.stack.secrets import MAKERS, ensure_secrets


def values(state: Path) -> dict[str, str]:
    return {name: (state / "secrets" / name).read_text() for name in MAKERS}


def test_secrets_are_private_and_the_sealing_key_is_a_fernet_key(state):
    ensure_secrets(state)
    assert (state / "secrets").stat().st_mode & 0o777 == 0o700
    assert all((state / "secrets" / name).stat().st_mode & 0o777 == 0o600 for name in MAKERS)
    Fernet(values(state)["KEY_SEALING_KEY"].strip())


def test_secrets_stay_what_they_are_and_only_a_missing_one_is_made(state):
    ensure_secrets(state)
    before = values(state)
    (state / "secrets" / "SECRET_KEY").unlink()
    ensure_secrets(state)
    after = values(state)
    assert after.pop("SECRET_KEY") != before.pop("SECRET_KEY")
    assert after == before


def test_an_empty_secret_counts_as_missing(state):
    ensure_secrets(state)
    (state / "secrets" / "SECRET_KEY").write_text("")
    ensure_secrets(state)
    assert len(values(state)["SECRET_KEY"]) > 40


def test_racers_agree_on_one_set(state):
    def make(_: int) -> dict[str, str]:
        ensure_secrets(state)
        return values(state)

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(make, range(8)))
    assert all(one == seen[0] for one in seen)
