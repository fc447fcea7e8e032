"""The connection that its loop watches for as long as it is open: what psycopg's gives, with less asked of the loop."""

import asyncio
import select
import socket
import struct
import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
import uvloop
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from billing.engine import loop as engine_loop
from billing.watched import WatchedConnection, _Watch
from tests.support.databases import begun

ROWS = [
    ("%s::text", "a"),
    ("%s::text", None),
    ("%s::text", "ä\u2028\U0001f600"),
    ("%s::bigint", 2**62),
    ("%s::bigint", -1),
    ("%s::int", None),
    ("%s::numeric", Decimal("1.10")),
    ("%s::bool", True),
    ("%s::uuid", UUID(int=7)),
    ("%s::bytea", b"\x00\xff"),
    ("%s::text[]", ["a", None, "b,c"]),
    ("%s::uuid[]", [UUID(int=1)]),
    ("%s::timestamptz", datetime(2026, 11, 28, tzinfo=UTC)),
]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine on a loop of either kind, and sees that it leaves none of its descriptors behind."""

    def run_whole(work):
        loop = request.param()
        try:
            # What the loop itself keeps is open by then.
            loop.run_until_complete(asyncio.sleep(0))
            engine_loop.stop()  # of earlier tests, which opens and closes its own
            before = _open()
            result = loop.run_until_complete(asyncio.wait_for(work, 60))
            assert _open() <= before
            return result
        finally:
            loop.close()

    return run_whole


def _open() -> set[str]:
    """What this process has open, but for the folder that is being read."""
    here = Path("/proc/self/fd")
    return {f"{one.name} {one.readlink()}" for one in here.iterdir() if one.exists()}


@pytest.fixture
def calls(monkeypatch):
    """How many times a loop has said that there is something to read, and how many watches were begun."""
    counted = {"wake": 0, "begun": 0}
    wake, begin = _Watch._wake, _Watch.__init__

    def count_wake(watch):
        counted["wake"] += 1
        wake(watch)

    def count_begin(watch, *given):
        counted["begun"] += 1
        begin(watch, *given)

    monkeypatch.setattr(_Watch, "_wake", count_wake)
    monkeypatch.setattr(_Watch, "__init__", count_begin)
    return counted


async def connected(url, kind=WatchedConnection):
    connection = await kind.connect(url, autocommit=True)
    connection.prepare_threshold = 2
    return connection


async def ask(connection, query, params=None):
    async with asyncio.timeout(20):
        return await (await connection.execute(query, params)).fetchall()


async def number(connection, n):
    return (await ask(connection, "SELECT %s::bigint", [n]))[0][0]


async def ended_by_the_server(connection, url):
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as other:
        await other.execute("SELECT pg_terminate_backend(%s, 20000)", [connection.info.backend_pid])


def test_values_are_those_of_psycopg_however_often_they_are_asked_for(run, database_url):
    async def answers(kind):
        connection = await connected(database_url, kind)
        found = []
        for _ in range(5):
            for cast, value in ROWS:
                found += await ask(connection, f"SELECT {cast}", [value])
            found += await ask(connection, "SELECT %s, 'x'::varchar WHERE false", [Jsonb({"a": 1})])
            found += await ask(
                connection, "SELECT %(a)s::jsonb, %(b)s::text, %(a)s::json", {"a": '{"n": [1]}', "b": "b"}
            )
            with pytest.raises(psycopg.DataError):
                await ask(connection, "SELECT %s::text", ["a\x00b"])
            with pytest.raises(psycopg.errors.UndefinedTable):
                await ask(connection, "SELECT 1 FROM public.there_is_no_such_table")
        await connection.close()
        return found

    assert run(answers(WatchedConnection)) == run(answers(psycopg.AsyncConnection))


def test_one_watch_serves_all_statements_of_a_connection(run, database_url, calls):
    async def work():
        connections = [await connected(database_url) for _ in range(3)]

        async def by_turns(connection, first):
            for n in range(first, first + 50):
                assert await number(connection, n) == n
                # As in a process that does something else between: the loop looks at the sockets meanwhile.
                await asyncio.sleep(0.001 * (n % 2))

        await asyncio.gather(*(by_turns(connection, 1_000 * n) for n, connection in enumerate(connections)))
        assert calls["begun"] == 3
        for connection in connections:
            await connection.close()

    run(work())


def test_a_session_that_the_server_ends_while_it_is_idle_keeps_the_loop_from_nothing(run, database_url, calls):
    async def work():
        connection = await connected(database_url)
        assert await number(connection, 1) == 1
        begun = calls["wake"]
        await ended_by_the_server(connection, database_url)
        await asyncio.sleep(0.2)
        assert calls["wake"] - begun <= 3
        assert connection._watch.has_ended
        with pytest.raises(psycopg.OperationalError):
            await number(connection, 2)
        await connection.close()

    run(work())


def test_what_comes_while_nobody_waits_is_met_by_the_next_statement(run, database_url, calls):
    """Such as a message that the server sends on its own account."""

    async def work():
        connection, other = [await connected(database_url) for _ in range(2)]
        heard = []
        connection.add_notify_handler(heard.append)
        await ask_nothing(connection, "LISTEN watched")
        begun = calls["wake"]
        for n in range(3):
            await ask_nothing(other, f"NOTIFY watched, '{n}'")
            await asyncio.sleep(0.05)
        assert calls["wake"] - begun <= 12
        assert await number(connection, 5) == 5
        assert [one.payload for one in heard] == ["0", "1", "2"]
        for one in (connection, other):
            await one.close()

    async def ask_nothing(connection, query):
        await connection.execute(query)

    run(work())


@pytest.mark.parametrize("ends", ["close", "finish", "server", "forgotten"])
def test_the_next_connection_under_the_same_number_is_answered(run, database_url, ends):
    """A loop that watches a number of an ended session, which the next one is given, would wake nobody."""

    async def work():
        same = 0
        for _ in range(5):
            connection = await connected(database_url)
            assert await number(connection, 1) == 1
            was = connection.pgconn.socket
            if ends == "close":
                await connection.close()
            elif ends == "finish":
                connection.pgconn.finish()
            elif ends == "server":
                await ended_by_the_server(connection, database_url)
                with pytest.raises(psycopg.OperationalError):  # libpq has closed its number by then
                    while True:
                        connection.pgconn.consume_input()
            else:
                connection._closed = True  # so that psycopg says nothing of it
                connection = None
            following = await connected(database_url)
            # But where something of earlier tests is collected just then, and its number is the lower one.
            same += following.pgconn.socket == was
            for n in range(3):
                assert await number(following, n) == n
                if connection is not None:
                    await connection.close()
            await following.close()
        assert same
        await asyncio.sleep(0.1)  # the server has heard of it

    run(work())


@pytest.mark.parametrize("seconds", [0, 0.2])
def test_a_statement_that_is_cancelled_leaves_its_connection_to_the_next(run, database_url, seconds):
    """Not at once: psycopg gives a connection up whose cancellation came before the server had begun."""

    async def work():
        connection = await connected(database_url)
        for n in range(5):
            slow = asyncio.create_task(ask(connection, "SELECT %s::text FROM pg_sleep(30)", ["the slow one's"]))
            await begun(connection, database_url)
            await asyncio.sleep(seconds)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            assert connection.pgconn.transaction_status == TransactionStatus.IDLE
            assert await number(connection, n) == n
        await connection.close()

    run(work())


def test_a_statement_that_is_cut_in_the_middle_of_its_answer_leaves_no_rows_to_the_next(run, database_url):
    async def work():
        connection = await connected(database_url)
        query = "SELECT repeat('x', 1000), pg_sleep(0.00001) FROM generate_series(1, 200000)"
        reading = asyncio.create_task(ask(connection, query))
        await begun(connection, database_url)
        await asyncio.sleep(0.3)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await number(connection, 4) == 4
        await connection.close()

    run(work())


def test_a_session_that_ends_in_the_middle_of_a_statement_is_told_as_psycopg_tells_it(run, database_url):
    async def how_it_ends(kind):
        connection = await connected(database_url, kind)
        assert await number(connection, 1) == 1
        with pytest.raises(psycopg.OperationalError) as told:
            await ask(connection, "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(1)")
        with pytest.raises(psycopg.OperationalError) as again:
            await number(connection, 1)
        ended = connection.broken
        await connection.close()
        return ended, type(told.value), type(again.value), str(again.value)

    assert run(how_it_ends(WatchedConnection)) == run(how_it_ends(psycopg.AsyncConnection))


class Between:
    """A line to Postgres for one session, which can be reset: as by what stands between, or by a machine that died."""

    def __init__(self, url):
        given = psycopg.conninfo.conninfo_to_dict(url)
        host, port = given.get("host", "localhost"), given.get("port", "5432")
        is_unix = host.startswith("/")
        self._there = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
        self._there.connect(f"{host}/.s.PGSQL.{port}" if is_unix else (host, int(port)))
        self._door = socket.create_server(("127.0.0.1", 0))
        self._bell, self._rope = socket.socketpair()
        self.last_words = None  # in answer to the next statement, and then it is reset
        here = {"host": "127.0.0.1", "port": self._door.getsockname()[1], "sslmode": "disable", "gssencmode": "disable"}
        self.url = psycopg.conninfo.make_conninfo(url, **here)
        self._thread = threading.Thread(target=self._pass_on, daemon=True)
        self._thread.start()

    def reset(self):
        self._rope.send(b"x")
        self._thread.join(5)

    def _pass_on(self):
        session, _ = self._door.accept()
        with session, self._door, self._there, self._bell, self._rope:
            while True:
                ready, _, _ = select.select([session, self._there, self._bell], [], [])
                if self._bell in ready or (self.last_words is not None and session in ready):
                    session.sendall(self.last_words or b"")
                    session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                for one, other in ((session, self._there), (self._there, session)):
                    if one in ready:
                        data = one.recv(65_536)
                        if not data:
                            return
                        other.sendall(data)


def test_a_line_that_was_reset_while_nobody_asked_is_told_to_who_asks_next(run, database_url):
    """uvloop says so once, and never again."""
    between = Between(database_url)

    async def work():
        connection = await connected(between.url)
        for n in range(3):
            assert await number(connection, n) == n
        between.reset()
        await asyncio.sleep(0.1)
        with pytest.raises(psycopg.OperationalError):
            await number(connection, 4)
        await connection.close()

    run(work())


def test_a_line_that_is_reset_behind_its_last_words_is_told_to_who_waits(run, database_url):
    """As by a server that ends a session without having read its statement: both are told at once."""
    between = Between(database_url)
    words = b"SFATAL\0VFATAL\0C57P01\0Mover\0\0"

    async def work():
        connection = await connected(between.url)
        for n in range(3):
            assert await number(connection, n) == n
        between.last_words = b"E" + struct.pack("!i", len(words) + 4) + words
        with pytest.raises(psycopg.OperationalError):
            await number(connection, 4)
        await connection.close()

    run(work())


def test_whoever_waits_on_a_connection_that_is_closed_meanwhile_is_told(run, database_url):
    async def work():
        connection = await connected(database_url)
        waiting = asyncio.create_task(ask(connection, "SELECT pg_sleep(30)"))
        await asyncio.sleep(0.05)
        await connection.close()
        await asyncio.wait([waiting], timeout=20)
        assert isinstance(waiting.exception(), psycopg.OperationalError)

    run(work())


def test_what_does_not_fit_into_the_socket_at_once_is_sent_and_read_whole(run, database_url, calls):
    async def work():
        connection = await connected(database_url)
        for size in (20_000_000, 10, 1_000_000):
            assert await ask(connection, "SELECT %s::text", ["y" * size]) == [("y" * size,)]
        rows = await ask(connection, "SELECT n, repeat('z', 100) FROM generate_series(1, 50000) AS n")
        assert rows == [(n, "z" * 100) for n in range(1, 50_001)]
        await connection.close()

    run(work())


def test_a_time_limit_is_kept_and_the_connection_goes_on(run, database_url):
    async def work():
        connection = await connected(database_url)
        assert await number(connection, 1) == 1
        async with asyncio.timeout(20):
            assert [one async for one in connection.notifies(timeout=0.05)] == []
        assert await number(connection, 2) == 2
        await connection.close()

    run(work())


def test_a_process_that_may_open_no_more_is_answered_nevertheless(run, database_url, monkeypatch):
    def refuse(number):
        raise OSError(24, "Too many open files")

    async def work():
        connection = await connected(database_url)
        monkeypatch.setattr("billing.watched.os.dup", refuse)
        assert await number(connection, 1) == 1
        monkeypatch.undo()
        assert await number(connection, 2) == 2
        await connection.close()

    run(work())


def test_a_connection_goes_along_to_another_loop(database_url):
    """As the engine's does where one loop of a process follows another."""
    engine_loop.stop()
    for kind in (asyncio.new_event_loop, uvloop.new_event_loop):
        before = _open()
        with asyncio.Runner(loop_factory=kind) as first:
            connection = first.run(connected(database_url))
            assert first.run(number(connection, 1)) == 1
            with asyncio.Runner(loop_factory=kind) as second:
                assert second.run(number(connection, 2)) == 2
            assert first.run(number(connection, 3)) == 3
        with asyncio.Runner(loop_factory=kind) as third:
            assert third.run(number(connection, 4)) == 4
            third.run(connection.close())
        assert _open() <= before


def test_a_statement_is_answered_after_a_migration_has_changed_what_it_reads(run, database_url):
    async def work():
        connection, migrating = [await connected(database_url) for _ in range(2)]
        await migrating.execute("CREATE TABLE public.watched_widened AS SELECT 7::int AS n")
        try:
            for _ in range(4):
                assert await ask(connection, "SELECT n FROM public.watched_widened") == [(7,)]
            await migrating.execute("ALTER TABLE public.watched_widened ALTER COLUMN n TYPE text")
            with pytest.raises(psycopg.errors.FeatureNotSupported):
                await ask(connection, "SELECT n FROM public.watched_widened")
            await connection.execute("DEALLOCATE ALL")
            assert await ask(connection, "SELECT n FROM public.watched_widened") == [("7",)]
        finally:
            await migrating.execute("DROP TABLE public.watched_widened")
            for one in (connection, migrating):
                await one.close()

    run(work())
