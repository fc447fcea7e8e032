"""Which host leads where: the contract's table, and the tricks that are tried on it."""

import pytest
from django.test import Client
from django.utils import timezone

from tenants.hosts import host_for
from tenants.http import API_PREFIX
from tenants.users.keys import digest
from tests.support.factories import WorkspaceFactory
from tests.support.plane import PlaneClient

pytestmark = pytest.mark.usefixtures("app")


def get(path, host, **headers):
    return Client(headers={"host": host, **headers}).get(path)


def revoke(workspace, key):
    from tenants.users.models import ApiKey

    with workspace.scope():
        ApiKey.objects.get(digest=digest(key)).revoke()


@pytest.mark.parametrize("host", ["acme.localhost", "acme.localhost:8000", "ACME.LocalHost", "acme.localhost."])
def test_a_tenants_host_in_any_spelling_leads_to_its_log_in(acme, host):
    response = get("/", host)
    assert response.status_code == 302
    assert response["Location"].startswith("/login/")


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "LOCALHOST", "localhost."])
def test_the_bare_host_shows_the_landing_page(host):
    response = get("/", host)
    assert response.status_code == 200
    assert b"/signup/" in response.content


@pytest.mark.parametrize(
    "host",
    [
        "nobody.localhost", "www.acme.localhost", "acme.localhost..", "acme.localhost.evil.com", "acme", "127.0.0.1",
        "evil.com", "t_1.localhost", "public.localhost", "a b.localhost", "acme.localhost@evil.com", "[::1]",
    ],
)  # fmt: skip
def test_an_unknown_host_is_404_and_never_public(acme, host):
    assert get("/", host).status_code == 404
    response = get("/api/budget/", host)
    assert response.status_code == 404
    assert response.json()["error"] == "not_found"


@pytest.mark.parametrize("host", ["localhost", "acme.localhost", "nobody.localhost", "127.0.0.1"])
def test_health_answers_on_any_host_before_hosts_are_looked_at(host):
    assert get("/healthz", host).status_code == 200


def test_header_and_host_that_disagree_are_a_conflict(acme, globex):
    key = acme.key()
    for headers in ({}, {"authorization": f"Bearer {key}"}):
        response = get("/api/budget/", acme.host, **{"x-tenant-id": "globex", **headers})
        assert (response.status_code, response.json()["error"]) == (400, "tenant_conflict")
    assert get("/", acme.host, **{"x-tenant-id": "globex"}).status_code == 400


@pytest.mark.parametrize("auth", ["", "Bearer ", "Basic abc", "Bearer tk_nonsense", "an old key"])
def test_the_bare_host_asks_for_a_tenant_where_neither_key_nor_header_names_one(acme, auth):
    headers = {"host": "localhost", "authorization": f"Bearer {acme.old_key()}" if auth == "an old key" else auth}
    client, plane = Client(headers=headers), PlaneClient(headers=headers)
    answers = [client.get(path) for path in ("/api/budget/", "/api/budget/acme/", "/api/budget/nobody/")]
    for body in ("{}", '{"prompt": "x"}', "{"):
        answers.append(client.post("/api/summarize/", body, content_type="application/json"))
        answers.append(plane.post("/api/chat/", body))
    for response in answers:
        assert (response.status_code, response.json()["error"]) == (400, "tenant_required")


def test_a_call_without_its_last_slash_is_404_and_not_sent_elsewhere(acme):
    for api in (acme.api(), acme.api(bare=True)):
        response = api.post("/api/chat", {"prompt": "hello"})
        assert (response.status_code, response.json()["error"]) == (404, "not_found")


def test_an_unknown_path_of_the_api_is_404_on_either_host(acme):
    for host in ("localhost", acme.host):
        assert get("/api/nothing/", host).json()["error"] == "not_found"


def test_the_header_opens_nothing_without_that_tenants_own_key(acme, globex, alice):
    foreign, revoked, expired = globex.key(), acme.key(), acme.key(expires_at=timezone.now())
    revoke(acme, revoked)
    answers = []
    for host in ("localhost", acme.host):
        for slug in ("acme",) if host != "localhost" else ("acme", "nobody", "", "../acme", "acme,globex"):
            keys = (foreign, globex.old_key(), revoked, expired, "tk_nonsense", "")
            for auth in ("", "Basic abc", *(f"Bearer {key}" for key in keys)):
                client = acme.client(alice) if host == acme.host else Client(headers={"host": host})
                headers = {"x-tenant-id": slug, **({"authorization": auth} if auth else {})}
                answers.append(client.get("/api/budget/", headers=headers))
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1


def test_on_its_own_host_a_stranger_is_401(acme):
    response = get("/api/budget/", acme.host)
    assert (response.status_code, response.json()["error"]) == (401, "unauthenticated")


def test_a_key_opens_its_tenant_by_host_and_by_header(acme):
    key, old = acme.key(), acme.old_key()
    for api in (
        acme.api(key),
        acme.api(key, bare=True),
        acme.api(key, alone=True),
        acme.api(old),
        acme.api(old, bare=True),
    ):
        response = api.get("/api/budget/")
        assert response.status_code == 200
        assert response.json()["tenant"] == "acme"


def test_a_key_alone_on_the_bare_host_opens_the_api_and_no_page(acme):
    headers = {"host": "localhost", "authorization": f"Bearer {acme.key()}"}
    assert b"/signup/" in Client(headers=headers).get("/").content
    assert Client(headers=headers).get("/budget/").status_code == 404


def test_one_answer_whatever_makes_a_key_open_nothing_on_the_bare_host(acme, globex):
    """Unknown, foreign with a header, revoked, expired, wrong: a stranger learns nothing, at web and at the plane."""
    revoked, expired = acme.key(), acme.key(expires_at=timezone.now())
    revoke(acme, revoked)
    brand, _, rest = acme.key().split("_", 2)
    tried = [(f"{brand}_{'0' * 12}_{rest}", {}), (f"{brand}_{globex.tenant.public_id}_{rest}", {}),
             (revoked, {}), (expired, {}), (acme.key()[:-9] + "A" * 9, {}),
             (globex.key(), {"x-tenant-id": "acme"}), (acme.key(), {"x-tenant-id": "nobody"})]  # fmt: skip
    answers = []
    for key, named in tried:
        headers = {"host": "localhost", "authorization": f"Bearer {key}", **named}
        answers.append(Client(headers=headers).get("/api/budget/"))
        answers.append(PlaneClient(headers=headers).post("/api/chat/", '{"prompt": "x"}'))
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1


def test_the_header_agreeing_with_the_host_needs_the_key_too(acme, alice):
    client = acme.client(alice)
    assert client.get("/api/budget/").status_code == 200
    assert client.get("/api/budget/", headers={"x-tenant-id": "acme"}).status_code == 401


def test_answers_vary_on_what_chose_them_and_are_kept_by_nobody(acme):
    for response in (acme.api().get("/api/budget/"), get("/login/", acme.host), get("/api/budget/", acme.host)):
        assert {"Host", "X-Tenant-ID", "Authorization", "Cookie"} <= set(response["Vary"].split(", "))
        assert response["Cache-Control"] == "private, no-store"


def test_no_answer_of_the_api_names_a_trace_or_a_module(acme):
    response = get(f"{API_PREFIX}budget/globex/", acme.host)
    assert b"Traceback" not in response.content


@pytest.fixture
def moved(app):
    """A workspace that was called something else before, and its old host."""
    workspace = WorkspaceFactory()
    was = host_for(f"{workspace.slug}-was")
    workspace.tenant.domains.create(domain=was, is_primary=False)
    return workspace, was


def test_a_page_at_an_old_address_leads_to_the_same_one_at_the_present(moved):
    workspace, was = moved
    for path in ("/", "/login/?next=/budget/", "/c/7/?a=%C3%A9&b=/", "/nothing/"):
        response = get(path, was)
        assert (response.status_code, response["Location"]) == (302, f"http://{workspace.host}:8000{path}")
    client = Client(headers={"host": was})
    assert client.head("/budget/?x=1")["Location"].endswith("/budget/?x=1")
    # What was typed on a page that is still open there is not thrown away.
    assert client.post("/login/", {"email": "a@b.example", "password": "x"}).status_code == 400
    assert get("/login/", workspace.host).status_code == 200


def test_programs_go_on_at_an_old_address_and_under_an_old_name(moved, globex):
    workspace, was = moved
    key, old_slug = workspace.key(), was.partition(".")[0]
    ways = [{"host": was}, {"host": "localhost", "x-tenant-id": old_slug},
            {"host": workspace.host, "x-tenant-id": old_slug}, {"host": was, "x-tenant-id": workspace.slug},
            {"host": was, "x-tenant-id": old_slug}]  # fmt: skip
    for headers in ways:
        client = Client(headers={**headers, "authorization": f"Bearer {key}"})
        assert client.get("/api/budget/").json()["tenant"] == workspace.slug
        plane = PlaneClient(headers={**headers, "authorization": f"Bearer {key}"})
        assert plane.post("/api/chat/", "{").json()["error"] == "invalid"
        foreign = {**headers, "authorization": f"Bearer {globex.key()}"}
        assert Client(headers=foreign).get("/api/budget/").status_code == 401
    for headers in ({"host": was, "x-tenant-id": "globex"}, {"host": globex.host, "x-tenant-id": old_slug}):
        assert Client(headers=headers).get("/api/budget/").json()["error"] == "tenant_conflict"


def test_an_alias_that_is_primary_is_no_circle(moved):
    """Where an operator has made another host the primary one, neither leads to the other for ever."""
    workspace, _ = moved
    workspace.tenant.domains.update(is_primary=False)
    assert get("/login/", workspace.host).status_code == 200
