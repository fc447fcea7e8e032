"""The command and its planes: they start together, end together, and never outlive their starter."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from tests.support.authority import ROOT, AuthorityProcess
from tests.support.jobs import until
from tests.support.ports import free_port
from tests.support.receiver import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def another(authority):
    process = AuthorityProcess(authority.database_url, authority.admin_key)
    process.start()
    yield process
    if process.process is not None and process.process.poll() is None:
        process.stop()


def gone(url: str) -> bool:
    def nobody_listens() -> bool:
        try:
            httpx.get(f"{url}/actuator/health/liveness", timeout=1)
        except httpx.ConnectError:
            return True
        except httpx.HTTPError:
            pass
        return False

    return eventually(nobody_listens)


def test_a_term_stops_both_planes(another):
    until(lambda: "authority: runtime plane" in another.output)  # both may answer before their starter says so
    assert another.stop() == 0
    assert gone(another.runtime_url)
    assert gone(another.admin_url)


def test_the_planes_die_with_a_killed_starter(another):
    another.kill()
    assert gone(another.runtime_url)
    assert gone(another.admin_url)


def test_an_authority_ends_with_whoever_has_it_watched(another):
    another.let_go()
    assert another.process.wait(60) == 0
    assert gone(another.runtime_url)
    assert gone(another.admin_url)


def test_a_plane_that_dies_takes_the_other_along(another):
    runtime = subprocess.run(
        [sys.executable, "-c", _CHILD_OF, str(another.process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(runtime.stdout), signal.SIGKILL)
    assert another.process.wait(30) == 1
    until(lambda: "plane ended" in another.output)
    assert gone(another.runtime_url)
    assert gone(another.admin_url)


# The first child of a process, by /proc where there is one and by `ps` elsewhere.
_CHILD_OF = """
import subprocess, sys
for line in subprocess.run(["ps", "-Ao", "pid,ppid"], capture_output=True, text=True).stdout.splitlines()[1:]:
    pid, parent = line.split()
    if parent == sys.argv[1]:
        print(pid)
        break
"""


@pytest.mark.parametrize("variable", ["AUTHORITY_RUNTIME_PORT", "AUTHORITY_ADMIN_PORT"])
def test_a_busy_port_is_one_sentence_with_its_variable(authority, variable):
    ports = {"AUTHORITY_RUNTIME_PORT": str(free_port()), "AUTHORITY_ADMIN_PORT": str(free_port())}
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        ports[variable] = str(busy.getsockname()[1])
        environment = {
            **os.environ, **ports, "DJANGO_SETTINGS_MODULE": "config.settings_authority",
            "DATABASE_URL": authority.database_url, "CYCLES_ADMIN_API_KEY": authority.admin_key,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "manage.py", "authority"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 1
    assert variable in done.stderr
    assert ports[variable] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cut_database_connection_fails_one_request_and_no_more(authority, acme, sql):
    acme.app.hold(1)
    sql(  # and wait until they are gone: one that ended later would fail a request of its own
        "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
        "WHERE application_name = 'authority' AND datname = current_database()"
    )
    statuses = [acme.app.reserve(1).status_code for _ in range(4)]
    assert statuses[1:] == [200, 200, 200]
    assert httpx.get(f"{authority.runtime_url}/actuator/health/readiness").status_code == 200
    assert httpx.get(f"{authority.admin_url}/actuator/health/readiness").status_code == 200
