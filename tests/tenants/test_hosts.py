"""Which host leads where: the contract's table, and the tricks that are tried on it."""

import pytest
from django.test import Client

from tenants.http import API_PREFIX
from tests.support.plane import PlaneClient

pytestmark = pytest.mark.usefixtures("app")


def get(path, host, **headers):
    return Client(headers={"host": host, **headers}).get(path)


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


def test_the_bare_host_without_a_header_asks_for_a_tenant(acme):
    headers = {"host": "localhost", "authorization": f"Bearer {acme.key()}"}
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
    foreign, revoked = globex.key(), acme.key()
    with acme.scope():
        from tenants.users.models import ApiKey

        ApiKey.objects.get(prefix=revoked[:11], digest__isnull=False, revoked_at=None, name="test", user=acme.owner,
                           pk=ApiKey.objects.latest("pk").pk).revoke()  # fmt: skip
    answers = []
    for host in ("localhost", acme.host):
        for slug in ("acme",) if host != "localhost" else ("acme", "nobody", "", "../acme", "acme,globex"):
            for auth in ("", "Bearer ", f"Bearer {foreign}", f"Bearer {revoked}", "Bearer tk_nonsense", "Basic abc"):
                client = acme.client(alice) if host == acme.host else Client(headers={"host": host})
                headers = {"x-tenant-id": slug, **({"authorization": auth} if auth else {})}
                answers.append(client.get("/api/budget/", headers=headers))
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1


def test_on_its_own_host_a_stranger_is_401(acme):
    response = get("/api/budget/", acme.host)
    assert (response.status_code, response.json()["error"]) == (401, "unauthenticated")


def test_a_key_opens_its_tenant_by_host_and_by_header(acme):
    key = acme.key()
    for api in (acme.api(key), acme.api(key, bare=True)):
        response = api.get("/api/budget/")
        assert response.status_code == 200
        assert response.json()["tenant"] == "acme"


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
