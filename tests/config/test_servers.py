"""The variables that put the app's tests on servers of somebody else's: all of them, rightly written, or a refusal."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.authority import ROOT
from tests.support.servers import ADMIN_KEY, ADMIN_URL, CONTROL, NAMES, URL, Servers, servers_given

WHOLE = {URL: "http://10.0.0.1:7878", ADMIN_URL: "http://10.0.0.1:7979", ADMIN_KEY: "a-key"}


@pytest.fixture
def given(monkeypatch):
    """Sets these and no others."""
    for name in [name for name in os.environ if name.startswith("TEST_CYCLES_")]:
        monkeypatch.delenv(name)

    def give(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return give


def test_without_variables_there_are_no_such_servers(given):
    given(**dict.fromkeys(NAMES, ""))
    assert servers_given() is None


def test_three_variables_name_them(given):
    given(**WHOLE)
    servers = servers_given()
    assert (servers.runtime_url, servers.admin_url, servers.admin_key) == tuple(WHOLE.values())


@pytest.mark.parametrize("alone", [*NAMES, CONTROL])
def test_one_alone_is_refused_and_the_missing_are_named(given, alone):
    given(**{alone: "http://a:1"})
    missing = ", ".join(name for name in NAMES if name != alone)
    with pytest.raises(pytest.UsageError, match=f"^{alone} is set, {missing} is not"):
        servers_given()


@pytest.mark.parametrize("odd", ["TEST_CYCLES_URL", "TEST_CYCLES_API_KEY"])
def test_a_misspelt_one_is_refused_by_its_name(given, odd):
    given(**WHOLE, **{odd: "x"})
    with pytest.raises(pytest.UsageError, match=f"{odd} is set and nothing reads it"):
        servers_given()


def test_an_address_that_is_none_is_refused(given):
    given(**WHOLE | {ADMIN_URL: "10.0.0.1"})
    with pytest.raises(pytest.UsageError, match=ADMIN_URL):
        servers_given()


def test_what_has_to_stop_them_is_skipped_with_a_sentence_where_no_command_can():
    with pytest.raises(pytest.skip.Exception, match=f"to stop the servers: set {CONTROL}"):
        Servers("http://127.0.0.1:9", "http://127.0.0.1:9", "a-key").stop()


@pytest.mark.parametrize(
    ("variables", "tests", "sentence"),
    [
        (WHOLE, "tests/authority/test_scopes.py", f"{URL} is set, and no test of this run would ask those servers"),
        ({"CYCLES_BASE_URL": "http://a:1"}, "tests/config/test_env.py", "CYCLES_BASE_URL is set and tests do not use"),
    ],
)
def test_a_run_that_would_ignore_them_is_refused(variables, tests, sentence):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", tests]
    shell = {name: value for name, value in os.environ.items() if not name.startswith("TEST_CYCLES_")}
    ran = subprocess.run(command, cwd=ROOT, env={**shell, **variables}, capture_output=True, text=True)
    assert ran.returncode == 4, ran.stdout
    assert sentence in ran.stderr
