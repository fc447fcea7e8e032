"""Statements that are asked again and again are answered as by psycopg's cursor, and are prepared once."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
import uvloop
from psycopg._queries import _query2pg_nocache
from psycopg.pq import TransactionStatus
from psycopg.types.json import Json, Jsonb

from billing import asking
from billing.asking import BEFORE, AskingConnection, _numbered
from billing.authority import database
from billing.engine import statements
from tenants import resolve
from tests.support.databases import begun

TIMES = BEFORE + 3

# Each is asked with the values in turn: among them some of another type than before, and some that are refused.
ASKED = [
    ("SELECT %s::bigint", [[1], [2**15], [2**31], [2**62], [None], [-1], [2**64], ["7"], ["x"]]),
    ("SELECT %(a)s, %(b)s, %(a)s", [{"a": "é", "b": 1}, {"a": 1, "b": None}, {"a": None, "b": "x"}, {"b": 1}]),
    ("SELECT %(a)s::text, %(b)s::text, %(a)s::json", [{"a": "[1]", "b": ""}, {"a": "{", "b": ""}, ("[2]", "c")]),
    ("SELECT %s::text || '%%' || '%%s'", [["a"], ["\U0001f600\u2028"], ["a\x00b"], [], ["a", "b"], ["c"], {"a": "b"}]),
    (
        "SELECT %s::uuid, %s::uuid[]",
        [[UUID(int=7), [UUID(int=8)]], [UUID(int=1), []], [None, None], [str(UUID(int=2)), None]],
    ),
    ("SELECT %s::text[]", [[["a", None, "b,c", '"']], [[]], [None], [["x"]]]),
    ("SELECT %s::jsonb, %s::json", [[Jsonb({"a": [1]}), Json(None)], ['{"b": 1.5}', "2"], [None, None]]),
    ("SELECT %s::timestamptz, %s::date", [[datetime(2026, 11, 28, 1, 2, 3, 4, UTC), date(1999, 1, 2)], [None, None]]),
    ("SELECT make_interval(secs => %s), %s::interval", [[1, timedelta(1)], [2.5, timedelta(seconds=3)], [2**40, None]]),
    ("SELECT %s::numeric, %s::float8", [[Decimal("1.10"), 0.1], [1, 2], [Decimal("NaN"), float("inf")]]),
    ("SELECT %s::bytea, %s::boolean", [[b"\x00\xff", True], [b"", False], [None, None]]),
    ("SELECT 1 WHERE %s::int = 2", [[1], [2], [3]]),
    ("SELECT 10 / %s::int", [[1], [0], [5]]),
    ("SELECT n, n::text FROM generate_series(1, %s) AS n", [[0], [3], [1_000], [1]]),
    ("SELECT 'a' LIKE '%'", [None, None]),
    ("SELECT 'a' LIKE '%%'", [{}, {}]),
    ("SELECT '%%'", [None, {}, None]),
    ("SELECT", [None, None]),
    ("SELECT 1 FROM public.there_is_no_such_table WHERE %s::int = 1", [[1]]),
    ("SELEC %s", [[1]]),
    ("SELECT %s::int + %(a)s", [[1], {"a": 1}]),
    ("SELECT %s::text", [[object()], ["a"]]),
    ("UPDATE pg_temp.asked SET n = %s", [[1], [2]]),
    ("UPDATE pg_temp.asked SET n = %s RETURNING n", [[3], [4]]),
    ("INSERT INTO pg_temp.asked VALUES (%s)", [[None], [5]]),
    ("TABLE pg_temp.asked", [None]),
    ("SELECT set_config('lock_timeout', %s, false)", [["100ms"]]),
    ("DO $$ BEGIN RAISE NOTICE 'noted'; END $$", [None]),
    ("SELECT name FROM pg_prepared_statements WHERE false", [None]),
]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request):
    return request.param


async def connected(url):
    return await AskingConnection.connect(url, autocommit=True)


async def number(connection, n):
    async with asyncio.timeout(20):
        return (await connection.rows("SELECT %s::bigint", [n]))[0][0]


async def prepared(connection):
    cursor = await connection.execute("SELECT statement FROM pg_prepared_statements", prepare=False)
    return [row[0] for row in await cursor.fetchall()]


async def _answered(ask):
    try:
        rows = await ask
    except (psycopg.Error, TypeError) as error:
        # A mapping where a sequence is wanted is told in other words, and is the code's mistake in either.
        wrong = isinstance(error, psycopg.ProgrammingError | TypeError) and getattr(error, "sqlstate", None) is None
        return "wrong" if wrong else (type(error), str(error))
    return [[(type(value), value) for value in row] for row in rows]


async def _answers(url, ask_with):
    connection = await connected(url)
    noted = []
    connection.add_notice_handler(lambda notice: noted.append(notice.message_primary))
    await connection.execute("CREATE TEMPORARY TABLE asked (n integer NOT NULL)")
    answers = []
    for _ in range(TIMES):
        for query, values in ASKED:
            for params in values:
                answers.append((query, params, await _answered(ask_with(connection, query, params))))
                assert connection.pgconn.transaction_status == TransactionStatus.IDLE
    await connection.close()
    return str(answers), noted


def test_answers_and_refusals_are_those_of_psycopgs_cursor(run, database_url):
    async def by_cursor(connection, query, params):
        cursor = await connection.execute(query, params, prepare=False)
        return await cursor.fetchall() if cursor.pgresult.nfields else []

    async def by_rows(connection, query, params):
        return await connection.rows(query, params)

    ours, noted = run(_answers(database_url, by_rows))
    theirs, noted_by_theirs = run(_answers(database_url, by_cursor))
    assert ours == theirs
    assert noted == noted_by_theirs == ["noted"] * TIMES


def _texts():
    for module in (statements, database, resolve):
        for value in vars(module).values():
            for text in value.values() if isinstance(value, Mapping) else [value]:
                if isinstance(text, str) and "%" in text and " " in text:
                    yield text
    yield statements.dispatch_statement("1", "2", is_claimed=True, is_counted=True)


def test_places_are_numbered_as_psycopg_numbers_them():
    texts = [*_texts(), *(query for query, values in ASKED if values[0] and query != "SELECT %s::int + %(a)s")]
    assert len(texts) > 40
    for text in texts:
        numbered, places = _numbered(text)
        query, formats, order, _ = _query2pg_nocache(text.encode(), "utf-8")
        assert numbered == query.decode()
        assert list(places.values()) == formats
        assert list(places) == (order if order is not None else list(range(len(formats))))


def test_a_text_is_prepared_when_it_is_asked_again_and_once_for_each_kind_of_values(run, database_url):
    async def work():
        connection = await connected(database_url)
        text = "SELECT %s::bigint"
        for n in range(BEFORE):
            assert await connection.rows(text, [n]) == [(n,)]
            assert text.replace("%s", "$1") not in await prepared(connection)
        for n in (1, 2, 2**40, 3, 2**40, None, 4):
            assert await connection.rows(text, [n]) == [(n,)]
        assert (await prepared(connection)).count("SELECT $1::bigint") == 3
        await connection.close()

    run(work())


def test_what_was_not_asked_for_longest_is_forgotten_here_and_by_the_server(run, database_url, monkeypatch):
    monkeypatch.setattr(asking, "KEPT", 4)

    async def work():
        connection = await connected(database_url)
        texts = [f"SELECT {n}, %s::text" for n in range(20)]
        for _ in range(2):
            for n, text in enumerate(texts):
                for word in ("a", "b", "c", 1):
                    assert await connection.rows(text, [word]) == [(n, str(word))]
                # And the one that came last.
                assert len(await prepared(connection)) == connection._names <= 5
                assert len(connection._asked) <= 5
            # The one that is asked between the others stays.
            names = set()
            for text in texts[:10]:
                for _ in range(BEFORE + 1):
                    await connection.rows(text, ["a"])
                    await connection.rows("SELECT %s::text", ["stays"])
                names |= set(connection._asked["SELECT %s::text", False].names.values())
            assert len(names) == 1
        assert len(await prepared(connection)) == connection._names
        await connection.close()

    run(work())


@pytest.mark.parametrize("times", [0, BEFORE, BEFORE + 2])
def test_a_statement_that_is_cancelled_in_the_middle_leaves_no_rows_to_the_next(run, database_url, times):
    async def work():
        connection = await connected(database_url)
        slow = "SELECT repeat('x', 1000) FROM generate_series(1, %s) AS n, pg_sleep(n::float8 / 10000)"
        for _ in range(times):
            await connection.rows(slow, [1])
            await number(connection, 0)
        for n in range(4):
            reading = asyncio.create_task(connection.rows(slow, [30_000]))
            await begun(connection, database_url)
            await asyncio.sleep(0.1)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert await number(connection, n) == n
            assert len(await connection.rows(slow, [2])) == 2
        await connection.close()

    run(work())


def test_two_statements_by_turns_on_several_connections(run, database_url):
    async def work():
        async def by_turns(first):
            connection = await connected(database_url)
            for n in range(first, first + 60):
                assert await number(connection, n) == n
                assert await connection.rows("SELECT %(n)s::text, %(n)s::text", {"n": str(n)}) == [(str(n), str(n))]
            await connection.close()

        await asyncio.gather(*(by_turns(1_000 * n) for n in range(4)))

    run(work())


@pytest.mark.parametrize("ending", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_what_somebody_else_has_ended_is_prepared_again(run, database_url, monkeypatch, ending):
    monkeypatch.setattr(asking, "KEPT", 2)

    async def work():
        connection = await connected(database_url)
        for n in range(4):
            for _ in range(TIMES):
                assert await connection.rows(f"SELECT {n}, %s::text", ["a"]) == [(n, "a")]
            await connection.execute(ending, prepare=False)
            # Some are asked again, and others forgotten.
            assert await connection.rows(f"SELECT {n % 2}, %s::text", ["b"]) == [(n % 2, "b")]
        await connection.close()

    run(work())


def test_what_another_connection_prepared_is_never_run_in_its_place(run, database_url):
    """A pooler that gives each statement any session lets two of them change places."""

    async def work():
        one, other = [await connected(database_url) for _ in range(2)]
        for _ in range(TIMES):
            assert await one.rows("SELECT 'one', %s::text", ["a"]) == [("one", "a")]
            assert await other.rows("SELECT 'other', %s::text", ["a"]) == [("other", "a")]
        one.pgconn, other.pgconn = other.pgconn, one.pgconn
        assert await one.rows("SELECT 'one', %s::text", ["b"]) == [("one", "b")]
        assert await other.rows("SELECT 'other', %s::text", ["b"]) == [("other", "b")]
        for connection in (one, other):
            await connection.close()

    run(work())


def test_a_migration_that_changes_a_type_is_met_by_forgetting_the_plans(run, database_url):
    async def work():
        connection, migrating = [await connected(database_url) for _ in range(2)]
        read = "SELECT n FROM public.asked_widened WHERE %s::text IS NOT NULL"
        await migrating.execute("CREATE TABLE public.asked_widened AS SELECT 7::int AS n")
        try:
            for _ in range(TIMES):
                assert await connection.rows(read, ["a"]) == [(7,)]
            await migrating.execute("ALTER TABLE public.asked_widened ALTER COLUMN n TYPE text")
            for _ in range(TIMES):
                assert await connection.rows(read, ["a"]) == [("7",)]
            await migrating.execute("ALTER TABLE public.asked_widened RENAME COLUMN n TO m")
            with pytest.raises(psycopg.errors.UndefinedColumn):
                await connection.rows(read, ["a"])
            # What has its columns, but is another table.
            await migrating.execute("ALTER TABLE public.asked_widened RENAME TO asked_before")
            await migrating.execute("CREATE TABLE public.asked_widened AS SELECT '8'::text AS n")
            assert await connection.rows(read, ["a"]) == [("8",)]
        finally:
            await migrating.execute("DROP TABLE IF EXISTS public.asked_widened, public.asked_before")
            for one in (connection, migrating):
                await one.close()

    run(work())


@pytest.mark.parametrize("times", [0, BEFORE + 1])
def test_a_lost_or_closed_connection_is_told_as_the_database_being_away(run, database_url, times):
    async def work():
        connection = await connected(database_url)
        ending = "SELECT CASE WHEN %s THEN pg_terminate_backend(pg_backend_pid()) END FROM pg_sleep(0.01)"
        for _ in range(times):
            assert await connection.rows(ending, [False]) == [(None,)]
        with pytest.raises(psycopg.OperationalError):
            await connection.rows(ending, [True])
        assert connection.broken
        for _ in range(2):
            with pytest.raises(psycopg.OperationalError):
                await connection.rows(ending, [False])
            await connection.close()

    run(work())
