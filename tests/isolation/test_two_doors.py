"""The contract's table of hosts and credentials, at both doors over sockets: web and the plane answer alike.

What web serves is a call of its own (the budget page's API), what the plane serves a view that buys nothing, at the
same address. globex, the neighbour, is in the room: its key, its session and its name are tried at acme.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest

from tests.support.plane import PlaneProcess
from tests.support.web import WebProcess

pytestmark = pytest.mark.slow

PATH = "/api/budget/"
ACME_HOSTS = ["acme.localhost", "ACME.LocalHost", "acme.localhost."]
BARE_HOSTS = ["localhost", "LOCALHOST", "localhost."]
STRANGE_HOSTS = ["nobody.localhost", "www.acme.localhost", "acme.localhost..", "acme.localhost.evil.com", "acme",
                 "127.0.0.1", "evil.com", "public.localhost", "acme.localhost@evil.com", "[::1]"]  # fmt: skip
FOREIGN_NAMES = ["globex", "nobody", "", "../acme", "acme,globex", "public", "acme."]


@pytest.fixture(scope="module")
def doors(app, database_url, authority):
    parts = {"database_url": database_url, "authority": authority}
    plane = PlaneProcess(**parts, DJANGO_SETTINGS_MODULE="tests.support.plane_settings")
    with WebProcess(**parts, workers=1, threads=4) as web, plane:
        yield web, plane


@pytest.fixture
def ask(doors):
    """The answers of both doors to one request, as (status, error, tenant); they must not differ."""

    def ask(host, *, method="GET", path=PATH, session=None, csrf=None, **headers):
        if session is not None:
            headers["cookie"] = "; ".join(f"{name}={cookie.value}" for name, cookie in session.cookies.items())
        if csrf is not None:
            headers["x-csrftoken"] = csrf
        answers = []
        for door in doors:
            url = f"http://127.0.0.1:{door.port}{path}"
            sent = {"Host": host.replace("PORT", str(door.port)), **headers}
            answers.append(httpx.request(method, url, headers=sent, timeout=20, trust_env=False))
        web, plane = answers
        assert web.status_code == plane.status_code, (web.text, plane.text)
        if web.status_code >= 400:
            assert web.content == plane.content
            for name in ("Content-Type", "Cache-Control", "WWW-Authenticate", "Retry-After"):
                assert web.headers.get(name) == plane.headers.get(name), name
        else:
            assert web.json()["tenant"] == plane.json()["tenant"]
        for answer in answers:
            assert {"Host", "X-Tenant-ID", "Authorization", "Cookie"} <= set(re.split(", *", answer.headers["Vary"]))
        body = plane.json()
        return plane.status_code, body.get("error"), body.get("tenant")

    return ask


def bearer(key):
    return {"authorization": f"Bearer {key}".strip()}


def revoked_key(workspace):
    from tenants.users.models import ApiKey

    key = workspace.key()
    with workspace.scope():
        ApiKey.objects.latest("pk").revoke()
    return key


@pytest.fixture
def keys(acme, globex):
    """Keys, and what looks like one, that open nothing at acme."""
    return ["", "tk_nonsense", "tk_" + "x" * 250, globex.key(), revoked_key(acme), f"{acme.key()}x"]


OPENED = (200, None, "acme")
STRANGER = (401, "unauthenticated", None)
NOWHERE = (404, "not_found", None)


@pytest.mark.parametrize("host", [*ACME_HOSTS, "acme.localhost:PORT"])
def test_on_its_own_host_a_key_or_a_session_opens(ask, acme, globex, alice, host):
    assert ask(host, **bearer(acme.key())) == OPENED
    assert ask(host, session=acme.client(alice)) == OPENED
    assert ask(host, **bearer(acme.key()), **{"x-tenant-id": "Acme"}) == OPENED


@pytest.mark.parametrize("host", ACME_HOSTS)
def test_on_its_own_host_nothing_else_opens(ask, acme, globex, alice, bob, keys, host):
    assert ask(host) == STRANGER
    assert ask(host, session=globex.client(bob)) == STRANGER
    for key in keys:
        assert ask(host, **bearer(key)) == STRANGER
        # With a key cookies do not count.
        assert ask(host, session=acme.client(alice), **bearer(key)) == STRANGER
    assert ask(host, authorization=f"Basic {acme.key()}") == STRANGER
    assert ask(host, authorization=acme.key()) == STRANGER


@pytest.mark.parametrize("host", [*BARE_HOSTS, "localhost:PORT"])
def test_on_the_bare_host_the_header_names_and_the_key_opens(ask, acme, globex, alice, keys, host):
    named = {"x-tenant-id": "acme"}
    assert ask(host, **named, **bearer(acme.key())) == OPENED
    assert ask(host, **named) == STRANGER
    assert ask(host, **named, session=acme.client(alice)) == STRANGER
    for key in keys:
        assert ask(host, **named, **bearer(key)) == STRANGER


def test_a_name_that_is_known_answers_like_one_that_is_not(ask, acme, globex, keys):
    for name in FOREIGN_NAMES:
        for key in (*keys[:3], acme.key()):
            assert ask("localhost", **{"x-tenant-id": name}, **bearer(key)) == STRANGER
        assert ask("localhost", **{"x-tenant-id": name}) == STRANGER


@pytest.mark.parametrize("host", [*BARE_HOSTS, "localhost:PORT"])
def test_on_the_bare_host_a_key_that_names_its_tenant_opens_alone(ask, acme, globex, bob, host):
    key = acme.key()
    assert ask(host, **bearer(key)) == OPENED
    # With a key cookies do not count.
    assert ask(host, **bearer(key), session=globex.client(bob)) == OPENED
    brand, _, rest = key.split("_", 2)
    for other in ("0" * 12, globex.tenant.public_id):
        assert ask(host, **bearer(f"{brand}_{other}_{rest}")) == STRANGER
    assert ask(host, **bearer(revoked_key(acme))) == STRANGER
    assert ask(host, **bearer(key[:-9] + "A" * 9)) == STRANGER
    assert ask(host, **bearer(key), **{"x-tenant-id": "globex"}) == STRANGER


def test_the_bare_host_asks_for_a_tenant_where_nothing_names_one(ask, acme, alice):
    for given in ({}, bearer(acme.old_key()), bearer("tk_nonsense"), {"session": acme.client(alice)}):
        assert ask("localhost", **given) == (400, "tenant_required", None)


def test_a_header_that_disagrees_with_its_host_is_a_conflict(ask, acme, globex, bob):
    for given in ({}, bearer(acme.key()), bearer(globex.key()), {"session": globex.client(bob)}):
        for name in FOREIGN_NAMES[:4]:
            assert ask("acme.localhost", **{"x-tenant-id": name}, **given) == (400, "tenant_conflict", None)


def test_a_header_that_agrees_with_its_host_needs_the_key_too(ask, acme, globex, alice, keys):
    named = {"x-tenant-id": "acme"}
    assert ask("acme.localhost", **named, session=acme.client(alice)) == STRANGER
    for key in keys:
        assert ask("acme.localhost", **named, **bearer(key)) == STRANGER


@pytest.mark.parametrize("host", STRANGE_HOSTS)
def test_an_unknown_host_is_404_whatever_it_carries(ask, acme, alice, host):
    key = acme.key()
    for given in ({}, bearer(key), {"x-tenant-id": "acme", **bearer(key)}, {"session": acme.client(alice)}):
        assert ask(host, **given) == NOWHERE


@pytest.mark.parametrize("cookie", ["sessionid=", "sessionid=../../etc", f"sessionid={'a' * 5_000}", "sessionid=a b"])
def test_a_cookie_of_nonsense_is_nobody(ask, acme, cookie):
    assert ask("acme.localhost", cookie=cookie) == STRANGER


def test_an_address_that_is_not_there_is_404_to_anyone(ask, acme):
    for given in ({}, bearer(acme.key())):
        for host in ("acme.localhost", "localhost"):
            assert ask(host, path="/api/nothing/", **given) == NOWHERE


def test_another_charset_is_400(ask, acme):
    kind = {"content-type": "application/json; charset=hex"}
    assert ask("acme.localhost", **kind, **bearer(acme.key())) == (400, "invalid", None)


def test_the_state_of_a_workspace_is_a_gate_at_both_doors(ask, app):
    from tenants.models import Tenant
    from tests.support.factories import WorkspaceFactory

    workspace = WorkspaceFactory()
    by_host = (workspace.host, bearer(workspace.key()))
    by_name = ("localhost", {**bearer(workspace.old_key()), "x-tenant-id": workspace.slug})
    by_key = ("localhost", bearer(workspace.key()))
    for status, answer in (
        ("pending", (503, "tenant_not_ready", None)),
        ("suspended", (403, "account_on_hold", None)),
    ):
        Tenant.objects.filter(pk=workspace.tenant.pk).update(status=status)
        for host, headers in (by_host, by_name, by_key):
            assert ask(host, **headers) == answer
        # What a stranger gets tells nothing of the state, where the name alone is known.
        assert ask("localhost", **{"x-tenant-id": workspace.slug}) == STRANGER
    # A closed one is as unknown as one that never was, to its own key too.
    Tenant.objects.filter(pk=workspace.tenant.pk).update(status="closed")
    assert ask(by_host[0], **by_host[1]) == ask("never-was.localhost", **by_host[1]) == (404, "not_found", None)
    assert ask(by_name[0], **by_name[1]) == STRANGER


def test_a_workspace_without_its_schema_is_503_and_never_public(ask, app):
    from django.db import connection

    from tests.support.factories import WorkspaceFactory

    workspace = WorkspaceFactory()
    key = workspace.key()
    with connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA "{workspace.tenant.schema_name}" CASCADE')
        for _ in range(2):
            assert ask(workspace.host, **bearer(key)) == (503, "tenant_not_ready", None)
            assert ask("localhost", **{"x-tenant-id": workspace.slug}, **bearer(key)) == STRANGER
            # An empty schema of that name lets nobody fall through to public either.
            cursor.execute(f'CREATE SCHEMA IF NOT EXISTS "{workspace.tenant.schema_name}"')


def test_a_workspace_that_the_serving_role_may_not_use_is_503_and_never_public(ask, app):
    """Postgres leaves such a schema out of the search path without an error."""
    if not app.SERVING_ROLE:
        pytest.skip("DATABASE_URL alone is one role for all")
    from tests.support.factories import WorkspaceFactory
    from tests.support.jobs import rows

    workspace = WorkspaceFactory()
    key = workspace.key()
    rows(f'REVOKE USAGE ON SCHEMA "{workspace.tenant.schema_name}" FROM {app.SERVING_ROLE}')
    assert ask(workspace.host, **bearer(key)) == (503, "tenant_not_ready", None)
    assert ask("localhost", **{"x-tenant-id": workspace.slug}, **bearer(key)) == STRANGER


def test_a_session_that_writes_needs_its_token(ask, acme, globex, alice, bob):
    session = acme.client(alice)
    other = {"method": "POST", "session": session}
    assert ask("acme.localhost", path="/api/summarize/", **other) == (403, "csrf_failed", None)
    wrong = globex.client(bob).cookies["csrftoken"].value
    assert ask("acme.localhost", path="/api/summarize/", csrf=wrong, **other) == (403, "csrf_failed", None)
    token = session.cookies["csrftoken"].value
    passed = ask("acme.localhost", path="/api/summarize/", csrf=token, **other)
    assert passed == (400, "invalid", None)
    evil = {"origin": "http://globex.localhost"}
    assert ask("acme.localhost", path="/api/summarize/", csrf=token, **other, **evil) == (403, "csrf_failed", None)
    bearer_needs_none = ask("acme.localhost", path="/api/summarize/", method="POST", **bearer(acme.key()))
    assert bearer_needs_none == (400, "invalid", None)


def test_a_workspace_that_is_being_migrated_makes_nobody_else_wait(doors, acme, globex, database_url):
    """A migration locks its tables. Anybody could name it, with any key, in each thread or connection of a door."""
    key = globex.key()
    with psycopg.connect(database_url) as migrating, ThreadPoolExecutor(12) as strangers:
        migrating.execute(f"LOCK TABLE {acme.tenant.schema_name}.users_apikey IN ACCESS EXCLUSIVE MODE")
        for door in doors:

            def ask(workspace, key, door=door):
                headers = {"Host": "localhost", "X-Tenant-ID": workspace.slug, **bearer(key)}
                return httpx.get(f"http://127.0.0.1:{door.port}{PATH}", headers=headers, timeout=20, trust_env=False)

            asking = [strangers.submit(ask, acme, "tk_wrong") for _ in range(5)]
            time.sleep(0.2)
            assert ask(globex, key).json()["tenant"] == "globex"
            assert {asked.result().status_code for asked in asking} == {503}
