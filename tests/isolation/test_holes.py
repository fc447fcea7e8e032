"""Ways in which django-tenants lets tenants meet, each tried and each closed."""

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.sessions.backends.signed_cookies import SessionStore
from django.db import connection
from django.test import Client

from billing.provisioning import sign_up
from tenants.context import current_tenant, tenant_scope
from tenants.models import Tenant
from tenants.users.models import User
from tests.support.cast import PASSWORD
from tests.support.factories import WorkspaceFactory

pytestmark = pytest.mark.usefixtures("app")


def drop_schema(workspace):
    with connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA "{workspace.tenant.schema_name}" CASCADE')


def test_a_tenant_whose_schema_is_gone_is_503_and_never_sees_public(app):
    workspace = WorkspaceFactory()
    key = workspace.key()
    operator = User.objects.create_user(f"operator-{workspace.slug}@example.com", PASSWORD, is_superuser=True)
    drop_schema(workspace)
    client = workspace.client()
    page = client.post("/login/", {"email": operator.email, "password": PASSWORD})
    assert page.status_code == 503
    response = client.get("/api/budget/")
    assert (response.status_code, response.json()["error"]) == (503, "tenant_not_ready")
    assert int(response["Retry-After"]) > 0
    # By header there is no key left that could prove anything, so it answers as for a stranger.
    assert workspace.api(key, bare=True).get("/api/budget/").status_code == 401


def test_a_tenant_that_is_not_ready_is_503_even_with_a_schema(app):
    workspace = WorkspaceFactory()
    key = workspace.key()
    Tenant.objects.filter(pk=workspace.tenant.pk).update(status=Tenant.Status.PENDING)
    assert workspace.client().get("/").status_code == 503
    for api in (workspace.api(key), workspace.api(key, bare=True)):
        assert api.get("/api/budget/").json()["error"] == "tenant_not_ready"
    assert Client(headers={"host": "localhost", "x-tenant-id": workspace.slug}).get("/api/budget/").status_code == 401


def test_an_operators_key_opens_no_workspace_that_is_still_being_built(app):
    from tenants.users.keys import create_key
    from tenants.users.models import ApiKey

    account = sign_up(name="Half", slug="half-built", email="a@half.example", password=PASSWORD, plan="trial")
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE SCHEMA "{account.tenant.schema_name}"')
    key, secret = create_key(User.objects.create_user("op-half@example.com", PASSWORD), name="operator")
    headers = {"host": "localhost", "x-tenant-id": "half-built", "authorization": f"Bearer {secret}"}
    assert Client(headers=headers).get("/api/budget/").status_code == 401
    assert ApiKey.objects.get(pk=key.pk).last_used_at is None


def test_a_suspended_tenant_is_on_hold(app):
    workspace = WorkspaceFactory()
    key = workspace.key()
    Tenant.objects.filter(pk=workspace.tenant.pk).update(status=Tenant.Status.SUSPENDED)
    response = workspace.api(key).get("/api/budget/")
    assert (response.status_code, response.json()["error"]) == (403, "account_on_hold")


def test_the_next_customer_of_a_slug_gets_a_schema_of_its_own(app):
    first = WorkspaceFactory(slug="reused")
    with first.scope():
        User.objects.create(email="old-secret@example.com")
    Tenant.objects.filter(pk=first.tenant.pk).update(slug="reused-closed")
    first.tenant.domains.all().delete()
    second = WorkspaceFactory(slug="reused", email="new@example.com")
    assert second.tenant.schema_name != first.tenant.schema_name
    assert second.account.subject_tenant != first.account.subject_tenant
    with second.scope():
        assert not User.objects.filter(email="old-secret@example.com").exists()


def test_overlapping_threads_come_back_each_to_its_own_tenant(acme, globex):
    met, problems = threading.Barrier(2), []

    def work(workspace, other):
        try:
            for _ in range(30):
                with tenant_scope(workspace.tenant):
                    met.wait(10)
                    with tenant_scope(other.tenant):
                        met.wait(10)
                    if current_tenant() != workspace.tenant or connection.schema_name != workspace.tenant.schema_name:
                        problems.append(workspace.slug)
                if current_tenant() is not None or connection.schema_name != "public":
                    problems.append("not back on public")
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=pair) for pair in [(acme, globex), (globex, acme)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_thread_that_was_lent_the_tenant_goes_back_to_public(acme, globex):
    """As asyncio.to_thread lends it: the variable comes along, the connection is the thread's own."""

    def work():
        with tenant_scope(acme.tenant):
            return connection.schema_name

    def look():
        try:
            return connection.schema_name
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        with acme.scope():
            assert thread.submit(contextvars.copy_context().run, work).result() == acme.tenant.schema_name
            assert current_tenant() == acme.tenant
        with globex.scope():
            assert thread.submit(contextvars.copy_context().run, look).result() == "public"


@pytest.fixture
def twins(app):
    """Two workspaces, each with a superuser of the same id and the same password hash, as cloned seed data has."""
    first, second = WorkspaceFactory(), WorkspaceFactory()
    with first.scope():
        twin = User.objects.create_user("twin@example.com", PASSWORD, is_superuser=True)

    def stolen():
        """A browser of the first, signed in, and one of the second with the first's session cookie."""
        signed_in = first.client(twin)
        with second.scope():
            User.objects.filter(pk=twin.pk).delete()
            # After the log-in, which sets the password anew: the hash is part of what a session proves.
            User.objects.create(pk=twin.pk, email="twin@example.com", password=twin.password, is_superuser=True)
        other = second.client()
        other.cookies["sessionid"] = signed_in.cookies["sessionid"].value
        return signed_in, other

    return first, stolen


def test_a_session_of_one_tenant_means_nothing_at_another_even_as_superuser(twins):
    _, stolen = twins
    signed_in, other = stolen()
    assert other.get("/budget/").status_code == 302
    assert signed_in.get("/budget/").status_code == 200


# A page knows no keys: what looks like one must not make it trust the cookie.
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": ""}])
def test_a_session_in_a_store_that_tenants_share_is_refused_by_its_tenant(twins, settings, headers):
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    first, stolen = twins
    signed_in, other = stolen()
    assert SessionStore(signed_in.cookies["sessionid"].value).load()["tenant_id"] == first.tenant.pk
    assert other.get("/budget/", headers=headers).status_code == 302
    assert signed_in.get("/budget/").status_code == 200


def test_session_and_csrf_cookies_are_host_only(acme, alice):
    client = acme.client(alice)
    client.get("/")
    for name in ("sessionid", "csrftoken"):
        assert client.cookies[name]["domain"] == ""


def test_the_thread_is_on_public_after_every_answer(acme, alice):
    client = acme.client(alice)
    for path in ("/", "/nothing/", "/api/budget/", "/static/site.css"):
        client.get(path)
        assert current_tenant() is None
        assert connection.schema_name == "public"


def test_globex_cannot_read_acmes_conversation_of_the_same_id(acme, globex, alice, bob):
    from tests.support.factories import ConversationFactory, MessageFactory

    with acme.scope():
        secret = ConversationFactory(owner=alice, title="acme only")
        MessageFactory(conversation=secret, text="the plan of acme")
    with globex.scope():
        from chat.models import Conversation

        Conversation.objects.filter(pk=secret.pk).delete()
        ConversationFactory(pk=secret.pk, owner=globex.owner, title="globex only")
    assert acme.client(alice).get(f"/c/{secret.pk}/").status_code == 200
    response = globex.client(bob).get(f"/c/{secret.pk}/")
    assert response.status_code == 404
    assert b"acme" not in response.content


def test_a_pending_sign_up_answers_503_on_its_host(app):
    account = sign_up(name="Later", slug="later-on", email="a@later.example", password=PASSWORD, plan="trial")
    client = Client(headers={"host": "later-on.localhost"})
    assert client.get("/").status_code == 503
    assert client.get("/login/").status_code == 503
    assert account.tenant.status == Tenant.Status.PENDING
