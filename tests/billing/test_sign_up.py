"""Sign-up: the page, the API, and the hand-over to the workspace's own host."""

import json
import re
import uuid
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from billing import provisioning, signing_up
from billing.models import Account
from billing.provisioning import provision, sign_up, status_token
from tenants.context import tenant_scope
from tenants.limits import is_known
from tenants.roles import Role
from tenants.users.guesses import KNOWN
from tenants.users.models import User
from tests.support.cast import PASSWORD

pytestmark = pytest.mark.usefixtures("app", "sign_ups")


def form(**changes):
    slug = f"su-{uuid.uuid4().hex[:10]}"
    return {"name": "Su", "slug": slug, "email": f"a@{slug}.example", "password": PASSWORD, **changes}


@pytest.fixture
def bare():
    return Client(headers={"host": "localhost"})


def post_json(client, body):
    return client.post("/api/signup/", json.dumps(body), content_type="application/json")


def hidden(page, name):
    return re.search(rf'name="{name}"[^>]*value="([^"]+)"', page.content.decode()).group(1)


def handed_over(bare, data):
    """(page, token, a browser on the new workspace's host)"""
    page = bare.post("/signup/", data, follow=True)
    assert page.status_code == 200, page.content
    return page, hidden(page, "token"), Client(headers={"host": f"{data['slug']}.localhost"})


ORIGIN = {"origin": "http://localhost:8000"}


# --- the API --------------------------------------------------------------------------------------------------------


@pytest.mark.on_standin
def test_the_api_makes_a_workspace_and_shows_its_key_once(bare):
    data = form()
    response = post_json(bare, data)
    assert response.status_code == 201
    body = response.json()
    assert body.keys() == {"tenant", "url", "status", "api_key"}
    assert (body["tenant"], body["status"]) == (data["slug"], "active")
    assert body["url"] == f"http://{data['slug']}.localhost:8000/"
    headers = {"x-tenant-id": data["slug"], "authorization": f"Bearer {body['api_key']}"}
    assert bare.get("/api/budget/", headers=headers).status_code == 200
    assert (post_json(bare, data).status_code, post_json(bare, data).json()["error"]) == (409, "slug_taken")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", "x" * 101), ("slug", "Under_score"), ("slug", "www"), ("slug", "a"), ("email", "nobody"),
        ("email", ""), ("password", "short"), ("password", "password1234"), ("plan", "unlimited"), ("name", 5),
        ("password", None), ("slug", "ACME-UPPER"), ("slug", " spaced "), ("slug", "newline\n"),
        ("email", "a" * 250 + "@b.io"),
        ("slug", "a\u0000b"), ("unknown", "x"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_used_is_named(bare, field, value):
    response = post_json(bare, form(**{field: value}))
    assert (response.status_code, response.json()["error"]) == (400, "invalid")
    assert field in response.json()["fields"]


def test_a_taken_slug_is_409_and_tells_nothing_else(bare, acme):
    response = post_json(bare, form(slug="acme"))
    assert (response.status_code, response.json()["error"]) == (409, "slug_taken")
    assert acme.account.owner_email not in response.content.decode()


def test_a_status_address_that_was_guessed_is_404(bare):
    for token in ("1", "1.abc", "x", "1.2.3", "%00"):
        response = bare.get(f"/api/signup/{token}/")
        assert (response.status_code, response.json()["error"]) == (404, "not_found")


@pytest.mark.on_standin
def test_a_status_address_only_looks_and_gives_the_key_once(bare):
    data = form()
    account = sign_up(**{**data, "plan": "trial"})
    url = f"/api/signup/{status_token(account)}/"
    assert [bare.get(url).json() for _ in range(2)] == [{"status": "pending"}] * 2
    provision(account)
    first, second = bare.get(url), bare.get(url)
    assert first.status_code == second.status_code == 200
    assert (first.json()["status"], first.json()["tenant"]) == ("active", data["slug"])
    assert first.json()["api_key"].startswith("tk_")
    assert second.json()["api_key"] is None


def test_the_first_key_is_not_given_after_ten_minutes(bare):
    account = sign_up(**{**form(), "plan": "trial"})
    provision(account)
    Account.objects.filter(pk=account.pk).update(activated_at=timezone.now() - timedelta(minutes=11))
    assert bare.get(f"/api/signup/{status_token(account)}/").json()["api_key"] is None


def test_a_first_key_that_could_not_be_made_is_not_lost(bare, monkeypatch):
    account = sign_up(**{**form(), "plan": "trial"})
    provision(account)
    url = f"/api/signup/{status_token(account)}/"
    with monkeypatch.context() as patch:
        patch.setattr(provisioning, "create_key", lambda *args, **kwargs: (_ for _ in ()).throw(OperationalError))
        assert bare.get(url).status_code == 503
    assert bare.get(url).json()["api_key"].startswith("tk_")


def test_logs_do_not_say_the_token_of_a_status_address(caplog):
    import logging

    from tenants.logs import NoTokens

    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s: %s", ("Not Found", "/api/signup/12.secret/"), None)
    assert NoTokens().filter(record)
    assert record.getMessage() == "Not Found: /api/signup/…/"


# --- the page and the hand-off --------------------------------------------------------------------------------------


@pytest.mark.on_standin
def test_the_page_hands_the_person_over_signed_in(bare):
    page, token, browser = handed_over(bare, data := form())
    assert f'action="http://{data["slug"]}.localhost:8000/welcome/"' in page.content.decode()
    assert token not in page.request["PATH_INFO"]
    response = browser.post("/welcome/", {"token": token}, headers=ORIGIN)
    assert (response.status_code, response["Location"]) == (302, "/")
    assert response["Referrer-Policy"] == "no-referrer"
    assert browser.get("/").status_code == 200
    assert browser.cookies["sessionid"]["domain"] == ""


def test_who_was_handed_over_is_known_at_that_address_to_the_limits_of_log_in(bare):
    """Else strangers who try the account from everywhere could keep a new owner out from the first log-in."""
    _, token, browser = handed_over(bare, data := form())
    assert not is_known(KNOWN, data["slug"], data["email"], "127.0.0.1")
    browser.post("/welcome/", {"token": token}, headers=ORIGIN)
    assert is_known(KNOWN, data["slug"], data["email"], "127.0.0.1")


def test_the_token_works_once(bare):
    _, token, browser = handed_over(bare, data := form())
    assert browser.post("/welcome/", {"token": token}, headers=ORIGIN).status_code == 302
    other = Client(headers={"host": f"{data['slug']}.localhost"})
    assert other.post("/welcome/", {"token": token}, headers=ORIGIN).status_code == 400
    assert other.get("/").status_code == 302


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://acme.localhost:8000"])
def test_the_token_works_from_the_bare_host_only(bare, origin):
    _, token, browser = handed_over(bare, form())
    headers = {"origin": origin} if origin else {}
    assert browser.post("/welcome/", {"token": token}, headers=headers).status_code == 400
    # Refused for where it came from, it is not used up.
    assert browser.post("/welcome/", {"token": token}, headers=ORIGIN).status_code == 302


def test_the_token_of_one_workspace_means_nothing_at_another(bare, acme):
    _, token, _ = handed_over(bare, form())
    assert acme.client().post("/welcome/", {"token": token}, headers=ORIGIN).status_code == 400


def test_a_token_is_dead_after_a_minute(bare):
    from tenants.context import tenant_scope
    from tenants.models import Tenant
    from tenants.users.models import HandoffToken

    _, token, browser = handed_over(bare, data := form())
    with tenant_scope(Tenant.objects.get(slug=data["slug"])):
        held = HandoffToken.objects.get()
        assert timedelta(seconds=50) < held.expires_at - held.user.date_joined < timedelta(seconds=75)
        assert token not in held.digest
        HandoffToken.objects.update(expires_at=held.expires_at - timedelta(seconds=61))
    assert browser.post("/welcome/", {"token": token}, headers=ORIGIN).status_code == 400


def test_welcome_takes_no_token_from_an_address(bare):
    _, token, browser = handed_over(bare, form())
    assert browser.get(f"/welcome/?token={token}").status_code == 405
    assert browser.post(f"/welcome/?token={token}", headers=ORIGIN).status_code == 400


def test_a_bad_form_comes_back_with_what_was_typed_and_no_password(bare):
    response = bare.post("/signup/", form(name="Kept Name", slug="www"))
    assert response.status_code == 400
    assert b"Kept Name" in response.content
    assert PASSWORD.encode() not in response.content


def test_a_taken_slug_is_said_beside_the_field(bare, acme):
    response = bare.post("/signup/", form(slug="acme"))
    assert response.status_code == 409
    assert b"taken" in response.content


def test_the_waiting_room_belongs_to_the_browser_that_signed_up(waiting, bare):
    account, room = waiting
    assert bare.get("/signup/wait/")["Location"] == "/signup/"
    browser = room()
    assert b"Setting up" in browser.get("/signup/wait/").content
    provision(account)
    page = browser.get("/signup/wait/")
    assert page.status_code == 200
    assert hidden(page, "token")
    # A reload, for one: whoever stops the answer that hands over must not stand before an empty form.
    assert browser.get("/signup/wait/")["Location"] == f"http://{account.tenant.slug}.localhost:8000/login/"


def test_a_waiting_room_that_lasts_says_where_to_come_back(waiting):
    account, room = waiting
    browser = room()
    assert b"longer than usual" not in browser.get("/signup/wait/").content
    Account.objects.filter(pk=account.pk).update(created_at=timezone.now() - timedelta(seconds=61))
    page = browser.get("/signup/wait/").content.decode()
    assert "longer than usual" in page
    assert f"http://{account.tenant.slug}.localhost:8000/login/" in page


@pytest.fixture
def waiting(monkeypatch):
    """A pending account that nobody builds, and a browser in its waiting room for each time it is called."""
    monkeypatch.setattr(signing_up, "READY_SECONDS", 0.05)
    account = sign_up(**{**form(), "plan": "trial"})

    def room():
        browser = Client(headers={"host": "localhost"})
        session = browser.session
        session["signup_account"] = account.pk
        session.save()
        browser.cookies["sessionid"] = session.session_key
        return browser

    return account, room


def test_a_waiting_room_left_open_signs_nobody_in_later(waiting):
    """It looks again every two seconds, so a browser whose lid was closed comes back a week later."""
    account, room = waiting
    browser = room()
    provision(account)
    Account.objects.filter(pk=account.pk).update(activated_at=timezone.now() - timedelta(minutes=11))
    for late in (browser.get("/signup/wait/"), browser.get("/signup/wait/")):
        assert (late.status_code, late["Location"]) == (302, f"http://{account.tenant.slug}.localhost:8000/login/")


def test_of_several_waiting_rooms_one_is_handed_over(waiting):
    account, room = waiting
    provision(account)
    first, second = room(), room()
    assert hidden(first.get("/signup/wait/"), "token")
    assert second.get("/signup/wait/")["Location"].endswith("/login/")


def test_a_hand_over_that_failed_is_not_lost(waiting, monkeypatch):
    account, room = waiting
    provision(account)
    browser = room()
    with monkeypatch.context() as patch:
        patch.setattr(provisioning, "issue_token", lambda *args, **kwargs: (_ for _ in ()).throw(OperationalError))
        assert browser.get("/signup/wait/").status_code == 503
    assert hidden(browser.get("/signup/wait/"), "token")


def test_a_frozen_workspace_hands_nobody_over_and_no_founder_comes_in_as_whoever_owns_it_now(waiting):
    account, room = waiting
    provision(account)
    accounts = Account.objects.filter(pk=account.pk)
    accounts.update(status=Account.Status.FROZEN)
    assert room().get("/signup/wait/")["Location"].endswith("/login/")
    accounts.update(status=Account.Status.ACTIVE)
    with tenant_scope(account.tenant):
        User.objects.update(role=Role.ADMIN)
        User.objects.create_user("bob@example.com", PASSWORD, role=Role.OWNER)
    assert room().get("/signup/wait/")["Location"].endswith("/login/")
    status = Client(headers={"host": "localhost"}).get(f"/api/signup/{status_token(account)}/")
    assert status.json()["api_key"] is None


def test_a_post_from_elsewhere_is_refused(app):
    client = Client(headers={"host": "localhost"}, enforce_csrf_checks=True)
    response = client.post("/signup/", form())
    assert response.status_code == 403


def test_a_look_by_head_says_when_it_is_time_and_uses_nothing_up(waiting):
    account, room = waiting
    browser = room()
    look = browser.head("/signup/wait/")
    assert (look.status_code, look["Retry-After"]) == (202, "2")
    provision(account)
    assert browser.head("/signup/wait/").status_code == 200
    assert hidden(browser.get("/signup/wait/"), "token")
