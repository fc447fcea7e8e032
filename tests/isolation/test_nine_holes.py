"""The nine ways in which django-tenants lets tenants meet: each is shown on the installed version, then closed.

What is shown is done with django-tenants alone, or with our guard taken out; if one of those fails, the danger is
gone and its guard can go.
"""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
from asgiref.sync import sync_to_async
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.core.cache.backends.locmem import LocMemCache
from django.db import ProgrammingError, connection, connections
from django.http import HttpResponse, StreamingHttpResponse
from django.test import Client, RequestFactory
from django_tenants.middleware import TenantMainMiddleware
from django_tenants.models import TenantMixin
from django_tenants.postgresql_backend.base import is_valid_schema_name
from django_tenants.utils import schema_exists

from billing.health import demo_ready, jobs_ready, keys_ready
from billing.provisioning import sign_up
from tenants import services
from tenants.context import NoContext, WrongSchema, bind, current_tenant, public_scope, tenant_scope
from tenants.health import database_ready
from tenants.http import TenantNotReady
from tenants.middleware import TenantMiddleware
from tenants.models import Tenant
from tenants.slugs import slug_problem
from tenants.threads import carrying
from tenants.users.keys import create_key
from tenants.users.models import ApiKey, User
from tests.support.cast import PASSWORD
from tests.support.factories import ConversationFactory, MessageFactory

pytestmark = pytest.mark.usefixtures("app")


@contextmanager
def bare(tenant):
    """As django-tenants enters a tenant: the connection alone."""
    connection.set_tenant(tenant)
    try:
        yield
    finally:
        connection.set_schema_to_public()


@pytest.fixture
def unguarded(monkeypatch):
    """django-tenants' backend, in effect: no statement is looked at, nor whether the schema is there."""
    monkeypatch.setattr("tenants.backend.base.refuse_another_schema", lambda connection: None)
    monkeypatch.delattr("tenants.backend.base.DatabaseWrapper._handle_search_path")


@pytest.fixture(scope="module")
def operator(_cast):
    """A user of the public schema, whom no tenant may see."""
    with public_scope():
        return User.objects.create_user("operator-of-holes@example.com", PASSWORD, is_superuser=True)


@pytest.fixture
def half_made(app):
    """An account that has been signed up and not provisioned. Gone afterwards: other tests look for such accounts."""
    account = sign_up(name="Half", slug="half-made", email="a@half.example", password=PASSWORD, plan="trial")
    yield account
    with connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA IF EXISTS "{account.tenant.schema_name}" CASCADE')
    account.delete()
    account.tenant.delete()


@pytest.fixture
def schemaless(half_made):
    """A tenant that counts as active and whose schema is not there, as a dropped one's is not."""
    services.activate(half_made.tenant)
    return half_made.tenant


@contextmanager
def in_state(workspace, status):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(status=status)
    try:
        yield
    finally:
        Tenant.objects.filter(pk=workspace.tenant.pk).update(status=Tenant.Status.ACTIVE)


# --- H1: a tenant without its schema is served public's rows ----------------------------------------------------------


def test_h1_shown_a_tenant_without_a_schema_reads_and_writes_publics_rows(schemaless, operator, unguarded):
    with bare(schemaless):
        assert User.objects.filter(pk=operator.pk).exists()
        User.objects.create(email="lost@half.example")
    assert User.objects.filter(email="lost@half.example").exists()


def test_h1_closed_the_statement_that_enters_a_tenant_finds_that_its_schema_is_not_there(schemaless, operator):
    for entered in (bare, tenant_scope):
        with entered(schemaless), pytest.raises(TenantNotReady):
            User.objects.filter(pk=operator.pk).exists()
    assert User.objects.filter(pk=operator.pk).exists()


def test_h1_closed_such_a_tenant_is_503_to_everyone(schemaless, operator, acme):
    client = Client(headers={"host": f"{schemaless.slug}.localhost"})
    page = client.post("/login/", {"email": operator.email, "password": PASSWORD})
    assert page.status_code == 503
    response = client.get("/api/budget/")
    assert (response.status_code, response.json()["error"]) == (503, "tenant_not_ready")
    assert int(response["Retry-After"]) > 0
    # By header there is no key that could prove anything, so it answers as for a stranger.
    named = {"host": "localhost", "x-tenant-id": schemaless.slug, "authorization": f"Bearer {acme.key()}"}
    assert Client(headers=named).get("/api/budget/").status_code == 401


def test_h1_closed_a_tenant_entered_alone_has_no_public_to_fall_back_to(schemaless):
    with tenant_scope(schemaless, alone=True), pytest.raises(ProgrammingError, match="does not exist"):
        User.objects.exists()


def test_h1_closed_a_tenant_that_is_not_ready_is_503_even_with_a_schema(acme):
    key = acme.key()
    with in_state(acme, Tenant.Status.PENDING):
        assert acme.client().get("/").status_code == 503
        for api in (acme.api(key), acme.api(key, bare=True)):
            assert api.get("/api/budget/").json()["error"] == "tenant_not_ready"
        assert Client(headers={"host": "localhost", "x-tenant-id": "acme"}).get("/api/budget/").status_code == 401


def test_h1_closed_an_operators_key_opens_no_workspace_that_is_still_being_built(schemaless, operator):
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE SCHEMA "{schemaless.schema_name}"')
    key, secret = create_key(operator, name="operator")
    headers = {"host": "localhost", "x-tenant-id": schemaless.slug, "authorization": f"Bearer {secret}"}
    assert Client(headers=headers).get("/api/budget/").status_code == 401
    assert ApiKey.objects.get(pk=key.pk).last_used_at is None


def test_a_suspended_tenant_is_on_hold(acme):
    key = acme.key()
    with in_state(acme, Tenant.Status.SUSPENDED):
        response = acme.api(key).get("/api/budget/")
    assert (response.status_code, response.json()["error"]) == (403, "account_on_hold")


# --- H2: a schema's name that is used again shows the old customer's rows ---------------------------------------------


def test_h2_shown_a_schema_that_exists_is_adopted_with_its_rows(acme, alice):
    successor = Tenant(slug="successor", schema_name=acme.tenant.schema_name)
    assert successor.create_schema(check_if_exists=True) is False  # and no error
    with bare(successor):
        assert User.objects.filter(email=alice.email).exists()


def test_h2_closed_a_schema_is_never_adopted(acme):
    successor = services.register_tenant("successor", name="Successor")
    successor.schema_name = acme.tenant.schema_name
    with pytest.raises(services.SchemaNotOurs):
        services.ensure_schema(successor)
    successor.delete()


def test_h2_closed_the_next_customer_of_a_slug_has_nothing_of_the_first(app):
    account = {"name": "Reused", "slug": "reused", "password": PASSWORD, "plan": "trial"}
    first = sign_up(**account, email="old@example.com")
    Tenant.objects.filter(pk=first.tenant.pk).update(slug="reused-closed")
    first.tenant.domains.all().delete()
    second = sign_up(**account, email="new@example.com")
    assert second.tenant.schema_name != first.tenant.schema_name
    assert second.subject_tenant != first.subject_tenant
    for made in (first, second):  # other tests look for what is not provisioned
        made.delete()
        made.tenant.delete()


# --- H3: `with tenant:` remembers where to go back to for all threads at once -----------------------------------------


def overlapping(acme, globex, work):
    """`work(mine, other, met)` on two threads, for acme and for globex; what each gave."""
    met = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        working = [threads.submit(carrying(work), *pair, met) for pair in [(acme, globex), (globex, acme)]]
    return [one.result() for one in working]


def test_h3_shown_overlapping_threads_end_on_each_others_tenant(acme, globex, monkeypatch):
    monkeypatch.setattr(Tenant, "activate", TenantMixin.activate)
    monkeypatch.setattr(Tenant, "__enter__", TenantMixin.__enter__)

    def work(mine, other, met):
        with mine.tenant:
            met.wait(10)
            with other.tenant:
                met.wait(10)
            return connection.schema_name == mine.tenant.schema_name

    assert False in overlapping(acme, globex, work)
    Tenant._previous_tenant.clear()


def test_h3_closed_a_tenant_is_no_context_manager(acme):
    with pytest.raises(TypeError, match="tenant_scope"), acme.tenant:
        pass
    with pytest.raises(TypeError, match="tenant_scope"):
        acme.tenant.activate()


def test_h3_closed_overlapping_threads_come_back_each_to_its_own_tenant(acme, globex):
    def work(mine, other, met):
        for _ in range(30):
            with tenant_scope(mine.tenant):
                met.wait(10)
                with tenant_scope(other.tenant):
                    met.wait(10)
                assert (current_tenant(), connection.schema_name) == (mine.tenant, mine.tenant.schema_name)
            assert (current_tenant(), connection.schema_name) == (None, "public")

    overlapping(acme, globex, work)


# --- H4: a thread stays in the tenant of its last request -------------------------------------------------------------


def test_h4_shown_the_thread_is_left_in_the_tenant_after_the_answer(acme):
    request = RequestFactory(headers={"host": acme.host}).get("/")
    try:
        TenantMainMiddleware(lambda request: HttpResponse())(request)
        assert connection.schema_name == acme.tenant.schema_name
    finally:
        connection.set_schema_to_public()


def test_h4_closed_the_thread_is_on_public_after_every_answer(acme, alice):
    client = acme.client(alice)
    for path in ("/", "/nothing/", "/api/budget/", "/static/site.css"):
        client.get(path)
        assert (current_tenant(), connection.schema_name) == (None, "public")


def test_h4_closed_too_for_middleware_above_which_would_write_the_members_row_over_an_operators(acme, settings):
    """`request.user.save()` after the answer: the operator with the member's number had her password then."""
    settings.EXPECT_DEMO = True
    member, said = acme.owner, []

    def served(request):
        for look in (database_ready, keys_ready, demo_ready, jobs_ready):  # as /readyz does on any thread
            look()
        answer = TenantMiddleware(lambda request: HttpResponse())(request)
        try:
            member.save()
        except NoContext as exc:
            said.append(str(exc))
        return answer

    def thread_of_web():
        try:
            for host in (acme.host, acme.host, "localhost"):
                served(RequestFactory(headers={"host": host}).get("/"))
                streamed = TenantMiddleware(lambda request: StreamingHttpResponse([b"words"]))
                streamed(RequestFactory(headers={"host": host}).get("/")).close()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(thread_of_web).result()
    assert len(said) == 3
    assert all("MIDDLEWARE" in text for text in said)


# --- H5: on an event loop all tenants have one cache ------------------------------------------------------------------


def read_after_a_neighbours_write(make_key, acme, globex):
    """What globex reads of a key that acme wrote, on a loop; and what acme does."""
    cache = LocMemCache(f"h5-{make_key}", {"KEY_FUNCTION": make_key})

    async def requests():
        bind(acme.tenant)
        cache.set("report", "acme's")
        bind(globex.tenant)
        theirs = cache.get("report")
        bind(acme.tenant)
        return theirs, cache.get("report")

    return asyncio.run(requests())


def test_h5_shown_on_a_loop_one_tenant_reads_anothers_entry(acme, globex):
    assert read_after_a_neighbours_write("django_tenants.cache.make_key", acme, globex) == ("acme's", "acme's")


def test_h5_closed_each_tenant_reads_its_own(acme, globex):
    assert read_after_a_neighbours_write("tenants.cache.make_key", acme, globex) == (None, "acme's")


# --- H6: work on another thread reads public --------------------------------------------------------------------------


def emails():
    try:
        return set(User.objects.values_list("email", flat=True))
    finally:
        connections.close_all()


def on_a_bare_thread():
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(emails).result()


def by_to_thread():
    return asyncio.run(asyncio.to_thread(emails))


def by_sync_to_async():
    return asyncio.run(sync_to_async(emails, thread_sensitive=False)())


def by_the_async_orm():
    """On a thread that has an open connection from before: nothing is opened that could be noticed."""

    async def ask():
        await sync_to_async(connection.ensure_connection)()
        try:
            return {email async for email in User.objects.values_list("email", flat=True)}
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(ask())


WAYS = {
    on_a_bare_thread: NoContext,
    by_to_thread: WrongSchema,
    by_sync_to_async: WrongSchema,
    by_the_async_orm: WrongSchema,
}


@pytest.mark.parametrize("way", WAYS)
def test_h6_shown_a_tenants_code_reads_publics_users(unguarded, acme, operator, way):
    with acme.scope():
        assert operator.email in way()


@pytest.mark.parametrize(("way", "error"), WAYS.items())
def test_h6_closed_it_raises(acme, operator, way, error):
    with acme.scope(), pytest.raises(error, match=r"tenants\.threads"):
        way()


# --- H7: a session of one tenant opens another ------------------------------------------------------------------------


@pytest.fixture
def stolen(acme, globex):
    """A browser of acme, signed in, and one of globex with acme's session cookie: their superusers have the same id
    and the same password hash, as cloned seed data has.
    """
    twin = {"pk": 10_000, "email": "twin@example.com", "is_superuser": True}
    with acme.scope():
        mine = User.objects.create(**twin)
    signed_in = acme.client(mine)
    with globex.scope():
        # After the log-in, which sets the password anew: the hash is part of what a session proves.
        User.objects.create(**twin, password=mine.password)
    other = globex.client()
    other.cookies["sessionid"] = signed_in.cookies["sessionid"].value
    yield signed_in, other
    for workspace in (acme, globex):
        with workspace.scope():
            User.objects.filter(pk=10_000).delete()


@pytest.fixture
def shared_store(settings):
    """What settings' check refuses: sessions where all tenants' are."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"


def test_h7_shown_a_session_in_a_shared_store_is_the_neighbours_superuser(shared_store, settings, stolen):
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if not name.endswith(".TenantSessionMiddleware")]
    _, other = stolen
    other.handler.load_middleware()
    assert other.get("/budget/").status_code == 200


def test_h7_closed_a_session_of_one_tenant_means_nothing_at_another(stolen):
    signed_in, other = stolen
    assert other.get("/budget/").status_code == 302
    assert signed_in.get("/budget/").status_code == 200


def test_h7_closed_not_in_a_shared_store_either(shared_store, acme, stolen):
    signed_in, other = stolen
    assert SessionStore(signed_in.cookies["sessionid"].value).load()["tenant_id"] == acme.tenant.pk
    # A page knows no keys: what looks like one must not make it trust the cookie.
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": ""}):
        assert other.get("/budget/", headers=headers).status_code == 302
    assert signed_in.get("/budget/").status_code == 200


def test_h7_closed_session_and_csrf_cookies_are_host_only(acme, alice):
    client = acme.client(alice)
    client.get("/")
    for name in ("sessionid", "csrftoken"):
        assert client.cookies[name]["domain"] == ""


# --- H8: a name of the database's own is taken for a tenant's ---------------------------------------------------------


def test_h8_shown_odd_and_reserved_names_are_schemas_names(app):
    assert all(map(is_valid_schema_name, ["information_schema", "two words", "naïve", "public"]))
    assert Tenant(slug="x", schema_name="information_schema").create_schema(check_if_exists=True) is False


def test_h8_closed_a_schemas_name_comes_from_nobodys_input():
    tenant = services.register_tenant("h8-library", name="information_schema")
    assert tenant.schema_name.startswith("t_")
    assert "library" not in tenant.schema_name
    assert all(map(slug_problem, ["information-schema", "information_schema", "two words", "naïve", "public", "pg-1"]))


# --- H9: killed while it is made, a tenant stays half made ------------------------------------------------------------


class Killed(BaseException):
    pass


def kill(*args, **kwargs):
    raise Killed


def test_h9_shown_a_killed_creation_leaves_a_row_with_half_a_schema_and_saving_again_does_nothing(monkeypatch):
    monkeypatch.setattr(Tenant, "auto_create_schema", True)
    tenant = Tenant(slug="h9-shown", schema_name="t_h9_shown")
    with monkeypatch.context() as patched, suppress(Killed):
        patched.setattr("django_tenants.models.call_command", kill)
        tenant.save()
    tenant = Tenant.objects.get(slug="h9-shown")
    tenant.save()
    assert schema_exists(tenant.schema_name)
    with tenant_scope(tenant, alone=True), pytest.raises(ProgrammingError, match="does not exist"):
        User.objects.exists()
    tenant.delete(force_drop=True)


def test_h9_closed_it_is_503_until_the_next_run_has_finished_it(monkeypatch, half_made, settings):
    """Built by migrations. By the template a schema is there whole or not at all (tests/tenants)."""
    settings.SCHEMA_TEMPLATE = False
    tenant = half_made.tenant
    with monkeypatch.context() as patched, suppress(Killed):
        patched.setattr("tenants.services.migrate_schema", kill)
        services.ensure_schema(tenant)
    client = Client(headers={"host": "half-made.localhost"})
    assert [client.get(path).status_code for path in ("/", "/login/")] == [503, 503]
    services.ensure_schema(tenant)
    with tenant_scope(tenant, alone=True):
        assert not User.objects.exists()


# --- beside the nine: the neighbour's row of the same id --------------------------------------------------------------


def test_globex_cannot_read_acmes_conversation_of_the_same_id(acme, globex, alice, bob):
    with acme.scope():
        secret = ConversationFactory(owner=alice, title="acme only")
        MessageFactory(conversation=secret, text="the plan of acme")
    with globex.scope():
        ConversationFactory._meta.model.objects.filter(pk=secret.pk).delete()
        ConversationFactory(pk=secret.pk, owner=globex.owner, title="globex only")
    assert acme.client(alice).get(f"/c/{secret.pk}/").status_code == 200
    response = globex.client(bob).get(f"/c/{secret.pk}/")
    assert response.status_code == 404
    assert b"acme" not in response.content
