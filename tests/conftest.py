"""The real parts that every test stands on: Postgres, the authority, a fake upstream, and the cast.

No test runs inside a transaction: the guard's own must be durable, threads and other processes must see the rows.
Rows stay until the test database goes; a test makes what it needs, and asserts on what is its own.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import DatabaseError, connection
from django.test.utils import setup_databases, teardown_databases
from whitenoise.middleware import WhiteNoiseMiddleware

from config.database import embedded_database
from config.env import state_dir
from tests.support import memory
from tests.support.servers import NAMES, Servers, servers_given
from tests.support.static import once

# Tests of the embedded authority itself and of the laptop's parts around it: never of servers that a variable names.
OF_THE_EMBEDDED = [Path(__file__).parent / name for name in ("authority", "protocol", "stack")]
# Each httpx client reads the certificates of the machine anew, 20 ms of a core, and tests make thousands.
ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]
# And so does each of Django's test clients with the static files, 4 ms. mypy has no word for replacing a method.
WhiteNoiseMiddleware.add_files_from_finders = once(WhiteNoiseMiddleware.add_files_from_finders)  # type: ignore[method-assign]
# A worker loads all that tests import: walking through it after every few hundred objects took an eighth of its time.
COLLECT = (20_000, 20, 50)
# A new connection is 4 ms of a core, and takes as long again to learn of the tables that a test asks for.
TESTS_A_CONNECTION = 25
LEFT_BEHIND = """
    SELECT name FROM pg_settings WHERE source = 'session' AND name NOT IN ('search_path', 'TimeZone')
    UNION ALL SELECT * FROM pg_listening_channels()"""
_tests = itertools.count(1)
_postgres = None
_servers: Servers | None = None


def pytest_configure(config: pytest.Config) -> None:
    """A database for whoever runs pytest by hand; `make test` has it running already. And whose authority it is."""
    global _postgres, _servers
    gc.set_threshold(*COLLECT)
    _servers = servers_given()
    if mistaken := settings.MISTAKEN:
        raise pytest.UsageError(f"{mistaken[0]} is set and tests do not use it: unset it, or set {', '.join(NAMES)}.")
    if embedded_database() and not hasattr(config, "workerinput"):
        from config.stack.postgres import SharedPostgres

        _postgres = SharedPostgres(state_dir())
        _postgres.acquire()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _postgres is not None:
        connection.close()
        _postgres.release()


def pytest_report_header() -> str:
    if _servers is None:
        return "authority: the embedded one"
    left_out = ", ".join(f"tests/{folder.name}" for folder in OF_THE_EMBEDDED)
    return f"authority: the servers at {_servers.runtime_url} and {_servers.admin_url}, without {left_out}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`pytest -n 3` shares the tests among three workers, and keeps those of a file together."""
    from tests.support.workers import ByFile

    return ByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The order for workers. On servers of somebody else's: the app's tests alone; where none is chosen, the variables
    are a mistake.
    """
    if hasattr(config, "workerinput"):
        from tests.support.workers import place

        items.sort(key=lambda item: place(item.nodeid))
    if _servers is None:
        return
    ours: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        (others if any(item.path.is_relative_to(folder) for folder in OF_THE_EMBEDDED) else ours).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = ours
    if not any("authority" in getattr(item, "fixturenames", ()) for item in items):
        raise pytest.UsageError(f"{NAMES[0]} is set, and no test of this run would ask those servers: unset it.")


def pytest_collection_finish() -> None:
    """What is loaded by now stays."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for text in (value for name, value in report.user_properties if name == "said"):
            terminalreporter.write_line(str(text))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if _servers is None:
        return
    if mark := item.get_closest_marker("embedded"):
        pytest.skip(mark.args[0])
    if item.get_closest_marker("caps") and not _servers.has_caps:
        pytest.skip("These servers have no address that gives a ledger caps.")


@pytest.fixture
def say(record_property):
    """`say("2 of 3 were quick")`: what a run has found out, at the end of its output. A worker's own goes nowhere."""
    return lambda text: record_property("said", text)


@pytest.fixture(scope="session")
def database(django_test_environment, django_db_blocker):
    """The test database, open to all tests of the session.

    Made here and not by pytest-django, which makes one only for tests that it wraps in a transaction.
    """
    with django_db_blocker.unblock():
        made = setup_databases(verbosity=0, interactive=False, aliases={"default"})
        _need_not_outlive_the_machine(connection.settings_dict["NAME"])
        yield connection.settings_dict["NAME"]
        from billing.engine import loop

        loop.stop()  # it has connections of its own
        _end_sessions()
        connection.close()
        teardown_databases(made, verbosity=0)


def _end_sessions() -> None:
    """Those of threads that a test has left behind, as Django's async ORM keeps one: they would keep the database."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            # Postgres' own workers, such as the one that vacuums, are not ours to end.
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def _need_not_outlive_the_machine(name: str) -> None:
    """No commit waits for the disk: tests make a great many of them. What kills Postgres has a server of its own."""
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        if tablespace := os.environ.get(memory.VARIABLE):
            cursor.execute(f'ALTER DATABASE "{name}" SET default_tablespace = {tablespace}')
    connection.close()  # it holds for connections made from here on


@pytest.fixture(scope="session")
def django_db_setup(database):
    """pytest-django's mark and `db` stand on the same database: it would make the same one again, and stop all tests.
    A paid call is refused in them, for they wrap a test in a transaction.
    """
    from django.test import TransactionTestCase

    # Nor do `transactional_db`, TransactionTestCase and LiveServerTestCase empty the tables: the cast and its budgets
    # would be gone for all tests that follow.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", lambda test: None)
        yield


@pytest.fixture(scope="session")
def database_url(database) -> str:
    """The test database's address, for processes of its own."""
    from urllib.parse import quote

    given = connection.settings_dict
    password = f":{quote(given['PASSWORD'], safe='')}" if given["PASSWORD"] else ""
    port = f":{given['PORT']}" if given["PORT"] else ""
    return f"postgresql://{given['USER']}{password}@{port}/{database}?host={quote(given['HOST'], safe='')}"


@pytest.fixture(scope="session")
def authority(database_url):
    """The authority, reached over HTTP alone: the embedded one in its own processes, or the servers that are named."""
    from tests.support.authority import AuthorityProcess

    if _servers is not None:
        _servers.check()
        yield _servers
        return
    process = AuthorityProcess(database_url, os.environ["CYCLES_ADMIN_API_KEY"])
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def upstream_server():
    from tests.support.upstream import FakeUpstream

    with FakeUpstream() as server:
        yield server


@pytest.fixture
def upstream(request, upstream_server, settings):
    """A model's server that does as it is told and counts its calls. Its model has taught nobody its habits yet."""
    from chat import breaker

    upstream_server.reset()
    breaker.forget()
    if "database" in request.fixturenames:
        from tests.support.plane import forget_habits

        forget_habits()
    settings.LLM_BASE_URL = upstream_server.base_url
    settings.LLM_MODEL = "test-model"
    # $10 in, $40 out per million tokens: 1,000 and 4,000 microcents a token.
    settings.LLM_PRICES = {"test-model": {"input": 1_000_000_000, "output": 4_000_000_000}}
    return upstream_server


@pytest.fixture(scope="session")
def app(authority, tmp_path_factory, django_db_blocker):
    """The app of this process, set to the real authority."""
    from django.conf import settings

    from billing.client import install_default_client

    settings.CYCLES_BASE_URL, settings.CYCLES_ADMIN_URL = authority.runtime_url, authority.admin_url
    settings.CYCLES_JOURNAL_DIR = str(tmp_path_factory.mktemp("journal"))
    install_default_client()
    return settings


@pytest.fixture(scope="module")
def sign_ups(app):
    """For tests that sign up by a door: whoever builds what they ask for, as the jobs process does.

    They wait for it, however busy the machine is.
    """
    from billing import signing_up
    from tests.support.jobs import SignUpWorker

    with SignUpWorker(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(signing_up, "READY_SECONDS", 30.0)
        yield


@pytest.fixture(scope="session")
def _cast(app):
    from tests.support.factories import WorkspaceFactory

    return {slug: WorkspaceFactory(slug=slug) for slug in ("acme", "globex")}


@pytest.fixture
def acme(_cast):
    return _cast["acme"]


@pytest.fixture
def globex(_cast):
    """The neighbour. Must never be seen."""
    return _cast["globex"]


@pytest.fixture
def alice(acme):
    return acme.member("alice@acme.example")


@pytest.fixture
def bob(globex):
    return globex.member("bob@globex.example")


@pytest.fixture
def workspace(app):
    """A workspace of this test's own, for those that count its money."""
    from tests.support.factories import WorkspaceFactory

    return WorkspaceFactory()


@pytest.fixture(autouse=True)
def _back_to_public(request):
    """No test leaves a tenant bound, nor anything in its connection."""
    yield
    if "database" in request.fixturenames:
        from tenants.context import enter

        enter(None)
        # A TestCase's tests share one transaction, which closing would end for the next of them.
        if not connection.in_atomic_block and (next(_tests) % TESTS_A_CONNECTION == 0 or not _is_as_new()):
            connection.close()


def _is_as_new() -> bool:
    """Whether the next test can have the connection: it lives, and keeps no setting, lock or ear of this one's."""
    if connection.connection is None or connection.errors_occurred or not connection.get_autocommit():
        return False
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock_all()")
            cursor.execute(LEFT_BEHIND)
            return cursor.fetchone() is None
    except DatabaseError:
        return False
