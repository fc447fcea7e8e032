"""Servers that somebody else started, as the app's tests see them: two addresses, an admin key, perhaps a control.

Owns the variables that name them (TEST_CYCLES_…) and what tests may do to them. Must not start any by itself, and no
test may ask whether it stands on these or on the embedded authority: it has the same names to call, or a mark.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from functools import cached_property

import httpx
import pytest
from django.core.exceptions import ImproperlyConfigured

from config.env import envurl
from tests.support.authority import START_SECONDS, UNIT, ready

URL, ADMIN_URL, ADMIN_KEY = NAMES = ("TEST_CYCLES_BASE_URL", "TEST_CYCLES_ADMIN_URL", "TEST_CYCLES_ADMIN_API_KEY")
CONTROL = "TEST_CYCLES_CONTROL"
CONTROL_SECONDS = 120


class Servers:
    """What `AuthorityProcess` is to tests, for servers of somebody else's."""

    def __init__(self, runtime_url: str, admin_url: str, admin_key: str, control: str = "") -> None:
        self.runtime_url = runtime_url
        self.admin_url = admin_url
        self.admin_key = admin_key
        self._control = shlex.split(control)

    def check(self) -> None:
        """End the run with a sentence where they do not answer, or not to this key."""
        for name, url in ((URL, self.runtime_url), (ADMIN_URL, self.admin_url)):
            if not ready(url):
                pytest.exit(f"{name} is {url}, where no server says that it is ready: start it first.", returncode=4)
        if self._admin("GET", "/v1/admin/tenants", limit="1").status_code != 200:
            pytest.exit(f"{ADMIN_KEY} is not the admin key of the server at {self.admin_url}.", returncode=4)

    @cached_property
    def has_caps(self) -> bool:
        """Whether a ledger can be given caps; the embedded authority can, by an address of its own."""
        answer = self._admin("PUT", "/v1/x-embedded/budgets/caps", {}, scope="tenant:of-nobody", unit=UNIT)
        return answer.status_code == 404 and answer.json().get("error") == "BUDGET_NOT_FOUND"

    def stop(self) -> None:
        self._ask("stop")
        self._wait(listening=False)

    crash = stop

    def start(self) -> None:
        self._ask("start")
        self._wait(listening=True)

    def pause(self) -> None:
        """They keep their connections and answer nothing."""
        self._ask("pause")

    def resume(self) -> None:
        self._ask("resume")
        self._wait(listening=True)

    def _ask(self, act: str) -> None:
        if not self._control:
            pytest.skip(
                f"This test has to {act} the servers: set {CONTROL} to a command that can (tests/REAL_SERVERS.md)."
            )
        subprocess.run([*self._control, act], check=True, timeout=CONTROL_SECONDS)

    def _wait(self, *, listening: bool) -> None:
        until = time.monotonic() + START_SECONDS
        while {ready(self.runtime_url), ready(self.admin_url)} != {listening}:
            if time.monotonic() > until:
                raise RuntimeError(f"{CONTROL}: the servers did not {'start' if listening else 'stop'} in time")
            time.sleep(0.05)

    def _admin(self, method: str, path: str, body: object = None, **params: str) -> httpx.Response:
        headers = {"X-Admin-API-Key": self.admin_key}
        return httpx.request(
            method, f"{self.admin_url}{path}", json=body, params=params, headers=headers, timeout=20, trust_env=False
        )


def servers_given() -> Servers | None:
    """The servers that the variables name; None where none is set. A half of them is refused, and so is a misspelt."""
    given = {name for name, value in os.environ.items() if name.startswith("TEST_CYCLES_") and value.strip()}
    if strangers := sorted(given - {*NAMES, CONTROL}):
        raise pytest.UsageError(
            f"{strangers[0]} is set and nothing reads it: tests know {', '.join(NAMES)} and {CONTROL}."
        )
    if not given:
        return None
    if missing := [name for name in NAMES if name not in given]:
        raise pytest.UsageError(
            f"{', '.join(sorted(given))} is set, {', '.join(missing)} is not: tests on servers of your own need all of "
            f"{', '.join(NAMES)}."
        )
    try:
        runtime_url, admin_url = envurl(URL), envurl(ADMIN_URL)
    except ImproperlyConfigured as exc:
        raise pytest.UsageError(str(exc)) from None
    return Servers(runtime_url, admin_url, os.environ[ADMIN_KEY].strip(), os.environ.get(CONTROL, "").strip())
