"""Behind a proxy that does TLS, through the real front: what the proxy says decides whether forms are taken."""

from contextlib import ExitStack

import httpx
import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher

from config.stack.front import Listener
from tenants.users.handoff import issue_token
from tests.support.cast import PASSWORD
from tests.support.front import Front
from tests.support.plane import PlaneProcess
from tests.support.web import WebProcess

pytestmark = pytest.mark.slow

HSTS = "max-age=31536000; includeSubDomains"


@pytest.fixture(scope="module")
def site(app, database_url, authority, tmp_path_factory):
    """Web and plane of https://localhost, a front that trusts the proxy before it, and one that trusts nobody."""
    variables = {"SITE_URL": "https://localhost", "FRONT_TRUSTED_PROXIES": "private_ranges"}
    parts = {"database_url": database_url, "authority": authority, "threads": 4, **variables}
    with ExitStack() as stack:
        web = stack.enter_context(WebProcess(workers=1, **parts))
        plane = stack.enter_context(PlaneProcess(**parts))
        behind = {"web": Listener(port=web.port), "plane": Listener(port=plane.port)}
        trusting, doubting = (
            stack.enter_context(Front(tmp_path_factory.mktemp("front"), FRONT_TRUSTED_PROXIES=proxies, **behind))
            for proxies in ("private_ranges", "")
        )
        yield web, trusting, doubting


class Proxy(httpx.Client):
    """What a TLS proxy sends on for a browser: its Host, and whatever the proxy says of the connection."""

    def __init__(self, front, host: str, **said: str) -> None:
        headers = {"Host": host, "Origin": f"https://{host}", **said}
        super().__init__(base_url=front.url, headers=headers, trust_env=False, timeout=20)

    def send_form(self, path: str, **fields: str) -> httpx.Response:
        """The cookies are kept by hand: they are for https alone, and this leg of the way is plain."""
        page = self.get(path)
        cookies = "; ".join(line.partition(";")[0] for line in page.headers.get_list("Set-Cookie"))
        token = page.cookies["csrftoken"]
        return self.post(path, data={"csrfmiddlewaretoken": token, **fields}, headers={"Cookie": cookies})


HTTPS = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"}


@pytest.fixture
def log_in(acme):
    """The owner's log-in form, with the hash that the stack's own settings make."""
    owner = acme.owner
    owner.password = PBKDF2PasswordHasher().encode(PASSWORD, "salt")
    with acme.scope():
        owner.save(update_fields=["password"])
    return lambda proxy: proxy.send_form("/login/", email=owner.email, password=PASSWORD)


def test_with_the_proxys_word_forms_are_taken_and_browsers_are_held_to_https(site, acme, log_in):
    proxy = Proxy(site[1], acme.host, **HTTPS)
    answer = log_in(proxy)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/")
    assert answer.headers["Strict-Transport-Security"] == HSTS
    assert all("Secure" in line and "Domain" not in line for line in answer.headers.get_list("Set-Cookie"))
    # A neighbour's page and a plain one are other sites than this.
    for origin in ("https://globex.localhost", f"http://{acme.host}", "null"):
        proxy.headers["Origin"] = origin
        assert log_in(proxy).status_code == 403


def test_the_sessions_own_form_is_taken_by_the_plane_too(site, acme, log_in):
    proxy = Proxy(site[1], acme.host, **HTTPS)
    jar = dict(log_in(proxy).cookies)
    headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in jar.items()), "X-CSRFToken": jar["csrftoken"]}
    taken = proxy.post("/api/chat/", json={}, headers=headers)
    assert (taken.status_code, taken.json()["error"]) == (400, "invalid")
    assert taken.headers["Strict-Transport-Security"] == HSTS
    refused = proxy.post("/api/chat/", json={}, headers=headers | {"Origin": "https://globex.localhost"})
    assert (refused.status_code, refused.json()["error"]) == (403, "csrf_failed")


def test_the_hand_off_comes_from_the_https_site(site, acme):
    for origin, status in (("https://localhost", 302), ("http://localhost", 400), ("https://globex.localhost", 400)):
        token = issue_token(acme.tenant, user_id=acme.owner.pk)
        proxy = Proxy(site[1], acme.host, **HTTPS)
        assert proxy.post("/welcome/", data={"token": token}, headers={"Origin": origin}).status_code == status


@pytest.mark.parametrize(("front", "said"), [(1, {}), (2, HTTPS)], ids=["it says nothing", "it is not trusted"])
def test_without_it_they_are_refused_and_the_log_names_what_is_missing(site, acme, log_in, front, said):
    web = site[0]
    before = len(web.log())
    answer = log_in(Proxy(site[front], acme.host, **said))
    assert answer.status_code == 403
    assert "Strict-Transport-Security" not in answer.headers
    assert "X-Forwarded-Proto" in web.log()[before:]
    assert "FRONT_TRUSTED_PROXIES" in web.log()[before:]


def test_the_fronts_own_answers_hold_browsers_to_https_too(site):
    body = b"x" * 1_100_000
    for path in ("/login/", "/api/chat/"):
        assert (
            Proxy(site[1], "localhost", **HTTPS).post(path, content=body).headers["Strict-Transport-Security"] == HSTS
        )
        assert "Strict-Transport-Security" not in Proxy(site[1], "localhost").post(path, content=body).headers
