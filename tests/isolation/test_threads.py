"""Work on other threads: what the project starts is listed, what carries its tenant does, what does not raises."""

import ast
import asyncio
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.management import call_command, get_commands
from django.db import ProgrammingError, connection, transaction
from django.http import StreamingHttpResponse
from django.test import RequestFactory

from chat.models import Conversation
from tenants.backend.base import NOT_IN_PUBLIC
from tenants.context import NoContext, WrongSchema, current_tenant, public_scope, tenant_scope
from tenants.middleware import TenantMiddleware
from tenants.threads import TenantExecutor, carrying
from tenants.users.models import User

pytestmark = pytest.mark.usefixtures("app")

ROOT = Path(__file__).resolve().parents[2]

# --- what is started, by whom, and why it may be ----------------------------------------------------------------------

STARTERS = {
    "threading": {"Thread", "Timer"},
    "_thread": {"start_new_thread"},
    "concurrent.futures": {"ThreadPoolExecutor", "ProcessPoolExecutor"},
    "asyncio": {"to_thread"},
    "asgiref.sync": {"sync_to_async", "async_to_sync"},
    "channels.db": {"database_sync_to_async"},
}
NAMES = {"run_in_executor"} | {name for names in STARTERS.values() for name in names}

# "file: what" → how often, and why no tenant is lost. Yours are started by tenants.threads, or stand here.
MEANT = {
    "tenants/threads.py: ThreadPoolExecutor": (1, "TenantExecutor is one, and carries"),
    "tenants/users/models.py: sync_to_async": (1, "hashes a password; thread-sensitive, so in the request's context"),
    "tenants/users/hashers.py: ThreadPoolExecutor": (1, "the thread that hashes: no ORM, and nobody's tenant"),
    "tenants/kept.py: Thread": (2, "the listener and its annotation: no ORM, plain SQL of nobody's tenant"),
    "billing/engine/loop.py: Thread": (1, "the engine's loop: no ORM, and a context of its own on purpose"),
    "billing/jobs.py: Thread": (1, "the timers enter public before each act"),
    "billing/jobs.py: ThreadPoolExecutor": (
        1,
        "asyncio's own, but larger: each job enters its tenant on it",
    ),
    "billing/jobs.py: to_thread": (1, "waits for a timer to end; touches no row"),
    "chat/buying.py: to_thread": (2, "counts letters; touches no row"),
    "chat/v1/app.py: ThreadPoolExecutor": (1, "the thread that reads large bodies: touches no row"),
    "chat/v1/app.py: run_in_executor": (1, "its reading"),
    "chat/shown.py: to_thread": (1, "renders text; touches no row"),
    "chat/calls.py: Thread": (1, "`keep`, which enters the tenant that it was given in, or public"),
    "config/gunicorn.conf.py: Timer": (1, "cuts streams on the engine's loop; touches no row"),
    "billing/authority/processes.py: Thread": (1, "watches its parent; a process without tenants"),
    "billing/authority/webhooks.py: Thread": (1, "a process without tenants"),
    "billing/authority/webhooks.py: ThreadPoolExecutor": (2, "a process without tenants, and its annotation"),
}


def first_party():
    """Every module that is not a test's: our packages, and those that a builder puts beside them."""
    packages = [found.parent for found in ROOT.glob("*/__init__.py") if found.parent.name not in ("tests",)]
    yield ROOT / "manage.py"
    for package in {*packages, ROOT / "config"}:
        yield from sorted(package.rglob("*.py"))


def started_in(source):
    """The names of what starts a thread, for each time it is used: by whatever spelling it was imported."""
    if not any(name in source for name in NAMES):  # most modules; to parse them all takes two seconds
        return
    tree, known = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in STARTERS:
            known |= {name.asname or name.name: name.name for name in node.names if name.name in NAMES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node.attr
        elif isinstance(node, ast.Name) and node.id in known:
            yield known[node.id]


def test_no_thread_is_started_that_the_list_does_not_explain():
    found = Counter()
    for path in first_party():
        found.update(f"{path.relative_to(ROOT)}: {name}" for name in started_in(path.read_text()))
    assert found == {place: times for place, (times, _) in MEANT.items()}


@pytest.mark.parametrize(
    "source",
    [
        "import threading\nthreading.Thread(target=work).start()",
        "from threading import Thread as Worker\nclass Mine(Worker): pass",
        "import concurrent.futures\nconcurrent.futures.ThreadPoolExecutor(4).submit(work)",
        "async def view(request):\n    from asyncio import to_thread\n    await to_thread(work)",
        "loop.run_in_executor(None, work)",
        "from asgiref.sync import async_to_sync, sync_to_async\nwork = sync_to_async(work, thread_sensitive=False)",
    ],
)
def test_a_bare_thread_is_found_however_it_is_spelt(source):
    assert list(started_in(source))


# --- what carries ---------------------------------------------------------------------------------------------------

note: ContextVar[str] = ContextVar("note")


def seen(*_):
    """Whose rows this thread reads, and the other things of its context."""
    owner = User.objects.order_by("pk").values_list("email", flat=True).first()
    return current_tenant(), owner, note.get("-")


def test_an_executors_work_is_its_submitters(acme, globex):
    note.set("acme's")
    with TenantExecutor(1) as threads:  # one thread, so that each could meet what the other left
        for _ in range(2):
            with acme.scope():
                mine = threads.submit(seen)
                many = list(threads.map(seen, range(3)))
            with globex.scope():
                theirs = threads.submit(seen)
            public = threads.submit(current_tenant)
            assert [mine.result(), *many] == [(acme.tenant, acme.account.owner_email, "acme's")] * 4
            assert theirs.result()[:2] == (globex.tenant, globex.account.owner_email)
            assert public.result() is None


def test_the_thread_is_left_without_a_tenant_and_without_a_connection(acme):
    def left():
        return current_tenant(), connection.schema_name, connection.connection

    with ThreadPoolExecutor(1) as threads:
        with acme.scope():
            assert threads.submit(carrying(seen)).result()[0] == acme.tenant
            failing = threads.submit(carrying(lambda: 1 / 0))
        assert isinstance(failing.exception(), ZeroDivisionError)
        assert threads.submit(left).result() == (None, "public", None)
        assert isinstance(threads.submit(User.objects.exists).exception(), NoContext)


def test_a_bare_thread_of_each_kind_can_carry(acme):
    kept = []
    with acme.scope():
        thread = threading.Thread(target=carrying(lambda: kept.append(seen())))
        thread.start()
        thread.join()
        kept.append(asyncio.run(asyncio.to_thread(carrying(seen))))
        kept.append(asyncio.run(sync_to_async(carrying(seen), thread_sensitive=False)()))
    assert [(tenant, owner) for tenant, owner, _ in kept] == [(acme.tenant, acme.account.owner_email)] * 3


def test_nothing_can_be_carried_from_a_thread_that_has_nothing(app):
    with ThreadPoolExecutor(1) as threads:
        assert isinstance(threads.submit(carrying, seen).exception(), NoContext)
        assert threads.submit(current_tenant).result() is None


# --- what raises ------------------------------------------------------------------------------------------------------


def test_a_bare_thread_says_whose_rows_it_means(acme):
    def by_scopes():
        with tenant_scope(acme.tenant):
            there = User.objects.filter(email=acme.account.owner_email).exists()
        with public_scope():
            User.objects.exists()
        try:
            return there, User.objects.exists()
        except NoContext as error:
            return there, error
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads:
        there, error = threads.submit(by_scopes).result()
    assert there is True
    assert "tenant_scope" in str(error)


def test_raw_sql_and_server_side_cursors_are_refused_too(acme):
    def raw():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    def served():
        with transaction.atomic():
            return list(User.objects.iterator())

    with ThreadPoolExecutor(1) as threads:
        for work in (raw, served):
            assert isinstance(threads.submit(work).exception(), NoContext)
        threads.submit(lambda: connection.close()).result()


def test_a_statement_inside_a_tenant_is_refused_on_a_connection_that_was_moved_by_hand(acme, globex):
    with acme.scope():
        connection.set_tenant(globex.tenant)
        with pytest.raises(WrongSchema):
            User.objects.exists()
        connection.set_tenant(acme.tenant)
        assert User.objects.exists()


def test_a_tenants_table_that_is_looked_for_in_public_is_missed_with_what_to_do(acme):
    for ask in (Conversation.objects.count, lambda: list(Conversation.objects.iterator())):
        with public_scope(), pytest.raises(ProgrammingError, match="chat_conversation") as missed:
            ask()
        assert missed.value.__notes__ == [NOT_IN_PUBLIC]
    with acme.scope(), connection.cursor() as cursor, pytest.raises(ProgrammingError, match="nowhere") as missed:
        cursor.execute("SELECT 1 FROM nowhere")
    assert not hasattr(missed.value, "__notes__")


def test_a_stream_that_asks_the_database_after_its_tenant_was_left_raises(acme):
    def words(tenant):
        yield b"first "
        with tenant_scope(tenant):
            count = User.objects.filter(email=acme.account.owner_email).count()
        yield str(count).encode()
        User.objects.exists()

    request = RequestFactory(headers={"host": acme.host}).get("/")
    answer = TenantMiddleware(lambda request: StreamingHttpResponse(words(request.tenant)))(request)
    parts = iter(answer)
    assert [next(parts), next(parts)] == [b"first ", b"1"]
    with pytest.raises(NoContext, match="stream"):
        next(parts)
    answer.close()
    User.objects.exists()  # whoever works on this thread next is where it was


@pytest.mark.parametrize("server", ["wsgi", "asgi"])
def test_an_async_stream_of_web_does_so_too(acme, server):
    """Django reads it on a loop of its own when the tenant has been left: the answer had been public's users."""

    async def words(tenant):
        yield b"first "
        yield str(await User.objects.acount()).encode()

    request = RequestFactory(headers={"host": acme.host}).get("/")
    answer = TenantMiddleware(lambda request: StreamingHttpResponse(words(request.tenant)))(request)

    async def read():
        return [part async for part in answer]

    with pytest.raises(NoContext, match="stream"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of reading it whole, as every WSGI server does
        list(answer) if server == "wsgi" else async_to_sync(read)()
    answer.close()
    User.objects.exists()


def test_an_async_streams_parts_come_and_its_end_is_told_to_who_made_it(acme):
    ended = []

    async def words():
        try:
            yield b"a"
            yield b"b"
            yield b"c"
        finally:
            with pytest.raises(NoContext):
                await User.objects.aexists()
            ended.append("told")

    async def read(answer, parts):
        found = []
        async for part in answer:
            found.append(part)
            if len(found) == parts:
                break
        await answer._iterator.aclose()
        return found

    for parts, said in ((9, [b"a", b"b", b"c"]), (1, [b"a"])):
        request = RequestFactory(headers={"host": acme.host}).get("/")
        answer = TenantMiddleware(lambda request: StreamingHttpResponse(words()))(request)
        assert async_to_sync(read)(answer, parts) == said
    assert ended == ["told", "told"]


def test_runservers_thread_is_bound_to_public_like_any_commands(app, monkeypatch):
    assert get_commands()["runserver"] == "tenants"
    found = []
    monkeypatch.setattr(
        "django.core.management.commands.runserver.Command.inner_run", lambda *_, **__: found.append(seen())
    )
    thread = threading.Thread(target=lambda: (call_command("runserver", use_reloader=False), connection.close()))
    thread.start()
    thread.join()
    assert [tenant for tenant, *_ in found] == [None]


# --- a queryset is asked where it is read (django-tenants #164) -------------------------------------------------------


def test_a_queryset_that_leaves_its_scope_reads_where_it_is_read_and_raises_on_a_bare_thread(acme, globex):
    """Known and left so: README says to read inside. A thread, or a stream's generator on one, is caught."""
    with acme.scope():
        first = User.objects.order_by("pk")[:1]
    with globex.scope():
        assert [user.email for user in first.all()] == [globex.account.owner_email]
    with ThreadPoolExecutor(1) as threads:
        assert isinstance(threads.submit(list, first.all()).exception(), NoContext)
