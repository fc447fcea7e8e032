"""What a process keeps of hosts, keys and accounts is never stale: it is told of changes, or it reads."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing.client import account_of
from billing.engine.loop import here
from billing.engine.payers import payer_and_key
from billing.models import Account, BudgetPeriod
from chat.v1.asking import asker_of, found_by
from config.database import embedded_database
from tenants import kept
from tenants.connections import own_connection_params
from tenants.context import public_scope
from tenants.http import AccountOnHold, BareRequest, Forbidden, TenantNotReady
from tenants.models import Domain, SchemaVersion, Tenant
from tenants.resolve import answered, find_member, find_tenant
from tenants.users.keys import digest
from tenants.users.models import ApiKey, User
from tests.support.factories import WorkspaceFactory
from tests.support.plane import run
from tests.tenants.test_resolve import asked, request

pytestmark = pytest.mark.usefixtures("keeping")
# Of every worker. A listener that says nothing counts for half a second.
SOON = 1.0
# For what nobody promises to be quick.
PATIENCE = 30.0
_late: list[bool] = []


def until(holds, *, seconds=SOON):
    """What it gives once it is true. The last look begins after the time is over: a process that stood still looks."""
    deadline = time.monotonic() + seconds
    while True:
        is_over = time.monotonic() > deadline
        if found := holds():
            return found
        assert not is_over, f"not so within {seconds} s"
        time.sleep(0.005)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done in it shows something only if it is done in so many seconds."""
    began = time.monotonic()
    try:
        yield
    finally:
        if time.monotonic() - began >= seconds:
            _late.append(True)


def again_where_it_was_late(test: Callable[..., None]) -> Callable[..., None]:
    """A kept row counts for half a second after the listener was heard of. A test that took longer between the two, for
    the machine stood still, says nothing by its failure and is run again.
    """

    @functools.wraps(test)
    def run_it(*args: Any, **fixtures: Any) -> None:
        for _ in range(5):
            _late.clear()
            try:
                return test(*args, **fixtures)
            except AssertionError:
                if not _late:
                    raise
        return test(*args, **fixtures)

    return run_it


def hears():
    return kept._rows.mark() is not None


@pytest.fixture
def keeping(app, settings):
    settings.LOOKUPS_KEPT_SECONDS = 30.0
    until(hears, seconds=PATIENCE)


@pytest.fixture(scope="module")
def home(app):
    return WorkspaceFactory()


@pytest.fixture
def key(home):
    """A key whose use has just been noted, so that its row may be kept."""
    secret = home.key()
    row_of(home, secret).update(last_used_at=timezone.now())
    return secret


class row_of:
    def __init__(self, workspace, secret):
        self.workspace, self.secret = workspace, secret

    def update(self, **values):
        with self.workspace.scope():
            ApiKey.objects.filter(digest=digest(self.secret)).update(**values)


@contextmanager
def reads() -> Iterator[list[str]]:
    """The statements on Django's connection, but for those that set a search path. From a moment on at which the
    listener has just been heard of, if it says anything: on a busy machine it may be late.
    """
    seen: list[str] = []
    until_at = time.monotonic() + kept.PROVEN_SECONDS
    while time.monotonic() - kept._rows._heard_at > 0.3 and time.monotonic() < until_at:
        time.sleep(0.005)

    def note(execute, sql, params, many, context):
        if "search_path" not in sql:
            seen.append(sql)
        return execute(sql, params, many, context)

    heard_at = kept._rows._heard_at
    try:
        with connection.execute_wrapper(note):
            yield seen
    finally:
        if time.monotonic() - heard_at >= kept.PROVEN_SECONDS:
            _late.append(True)


def who_asks(host, secret, **headers):
    """The asker, or the error."""
    asks = request(host, secret, **headers)
    try:
        found = answered(find_tenant(asks))
        return found.asker or answered(find_member(asks, found.tenant))
    except Exception as error:
        return error


def who_asks_at_v1(host, secret, **headers):
    """The same by the door of /v1, which keeps what was made of the rows as well."""
    given = {"host": host, "authorization": f"Bearer {secret}", **headers}
    bare = BareRequest(
        {
            "method": "GET",
            "path": "/v1/models",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
    )

    async def ask():
        used = []
        return await asker_of(bare, await found_by(bare, used), used)

    try:
        return run(ask())
    except Exception as error:
        return error


def is_error(answer):
    return isinstance(answer, Exception)


@pytest.mark.parametrize("spelled", ["host", "header", "key"])
@again_where_it_was_late
def test_what_is_asked_for_again_is_not_read_again(home, key, spelled):
    kept._rows.forget()
    host = home.host if spelled == "host" else "localhost"
    headers = {"x-tenant-id": home.slug} if spelled == "header" else {}
    counts = []
    for _ in range(3):
        with reads() as seen:
            asker = who_asks(host, key, **headers)
        counts.append(len(seen))
        assert (asker.tenant, asker.user) == (home.tenant, home.owner)
    assert counts[0] in (1, 2)
    assert counts[1:] == [0, 0]


@pytest.mark.parametrize("spelled", ["host", "header", "key"])
def test_who_asks_again_at_v1_is_not_made_again(home, key, spelled):
    host = home.host if spelled == "host" else "localhost"
    headers = {"x-tenant-id": home.slug} if spelled == "header" else {}
    until(lambda: who_asks_at_v1(host, key, **headers) is who_asks_at_v1(host, key, **headers), seconds=PATIENCE)
    asker = who_asks_at_v1(host, key, **headers)
    assert (asker.tenant, asker.user) == (home.tenant, home.owner)
    # Each by its own facts alone.
    assert who_asks_at_v1("localhost", key).user == home.owner
    for wrong in (key[:-1], f"{key}x", key.swapcase(), ""):
        assert is_error(who_asks_at_v1(host, wrong, **headers))
    assert is_error(who_asks_at_v1("nobody.localhost", key))
    assert is_error(who_asks_at_v1("localhost", key, **{"x-tenant-id": "nobody"}))
    Tenant.objects.filter(pk=home.tenant.pk).update(name=f"Asked by {spelled}")
    until(lambda: who_asks_at_v1(host, key, **headers).tenant.name == f"Asked by {spelled}")
    assert asker is not who_asks_at_v1(host, key, **headers)


def test_what_opens_nothing_takes_no_place_of_what_is_made(home, key):
    kept._rows.forget()
    for number in range(5):
        assert is_error(who_asks_at_v1(home.host, f"{key[:-1]}{number}_"))
        assert is_error(who_asks_at_v1("localhost", f"{key[:-1]}{number}_"))
    assert kept._rows._made == {}


def test_not_more_is_made_than_is_kept_of_it(home, key, monkeypatch):
    monkeypatch.setattr(kept, "MOST_MADE", 2)
    kept._rows.forget()
    keep = kept.Keep(tags=lambda row: ("tenant:1",), seconds=lambda row: 30)
    query = kept.Query("SELECT 1", (), keep)
    row = until(lambda: kept._rows.keep(query, (1,), kept._rows.mark()), seconds=PATIENCE)
    for name in range(4):
        kept.keep_made(name, f"made {name}", [row])
    kept.keep_made("of no row", "x", [])
    kept.keep_made("of a row that is not kept", "x", [row, None])
    names = (0, 1, 2, 3, "of no row", "of a row that is not kept")
    of_the_newest = [None, None, "made 2", "made 3", None, None]
    until(lambda: [kept.made(name) for name in names] == of_the_newest, seconds=PATIENCE)


@again_where_it_was_late
def test_who_pays_is_not_read_again(home, key):
    with home.scope():
        key_id = ApiKey.objects.get(digest=digest(key)).pk
    until(lambda: _counted_fetches(home, key_id) == 0, seconds=PATIENCE)
    account_of(home.tenant)
    with reads() as seen:
        account = account_of(home.tenant)
    assert seen == []
    assert (account.pk, account.plan, account.sealed_key) == (
        home.account.pk,
        home.account.plan,
        Account.objects.get(pk=home.account.pk).sealed_key,
    )


def _counted_fetches(workspace, key_id):
    """Of the engine, which has connections of its own."""

    async def pay():
        engine, count = here(), 0
        fetch = engine.store.fetch

        async def counting(*query):
            nonlocal count
            count += 1
            return await fetch(*query)

        engine.store.fetch = counting
        try:
            tenant = workspace.tenant
            payer, key = await payer_and_key(
                engine, tenant_id=tenant.pk, slug=tenant.slug, schema=tenant.schema_name, key_id=key_id
            )
        finally:
            del engine.store.fetch
        assert (payer.account_id, key.id) == (workspace.account.pk, key_id)
        return count

    return run(pay())


def by_hand(workspace, sql):
    """By a program that knows nothing of us."""
    with psycopg.connect(**own_connection_params(), autocommit=True) as own:
        own.execute(sql.format(schema=f'"{workspace.tenant.schema_name}"', tenant=workspace.tenant.pk))


CHANGES = {
    "revoked": ("UPDATE {schema}.users_apikey SET revoked_at = now()", is_error),
    "expired": ("UPDATE {schema}.users_apikey SET expires_at = now()", is_error),
    "fewer scopes": ("UPDATE {schema}.users_apikey SET scopes = '[]'", lambda asker: asker.scopes == []),
    "fewer models": ("UPDATE {schema}.users_apikey SET allowed_models = '[]'", lambda asker: asker.key_models == []),
    "slower": ("UPDATE {schema}.users_apikey SET rates = '{{\"requests\": 1}}'", lambda asker: bool(asker.rates)),
    "limited": ("UPDATE {schema}.users_apikey SET limited_apps = '[]'", lambda asker: asker.limited_apps == []),
    "deleted": ("DELETE FROM {schema}.users_apikey", is_error),
    "truncated": ("TRUNCATE {schema}.users_apikey CASCADE", is_error),
    "another role": ("UPDATE {schema}.users_user SET role = 'viewer'", lambda asker: asker.role == "viewer"),
    "deactivated": ("UPDATE {schema}.users_user SET is_active = false", is_error),
    "suspended": ("UPDATE public.tenants_tenant SET status = 'suspended' WHERE id = {tenant}", is_error),
    "closed": ("UPDATE public.tenants_tenant SET status = 'closed' WHERE id = {tenant}", is_error),
    "renamed": ("UPDATE public.tenants_tenant SET name = 'New' WHERE id = {tenant}", lambda a: a.tenant.name == "New"),
    "behind": ("UPDATE public.tenants_tenant SET schema_version = NULL WHERE id = {tenant}", is_error),
    "another host": ("UPDATE public.tenants_domain SET domain = 'x-' || domain WHERE tenant_id = {tenant}", is_error),
    "frozen": (
        "UPDATE public.billing_account SET status = 'frozen' WHERE tenant_id = {tenant}",
        lambda asker: asker.beside[1] == "frozen",
    ),
    "another plan": (
        "UPDATE public.billing_account SET plan = 'x' WHERE tenant_id = {tenant}",
        lambda asker: asker.beside[2] == "x",
    ),
    "rotated at the authority": (
        "UPDATE public.billing_account SET sealed_key = 'x' WHERE tenant_id = {tenant}",
        lambda asker: asker.beside[4] == "x",
    ),
    "a period that ends": (
        "UPDATE public.billing_budgetperiod SET ends_at = '2040-01-01' FROM public.billing_account a "
        "WHERE a.id = account_id AND a.tenant_id = {tenant}",
        lambda asker: asker.beside[6].startswith("2040"),
    ),
}


@pytest.mark.parametrize("who_asks", [who_asks, who_asks_at_v1])
@pytest.mark.parametrize("change", CHANGES)
@again_where_it_was_late
def test_a_change_by_hand_is_known_within_a_second(home, key, change, who_asks):
    sql, is_seen = CHANGES[change]

    def is_known(answer):
        return isinstance(answer, Forbidden) or is_seen(answer)

    with home.scope():
        user, rows = User.objects.get(), list(ApiKey.objects.all())
    public = [Tenant.objects.get(pk=home.tenant.pk), Account.objects.get(pk=home.account.pk)]
    public += [*Domain.objects.filter(tenant=home.tenant), *BudgetPeriod.objects.filter(account=home.account)]
    try:
        assert not is_known(who_asks(home.host, key))
        with reads() as seen:
            assert not is_known(who_asks(home.host, key))
        assert seen == []
        by_hand(home, sql)
        until(lambda: is_known(who_asks(home.host, key)))
    finally:
        for row in public:
            row.save()
        with home.scope():
            user.save()
            for row in rows:
                row.save()
        until(lambda: not is_error(who_asks(home.host, key)))


@again_where_it_was_late
def test_a_neighbours_change_ends_no_row_of_ours(home, key, neighbour):
    who_asks(home.host, key)
    with neighbour.scope():
        User.objects.update(role="owner", second_step_at=timezone.now())
    Tenant.objects.filter(pk=neighbour.tenant.pk).update(name="Other")
    Account.objects.filter(pk=neighbour.account.pk).update(plan="x")
    time.sleep(0.1)
    with reads() as seen:
        assert who_asks(home.host, key).tenant == home.tenant
    assert seen == []


def test_a_row_that_was_read_before_a_change_is_not_kept_after_it(home):
    """However late its reader is, and whether the word of the change came before or after it."""
    tenant = home.tenant
    row = kept.Keep(tags=lambda row: (kept.of_tenant(tenant.pk),), seconds=lambda row: 30)
    query = kept.Query("SELECT name FROM public.tenants_tenant WHERE id = %s", (tenant.pk,), row)

    def read(sql, params):
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            return cursor.fetchone()

    def read_and_be_late(sql, params):
        found, told = read(sql, params), kept._rows._changes
        Tenant.objects.filter(pk=tenant.pk).update(name="Changed meanwhile")
        until(lambda: kept._rows._changes > told, seconds=PATIENCE)
        return found

    assert kept.fetched(query, read_and_be_late) != ("Changed meanwhile",)
    assert kept._rows.get(query) is None
    assert kept.fetched(query, read) == ("Changed meanwhile",)
    until(lambda: kept.fetched(query, read) == kept._rows.get(query) == ("Changed meanwhile",), seconds=PATIENCE)


def backend():
    """The server's process of our listener."""
    with psycopg.connect(**own_connection_params()) as own:
        # Other processes of the run may listen, too.
        ((pid,),) = own.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()",
            [f"{kept.NAME} {os.getpid()}"],
        ).fetchall()
        return pid


@again_where_it_was_late
def test_a_listener_that_lost_its_connection_keeps_nothing_and_comes_back(home, key):
    until(lambda: who_asks(home.host, key) and kept._rows._kept, seconds=PATIENCE)
    forgotten = kept._rows._all_changed
    by_hand(home, f"SELECT pg_terminate_backend({backend()})")
    until(lambda: kept._rows._all_changed > forgotten, seconds=PATIENCE)
    row_of(home, key).update(scopes=["budget"])
    assert who_asks(home.host, key).scopes == ["budget"]
    until(hears, seconds=PATIENCE)
    row_of(home, key).update(last_used_at=timezone.now())
    who_asks(home.host, key)
    with reads() as seen:
        assert who_asks(home.host, key).scopes == ["budget"]
    assert seen == []


@pytest.mark.skipif(not embedded_database(), reason="stops a process of the server")
def test_while_the_listener_is_frozen_rows_are_read(home, key):
    """Its connection is there, and says nothing: what it was told last counts for half a second."""
    who_asks(home.host, key)
    pid = backend()
    os.kill(pid, signal.SIGSTOP)
    try:
        row_of(home, key).update(revoked_at=timezone.now())
        until(lambda: is_error(who_asks(home.host, key)))
        row_of(home, key).update(revoked_at=None)
        for _ in range(2):
            with reads() as seen:
                assert not is_error(who_asks(home.host, key))
            assert len(seen) >= 2
    finally:
        os.kill(pid, signal.SIGCONT)
    until(hears, seconds=PATIENCE)


def test_others_hear_what_is_theirs_on_the_same_connection_until_they_stop(home, key):
    who_asks(home.host, key)
    until(hears, seconds=PATIENCE)
    session, heard = backend(), []
    stops = [kept.hear("somebodys", heard.append), kept.hear("somebodys", heard.append)]
    with psycopg.connect(**own_connection_params(), autocommit=True) as own:

        def told(words):
            own.execute("SELECT pg_notify('somebodys', %s)", [words])
            return words in heard

        forgotten = kept._rows._all_changed
        until(lambda: told("first"), seconds=PATIENCE)
        assert backend() == session
        assert kept._rows._all_changed == forgotten, "what is somebody else's forgets no rows"
        # It lives as long as somebody hears, also where nobody asks for rows.
        kept._rows.asked_at = float("-inf")
        by_hand(home, f"SELECT pg_terminate_backend({session})")
        until(lambda: told("second"), seconds=PATIENCE)
        for stop in stops:
            stop()
        before = len(heard)
        told("third")
        who_asks(home.host, key)
        until(hears, seconds=PATIENCE)
        assert len(heard) == before


def test_a_session_that_is_not_told_is_found_out(home, monkeypatch):
    """As behind a pooler that gives each transaction another session."""
    monkeypatch.setattr(kept, "PROOF_SECONDS", 0.2)
    with psycopg.connect(**own_connection_params(), autocommit=True) as own:
        with pytest.raises(kept._Deaf):
            kept._prove(own, {**own_connection_params(), "autocommit": True})
        monkeypatch.setattr(kept, "PROOF_SECONDS", PATIENCE)
        own.execute(f"LISTEN {kept.CHANNEL}")
        kept._prove(own, {**own_connection_params(), "autocommit": True})
        listener, session = kept._Listener(kept.Rows()), own.execute(kept._HEARS).fetchone()
        listener._rows.mark()  # somebody asks
        listener._ask(own, session)
        own.execute(f"UNLISTEN {kept.CHANNEL}")
        with pytest.raises(kept._Deaf):
            listener._ask(own, session)


def test_a_key_is_answered_by_its_own_tenants_row_alone(home, key, neighbour):
    """Even where its row was copied: each schema's is another's."""
    old = home.old_key()
    with neighbour.scope():
        ApiKey.objects.create(user=neighbour.owner, name="copied", prefix=old[:11], digest=digest(old))
    for _ in range(3):
        assert who_asks(home.host, old).user == home.owner
        assert who_asks(neighbour.host, old).user == neighbour.owner
        assert who_asks(home.host, key).tenant == home.tenant
        assert is_error(who_asks(neighbour.host, key))
        assert is_error(who_asks("localhost", key, **{"x-tenant-id": neighbour.slug}))
    assert who_asks(neighbour.host, old).email != who_asks(home.host, old).email


@again_where_it_was_late
def test_the_time_tells_no_stranger_who_is_known(home, key, neighbour):
    """The tenant's row is kept, for its own key is in use; whoever names it without one reads as much as ever."""
    for headers in ({"x-tenant-id": home.slug}, {}):
        for _ in range(2):
            assert not is_error(who_asks("localhost", key, **headers))
    foreign, counts = neighbour.key(), set()
    brand, _, rest = foreign.split("_", 2)
    for public_id in (home.tenant.public_id, "0" * 12):
        counts.add(_strangers_reads(f"{brand}_{public_id}_{rest}"))
    for slug in (home.slug, "nobody"):
        counts.add(_strangers_reads(foreign, **{"x-tenant-id": slug}))
    assert counts == {2}


def _strangers_reads(secret, **headers):
    with reads() as seen:
        assert is_error(who_asks("localhost", secret, **headers))
    return len(seen)


@again_where_it_was_late
def test_a_kept_keys_use_is_noted_once_a_minute_and_its_end_is_kept(home, key):
    with within(0.3):
        row_of(home, key).update(last_used_at=timezone.now() - timedelta(seconds=59.7), expires_at=None)
        assert not is_error(who_asks(home.host, key))
    time.sleep(0.35)
    asks = request(home.host, key)
    _, statements = asked(find_member(asks, home.tenant))
    assert [sql.split()[0] for sql, _ in statements] == ["SELECT", "UPDATE"]
    with within(0.4):
        row_of(home, key).update(expires_at=timezone.now() + timedelta(seconds=0.4))
        assert who_asks(home.host, key).user == home.owner
        assert not is_error(who_asks(home.host, key))
    time.sleep(0.4)
    assert is_error(who_asks(home.host, key))


@again_where_it_was_late
def test_a_use_that_is_noted_and_a_log_in_tell_nobody(home, key):
    who_asks(home.host, key)
    row_of(home, key).update(last_used_at=timezone.now())
    with home.scope():
        User.objects.update(last_login=timezone.now())
    time.sleep(0.1)
    with reads() as seen:
        who_asks(home.host, key)
    assert seen == []


def test_nothing_is_kept_that_was_not_there(home):
    for _ in range(3):
        with reads() as seen:
            assert is_error(who_asks("nobody.localhost", "tk_nothing"))
            assert is_error(who_asks(home.host, "tk_nothing"))
        assert len([sql for sql in seen if "users_apikey" in sql]) >= 2


def test_not_more_is_kept_than_a_few_thousand(monkeypatch):
    monkeypatch.setattr(kept, "MOST", 3)
    keep = kept.Keep(tags=lambda row: ("tenant:1",), seconds=lambda row: 30)
    queries = [kept.Query("SELECT %s", (number,), keep) for number in range(5)]

    def the_newest_alone_are_kept():
        kept._rows.forget()
        for query in queries:
            kept.fetched(query, lambda sql, params: params)
        return [kept._rows.get(query) for query in queries] == [None, None, (2,), (3,), (4,)]

    until(the_newest_alone_are_kept, seconds=PATIENCE)


def test_a_list_of_a_kept_row_is_its_readers_own():
    keep = kept.Keep(tags=lambda row: ("tenant:1",), seconds=lambda row: 30)
    query = kept.Query("SELECT 'list'", (), keep)
    for _ in range(3):
        row = kept.fetched(query, lambda sql, params: (["a"],))
        assert row[0] == ["a"]
        if kept._rows.get(query):
            kept.fetched(query, lambda sql, params: None)[0].append("b")


def test_a_fork_keeps_nothing_of_its_parent(home, key):
    until(lambda: who_asks_at_v1(home.host, key) is who_asks_at_v1(home.host, key), seconds=PATIENCE)
    assert kept._rows._kept
    child = os.fork()
    if child == 0:
        is_new = not kept._rows._kept and not kept._rows._made and kept._rows._listener is None
        os._exit(0 if is_new else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert kept._rows._listener.is_alive()


@again_where_it_was_late
def test_in_a_schema_that_was_dropped_by_hand_nobody_is_shown_publics_rows(upstream):
    """Nothing tells of it, so the host's row and the key's are kept: each door finds out by what it does anyway."""
    gone = WorkspaceFactory()
    key, browser = gone.key(), gone.client(gone.owner)
    rated = gone.key()
    row_of(gone, rated).update(rates={"requests": 100})
    for secret in (key, rated):
        for _ in range(2):  # the first notes its use
            assert gone.api(secret).post("/api/chat/", {"prompt": "hello"}).status_code == 200
        who_asks(gone.host, secret)
    gone.settled(lines=4)
    by_hand(gone, "DROP SCHEMA {schema} CASCADE")
    calls = len(upstream.calls)
    with reads() as seen:
        assert who_asks(gone.host, key).tenant == gone.tenant
    assert seen == []
    with pytest.raises(TenantNotReady), gone.scope():
        User.objects.count()
    answers = [browser.get("/"), browser.get("/api/budget/"), gone.api(key).post("/api/chat/", {"prompt": "hello"})]
    answers += [gone.api(rated).post("/api/chat/", {"prompt": "hello"})]
    answers += [gone.plane(browser).post("/api/chat/", {"prompt": "hello"})]
    named = {"idempotency-key": "k"}
    said = {"model": "test-model", "messages": [{"role": "user", "content": "hello"}]}
    for path, body, headers in (
        ("/api/chat/", {"prompt": "hello"}, named),
        ("/api/chat/", {"prompt": "hello", "conversation_id": 1}, {}),
        ("/api/summarize/", {"text": "hello"}, named),
        ("/v1/chat/completions", said, {}),
        ("/v1/chat/completions", said, named),
        ("/v1/chat/completions", {**said, "stream": True}, named),
    ):
        answers.append(gone.api(key).post(path, body, headers=headers))
    assert [answer.status_code for answer in answers] == [503] * 11
    assert len(upstream.calls) == calls
    assert gone.holds() == 0


def test_a_workspace_of_before_gets_its_triggers_by_migrating(home):
    """As one that is made by the template has them."""
    schema = home.tenant.schema_name
    made = triggers(schema)
    assert {name for name, _, _ in made} == {"tell", "tell_all"}
    assert len(made) == 4
    call_command("migrate_schemas", "users", "0005", schema_name=schema, verbosity=0)
    assert triggers(schema) == set()
    call_command("migrate_schemas", schema_name=schema, verbosity=0)
    assert triggers(schema) == made
    until(lambda: not is_error(who_asks(home.host, home.key())))


def triggers(schema):
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgname, c.relname, replace(pg_get_triggerdef(t.oid), %s, '') FROM pg_trigger t "
            "JOIN pg_class c ON c.oid = tgrelid WHERE c.relnamespace = %s::regnamespace AND NOT tgisinternal",
            [schema, schema],
        )
        return set(cursor.fetchall())


def test_other_codes_state_is_known(home, key):
    """A rollback numbers its own state anew: who is served is asked again."""
    who_asks(home.host, key)
    with public_scope():
        version = SchemaVersion.objects.create(fingerprint="x" * 64)
        told = kept._rows._all_changed
        version.delete()
    until(lambda: kept._rows._all_changed > told, seconds=PATIENCE)
    assert not isinstance(who_asks(home.host, key), AccountOnHold)


@contextmanager
def engine_reads() -> Iterator[list[str]]:
    """The statements of paid calls on the engine's connections, once they are done."""
    seen: list[str] = []
    store = here_of_loop().store
    fetch = store.fetch

    async def noting(sql, params=None):
        found = await fetch(sql, params)
        seen.append(sql)
        return found

    store.fetch = noting
    try:
        yield seen
    finally:
        del store.fetch


def here_of_loop():
    async def engine():
        return here()

    return run(engine())


def statements_of(workspace, path, body, key):
    """Of one call, its settling included: on Django's connection, with the search path's, and on the engine's."""
    with CaptureQueriesContext(connection) as ours, engine_reads() as engines:
        answer = workspace.api(key).post(path, body)
        assert answer.status_code == 200, answer.content
        # Before the test looks at what was settled, or it would look more than once.
        until(lambda: any("DELETE FROM public.billing_hold" in sql for sql in engines), seconds=PATIENCE)
        workspace.settled()
    return len(ours), len(engines)


def test_a_chat_makes_two_statements_and_a_summary_three(workspace, upstream, settings):
    """The hold's row and the line's, and web's search path: it was four, and twelve."""
    key, counts = workspace.key(), {}
    for seconds in (0.0, 30.0):
        settings.LOOKUPS_KEPT_SECONDS = seconds
        until(lambda: hears() or not settings.LOOKUPS_KEPT_SECONDS, seconds=PATIENCE)
        for path, body in (
            ("/api/chat/", {"prompt": "hello", "max_tokens": 20}),
            ("/api/summarize/", {"text": "a long text", "max_tokens": 20}),
        ):
            # The first notes the key's use, the second reads the row with it; and a busy machine's listener is late.
            counts[path, seconds] = min(statements_of(workspace, path, body, key) for _ in range(4))
    # Four of Django's are the test's own look at what was settled.
    assert counts == {
        ("/api/chat/", 0.0): (4, 4),
        ("/api/summarize/", 0.0): (4 + 9, 3),
        ("/api/chat/", 30.0): (4, 2),
        ("/api/summarize/", 30.0): (4 + 1, 2),
    }
