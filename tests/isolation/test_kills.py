"""kill -9 of the plane at every point of a paid call: what was used is charged by its class, and nothing is left over.

Each test ends a real process at a point that its surroundings let it reach: a proxy before the authority, a lock on a
table, a model that waits. `FakeUpstream` says what was truly used.
"""

from __future__ import annotations

import socket
import threading
import uuid
from contextlib import contextmanager
from types import SimpleNamespace

import psycopg
import pytest

from billing.engine.rules import USUAL_INPUT_RATIO
from billing.models import Habit
from tests.support.crash import INPUT, LIKELY, OUTPUT, Reader, kill, model_variables, only_line, swept
from tests.support.jobs import rows, until
from tests.support.lossy import LossyProxy
from tests.support.money import authority_at_hand
from tests.support.plane import PlaneProcess
from tests.support.upstream import PROMPT_TOKENS

pytestmark = pytest.mark.slow


@pytest.fixture
def model():
    """A model of this test's own: nobody has learned what it usually needs."""
    return f"model-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def proxy(authority):
    with LossyProxy(authority.runtime_url) as proxy:
        yield proxy


@pytest.fixture
def start_plane(database_url, authority, proxy, upstream, model):
    """A plane that reaches the authority by way of `proxy`. Its model waits long between two words."""
    upstream.tokens, upstream.delay_between = ["word "] * 20, 0.1
    between = SimpleNamespace(runtime_url=proxy.url, admin_url=authority.admin_url)

    def start(**variables):
        # What waits for a lock of ours waits until it is killed.
        patient = {"DJANGO_SETTINGS_MODULE": "tests.support.patient_settings"}
        variables = {**model_variables(upstream, model), **patient, **variables}
        return PlaneProcess(database_url=database_url, authority=between, **variables)

    return start


@contextmanager
def locked(database_url, table):
    """Whoever writes to `table` waits inside."""
    with psycopg.connect(database_url) as connection:
        connection.execute(f"LOCK TABLE {table} IN SHARE MODE")
        yield
        connection.rollback()


def waiting_for_a_lock():
    """Backends that a lock keeps from going on, of this database: other workers' tests have others."""
    those = "FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return [pid for (pid,) in rows(f"SELECT pid {those}")]


def end_backends():
    """Postgres goes on with a statement whose client is gone; as if it had not arrived, end it."""
    for pid in waiting_for_a_lock():
        rows("SELECT pg_terminate_backend(%s)", pid)
    until(lambda: not waiting_for_a_lock())


def a_minute_later(workspace):
    """The lease of whatever is held has run out: the authority's own sweep frees it."""
    if authority_at_hand():  # elsewhere the minute goes by
        rows(
            "UPDATE authority.reservation SET expires_at_ms = 1, deadline_ms = 1 WHERE status = 'ACTIVE'"
            " AND tenant_id = (SELECT id FROM authority.tenant WHERE tenant_id = %s)",
            workspace.account.subject_tenant,
        )
    until(lambda: workspace.ledger()["reserved"] == 0, seconds=80)


def test_killed_before_the_reserves_answer_the_authority_frees_it(workspace, start_plane, proxy, upstream):
    key = workspace.key()
    with start_plane() as plane:
        proxy.after["/v1/reservations"] = lambda: kill(plane.process)
        Reader(plane, workspace, key).join(30)
    assert workspace.ledger()["reserved"] > 0
    assert swept(workspace) is None
    a_minute_later(workspace)
    assert (workspace.ledger()["spent"], workspace.lines(), workspace.holds(), upstream.calls) == (0, [], 0, [])


def test_killed_before_the_row_is_written_the_authority_frees_it(workspace, start_plane, upstream, database_url):
    key = workspace.key()
    with start_plane() as plane:
        with locked(database_url, "public.billing_hold"):
            reader = Reader(plane, workspace, key)
            until(waiting_for_a_lock)
            kill(plane.process)
            end_backends()
        reader.join(30)
    assert swept(workspace) is None
    a_minute_later(workspace)
    assert (workspace.ledger()["spent"], workspace.lines(), workspace.holds(), upstream.calls) == (0, [], 0, [])


def test_killed_while_the_row_is_written_the_estimated_input_is_charged(workspace, start_plane, upstream, database_url):
    key = workspace.key()
    with start_plane() as plane:
        with locked(database_url, "public.billing_hold"):
            reader = Reader(plane, workspace, key)
            until(waiting_for_a_lock)
            kill(plane.process)
        reader.join(30)
    until(workspace.holds)
    assert swept(workspace)["used"] == LIKELY
    assert (only_line(workspace).outcome, only_line(workspace).cost) == ("swept", LIKELY)
    assert upstream.calls == []


def test_killed_before_the_model_has_the_request_the_estimated_input_is_charged(workspace, start_plane):
    key = workspace.key()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        with start_plane(LLM_BASE_URL=address) as plane:
            reader = Reader(plane, workspace, key)
            deaf.settimeout(10)
            connection, _ = deaf.accept()
            kill(plane.process)
            connection.close()
            reader.join(30)
    assert swept(workspace)["used"] == LIKELY
    assert (only_line(workspace).outcome, only_line(workspace).cost) == ("swept", LIKELY)


@pytest.mark.parametrize("words", [0, 5], ids=["before the first byte", "in the first slice"])
def test_killed_under_a_stream_the_rows_word_is_charged(workspace, start_plane, upstream, words):
    key = workspace.key()
    upstream.delay_first, upstream.last_word_after = (0 if words else 60), threading.Event()
    with start_plane() as plane:
        reader = Reader(plane, workspace, key)
        assert upstream.wait_until(lambda up: up.spent and up.spent[0][1] >= words, timeout=20)
        kill(plane.process)
        reader.join(30)
    assert swept(workspace)["used"] == LIKELY
    line = only_line(workspace)
    assert (line.outcome, line.cost, line.tokens_output) == ("swept", LIKELY, 0)
    assert upstream.wait_until(lambda up: up.aborted == 1)


@pytest.mark.parametrize("point", ["before", "after"])
def test_killed_while_it_grows_what_the_row_says_is_charged(workspace, start_plane, proxy, upstream, model, point):
    key = workspace.key()
    trusted(model)
    upstream.tokens, upstream.delay_between = ["word "] * 400, 0.005
    with start_plane() as plane:
        proxy.after["/v1/reservations"] = lambda: getattr(proxy, point).update(
            {"/v1/reservations": lambda: kill(plane.process)}
        )
        Reader(plane, workspace, key, max_tokens=400).join(30)
    row = swept(workspace)
    counted = row["tokens_output"]
    assert counted > 20
    assert row["slices"][0]["reservation_id"] is None
    assert row["used"] == counted * OUTPUT + LIKELY
    line = only_line(workspace)
    assert (line.outcome, line.cost, line.tokens_output) == ("swept", row["used"], counted)
    (used,) = upstream.spent
    assert counted <= used[1]


@pytest.mark.parametrize("point", ["before", "after"])
def test_killed_while_what_its_report_counts_is_held_the_report_is_charged(
    workspace, start_plane, proxy, upstream, model, point
):
    """It was charged for its first slice: the model had said all, and billed six times as much."""
    key = workspace.key()
    trusted(model)
    upstream.tokens = ["word "]
    upstream.usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 400, "total_tokens": PROMPT_TOKENS + 400}
    with start_plane() as plane:
        proxy.after["/v1/reservations"] = lambda: getattr(proxy, point).update(
            {"/v1/reservations": lambda: kill(plane.process)}
        )
        Reader(plane, workspace, key, max_tokens=400).join(30)
    assert swept(workspace)["slices"]
    line = only_line(workspace)
    assert (line.outcome, line.tokens_output, line.cost) == ("swept", 400, PROMPT_TOKENS * INPUT + 400 * OUTPUT)


def trusted(model):
    """As if it had given its twenty exact reports: from now on it is given slices."""
    report = [PROMPT_TOKENS, round(PROMPT_TOKENS / USUAL_INPUT_RATIO), 40, 40 * len("word "), 100]
    Habit.objects.create(model=model, app="chat", samples=[report] * 20)


def test_killed_with_the_commit_not_yet_sent_the_rows_word_is_charged(workspace, start_plane, proxy, upstream):
    key = workspace.key()
    upstream.delay_between = 0.005
    with start_plane() as plane:
        proxy.refuse["/commit"], proxy.before["/commit"] = 1, lambda: kill(plane.process)
        Reader(plane, workspace, key).join(30)
    assert swept(workspace)["used"] == LIKELY
    assert (only_line(workspace).outcome, only_line(workspace).cost) == ("swept", LIKELY)


def test_killed_between_the_commits_of_two_slices_the_first_commit_is_believed(
    workspace, start_plane, proxy, upstream, model
):
    key = workspace.key()
    trusted(model)
    upstream.tokens, upstream.delay_between = ["word "] * 200, 0.005

    def kill_at_the_next():
        proxy.refuse["/commit"], proxy.before["/commit"] = 1, lambda: kill(plane.process)

    with start_plane() as plane:
        proxy.after["/commit"] = kill_at_the_next
        Reader(plane, workspace, key, max_tokens=400).join(30)
    assert swept(workspace)["slices"]
    assert_exact(only_line(workspace), upstream)


def test_killed_with_the_commits_answer_on_its_way_the_commit_is_believed(workspace, start_plane, proxy, upstream):
    key = workspace.key()
    upstream.delay_between = 0.005
    with start_plane() as plane:
        proxy.after["/commit"] = lambda: kill(plane.process)
        Reader(plane, workspace, key).join(30)
    assert swept(workspace)["used"] == LIKELY
    assert_exact(only_line(workspace), upstream)


@pytest.mark.parametrize("arrives", [False, True], ids=["lost", "arrives"])
def test_killed_between_commit_and_line_the_commit_is_believed(workspace, start_plane, upstream, database_url, arrives):
    key = workspace.key()
    upstream.delay_between = 0.005
    with start_plane() as plane:
        with locked(database_url, f'"{workspace.tenant.schema_name}".usage_usageline'):
            reader = Reader(plane, workspace, key)
            until(waiting_for_a_lock)
            kill(plane.process)
            if not arrives:
                end_backends()
        reader.join(30)
    until(lambda: not waiting_for_a_lock())
    swept(workspace)
    assert_exact(only_line(workspace), upstream)


def assert_exact(line, upstream):
    (used,) = upstream.spent
    assert (line.tokens_input, line.tokens_output) == used
    assert (line.outcome, line.cost) == ("exact", used[0] * INPUT + used[1] * OUTPUT)
