"""Who asks, decided without I/O: which statements it wants, and what it makes of their rows."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth import HASH_SESSION_KEY
from django.core.checks import run_checks
from django.db import connection
from django.test import RequestFactory
from django.utils import timezone

from tenants.http import Unauthenticated
from tenants.models import Tenant
from tenants.resolve import answered, find_member, find_tenant
from tenants.users.keys import digest, tenant_of
from tenants.users.models import ApiKey, User
from tests.support.factories import WorkspaceFactory

pytestmark = pytest.mark.usefixtures("app")


def asked(steps):
    """The steps' result (or error), and each statement they wanted with its row."""
    statements = []

    def watched():
        row = None
        while True:
            try:
                query = steps.send(row)
            except StopIteration as done:
                return done.value
            row = yield query
            statements.append((" ".join(query[0].split()), row))

    try:
        return answered(watched()), statements
    except Unauthenticated as error:
        return error, statements


def request(host, key=None, **headers):
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return RequestFactory().get("/api/budget/", headers={"host": host, **headers})


def by_session(workspace, user):
    asks = request(workspace.host)
    asks.COOKIES["sessionid"] = workspace.client(user).cookies["sessionid"].value
    return asks


def used_at(workspace, key):
    """Not for the first time: noting the use is a statement more."""
    with workspace.scope():
        ApiKey.objects.filter(digest=digest(key)).update(last_used_at=timezone.now())
    return key


def test_a_key_costs_two_statements_and_a_session_three(acme, alice):
    key = used_at(acme, acme.key(alice))
    for asks, count in ((request(acme.host, key), 2), (by_session(acme, alice), 3)):
        found, first = asked(find_tenant(asks))
        asker, then = asked(find_member(asks, found.tenant))
        assert (asker.tenant, asker.user, asker.user_id, asker.email) == (acme.tenant, alice, alice.pk, alice.email)
        assert len(first) + len(then) == count
    old = used_at(acme, acme.old_key(alice))
    for headers, sent in (({"x-tenant-id": "acme"}, key), ({}, key), ({"x-tenant-id": "acme"}, old)):
        found, statements = asked(find_tenant(request("localhost", sent, **headers)))
        assert (found.tenant, found.asker.user, len(statements)) == (acme.tenant, alice, 2)


def test_each_statement_names_its_schema(acme, alice):
    """A search path that leads elsewhere must lead nowhere."""
    seen = []
    for asks in (request(acme.host, acme.key(alice)), by_session(acme, alice)):
        found, first = asked(find_tenant(asks))
        seen += first + asked(find_member(asks, found.tenant))[1]
    assert len(seen) == 6
    for sql, _ in seen:
        tables = re.findall(r"(?:FROM|JOIN|UPDATE) (\S+)", sql)
        assert tables
        named = ("public.", "pg_catalog.", f'"{acme.tenant.schema_name}".')
        assert all(table.startswith(named) for table in tables), sql
    with connection.cursor() as cursor:
        cursor.execute("SET search_path TO pg_temp")
        try:
            for sql, _ in seen:
                cursor.execute(sql.replace("%s", "NULL"))
        finally:
            connection.close()


def test_what_is_read_is_whole(acme, alice):
    """An instance that lacks a column would ask for it later: on the plane's loop, an error."""
    asks = request(acme.host, acme.key(alice))
    found, _ = asked(find_tenant(asks))
    asker, _ = asked(find_member(asks, found.tenant))
    with acme.scope():
        expected = {Tenant: Tenant.objects.get(pk=acme.tenant.pk), User: User.objects.get(pk=alice.pk)}
    for instance in (found.tenant, asker.user):
        assert not instance.get_deferred_fields()
        for field in instance._meta.concrete_fields:
            assert getattr(instance, field.attname) == getattr(expected[type(instance)], field.attname)


def test_a_use_is_noted_at_most_once_a_minute(workspace):
    key = workspace.key()

    def statements():
        asks = request(workspace.host, key)
        return [sql for sql, _ in asked(find_member(asks, workspace.tenant))[1]]

    assert len(statements()) == 2
    assert len(statements()) == 1
    with workspace.scope():
        minute_ago = timezone.now() - timedelta(seconds=61)
        ApiKey.objects.update(last_used_at=minute_ago)
    assert len(statements()) == 2
    with workspace.scope():
        assert ApiKey.objects.get().last_used_at > minute_ago


def test_a_strangers_header_costs_the_same_whether_the_name_is_known(acme, globex):
    """The same number of statements, the last of which looks a key up: the time tells nothing."""
    empty = WorkspaceFactory()
    with connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA "{empty.tenant.schema_name}" CASCADE')
    shapes = set()
    for slug in ("acme", "nobody", empty.slug):
        error, statements = asked(find_tenant(request("localhost", globex.key(), **{"x-tenant-id": slug})))
        assert isinstance(error, Unauthenticated)
        shapes.add(tuple(re.sub(r'"(public|t_\w+)"', "schema", sql) for sql, _ in statements))
    assert len(shapes) == 1
    assert len(shapes.pop()) == 2


def of_tenant(key, public_id):
    """The same key, saying that it is of another tenant."""
    brand, _, rest = key.split("_", 2)
    return f"{brand}_{public_id}_{rest}"


def test_a_strangers_key_costs_the_same_whether_the_tenant_that_it_names_is_known(acme, globex):
    """Unknown, without a schema, known and foreign, revoked, expired: two statements each, and one answer."""
    empty = WorkspaceFactory()
    with connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA "{empty.tenant.schema_name}" CASCADE')
    ended, expired = acme.key(), acme.key(expires_at=timezone.now() - timedelta(seconds=1))
    with acme.scope():
        ApiKey.objects.get(digest=digest(ended)).revoke()
    foreign = globex.key()
    named = ("0" * 12, empty.tenant.public_id, acme.tenant.public_id)
    shapes, answers = set(), set()
    for key in (ended, expired, *(of_tenant(foreign, public_id) for public_id in named)):
        error, statements = asked(find_tenant(request("localhost", key)))
        assert isinstance(error, Unauthenticated)
        answers.add(str(error.body()))
        shapes.add(tuple(re.sub(r'"(public|t_\w+)"', "schema", sql) for sql, _ in statements))
    assert len(shapes) == len(answers) == 1
    assert len(shapes.pop()) == 2


def test_a_keys_row_that_was_copied_to_a_neighbour_opens_nothing_there(acme, globex, bob):
    """By no spelling. Only an old key, which does not say whose it is, goes with its row."""
    new, old = acme.key(), acme.old_key()
    with acme.scope():
        rows = list(ApiKey.objects.filter(digest__in=[digest(new), digest(old)]).order_by("pk"))
    with globex.scope():
        for row in rows:
            ApiKey.objects.create(user=bob, name=row.name, prefix=row.prefix, digest=row.digest)
    respelled = of_tenant(new, globex.tenant.public_id)
    for asks in (request("localhost", new, **{"x-tenant-id": "globex"}), request("localhost", respelled)):
        assert isinstance(asked(find_tenant(asks))[0], Unauthenticated)
    assert isinstance(asked(find_member(request(globex.host, new), globex.tenant))[0], Unauthenticated)
    assert asked(find_member(request(globex.host, old), globex.tenant))[0].user == bob


def test_what_a_key_names_is_read_strictly(acme):
    key = acme.key()
    assert tenant_of(key) == acme.tenant.public_id
    odd = [key[:-1], key + "x", key.replace("_", "-", 1), key.upper(), f"_{key}", f" {key}", f"{key}\n", "", "a_b_c_d"]
    for spelled in [*odd, acme.old_key(), of_tenant(key, "A" * 12), of_tenant(key, "\u0663" * 12)]:
        assert tenant_of(spelled) is None
    # What an operator calls keys may change.
    assert tenant_of(f"other1_{key.split('_', 1)[1]}") == acme.tenant.public_id


def test_an_operators_key_opens_no_unknown_name_and_is_not_noted(app):
    from tenants.users.keys import create_key

    user = User.objects.create_user("op-resolve@example.com", None)
    key, secret = create_key(user, name="operator")
    error, statements = asked(find_tenant(request("localhost", secret, **{"x-tenant-id": "nobody"})))
    assert isinstance(error, Unauthenticated)
    assert statements[-1][1] is not None  # the row was there
    key.refresh_from_db()
    assert key.last_used_at is None


def test_who_may_no_longer_is_nobody(workspace):
    member = workspace.member("leaver@example.com")
    asks_by_key, asks_by_session = request(workspace.host, workspace.key(member)), by_session(workspace, member)

    def both():
        return [asked(find_member(asks, workspace.tenant))[0] for asks in (asks_by_key, asks_by_session)]

    assert [asker.user for asker in both()] == [member, member]
    with workspace.scope():
        User.objects.filter(pk=member.pk).update(is_active=False)
    assert all(isinstance(error, Unauthenticated) for error in both())
    with workspace.scope():
        User.objects.filter(pk=member.pk).update(is_active=True, password="another")
        ApiKey.objects.filter(user=member).update(revoked_at=timezone.now())
    assert all(isinstance(error, Unauthenticated) for error in both())


def test_a_session_under_an_earlier_secret_key_still_counts(workspace, settings):
    asks = by_session(workspace, workspace.owner)
    settings.SECRET_KEY, old = "another-secret-key-of-fifty-characters-or-so-0000000", settings.SECRET_KEY
    assert isinstance(asked(find_member(asks, workspace.tenant))[0], Unauthenticated)
    settings.SECRET_KEY_FALLBACKS = [old]
    assert asked(find_member(asks, workspace.tenant))[0].user == workspace.owner


def test_a_late_or_ended_session_is_nobody(workspace):
    from django.contrib.sessions.models import Session

    asks = by_session(workspace, workspace.owner)
    assert asked(find_member(asks, workspace.tenant))[0].by_session
    with workspace.scope():
        Session.objects.update(expire_date=timezone.now())
    assert isinstance(asked(find_member(asks, workspace.tenant))[0], Unauthenticated)


@pytest.mark.parametrize("lost", ["_auth_user_backend", HASH_SESSION_KEY, "tenant_id", "_auth_user_id"])
def test_a_session_without_one_of_its_facts_is_nobody(workspace, lost):
    from django.contrib.sessions.backends.db import SessionStore

    asks = by_session(workspace, workspace.owner)
    with workspace.scope():
        session = SessionStore(asks.COOKIES["sessionid"])
        del session[lost]
        session.save()
    assert isinstance(asked(find_member(asks, workspace.tenant))[0], Unauthenticated)


@pytest.mark.parametrize("cookie", ["\x00aaaaaaaaaaaa", "a" * 5_000, "../../etc", "é" * 9, "short", "' OR 1=1 --"])
def test_a_cookie_that_can_be_no_session_asks_nothing(acme, cookie):
    asks = request(acme.host)
    asks.COOKIES["sessionid"] = cookie
    error, statements = asked(find_member(asks, acme.tenant))
    assert isinstance(error, Unauthenticated)
    assert statements == []


@pytest.mark.parametrize("name", ['t"; DROP SCHEMA public; --', "t_1.users", "", "T_1", "t_1\x00"])
def test_a_schema_of_another_form_than_ours_is_refused_before_any_sql(name):
    odd = Tenant(pk=1, slug="odd", schema_name=name)
    with pytest.raises(ValueError, match="no name of a schema"):
        asked(find_member(request("odd.localhost", "tk_x"), odd))


@pytest.mark.parametrize("engine", ["signed_cookies", "cache", "cached_db", "file"])
def test_sessions_that_the_plane_could_not_read_are_refused_by_a_check(settings, engine):
    def found():
        return {problem.id for problem in run_checks() if problem.id == "tenants.E004"}

    assert found() == set()
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    assert found() == {"tenants.E004"}
