"""Logging in with an identity provider: a real small one on loopback, which can lie."""

from __future__ import annotations

import logging
import re
import time
import uuid
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest
from django.conf import settings as django_settings
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.utils import timezone

from tenants.audit.models import AuditEvent
from tenants.limits import Rate, reset
from tenants.users.auth import PROVEN_AT
from tenants.users.models import Identity, MemberSession, User
from tenants.users.pages import providers
from tenants.users.pages.providers import RETURNS, STARTS
from tenants.users.providers import http, oidc
from tests.support.cast import PASSWORD
from tests.support.factories import WorkspaceFactory
from tests.support.mails import mails_of
from tests.support.oidc import CLIENT_SECRET, HANGS_SECONDS, LIES, IdentityProvider

BACK = "/login/back/sso/"


@pytest.fixture(scope="module")
def server():
    with IdentityProvider() as provider:
        yield provider


@pytest.fixture
def sso(server, settings, app):
    """The provider, offered as "sso"; nobody is linked to it yet."""
    server.reset()
    oidc._issuers.clear()
    settings.LOGIN_PROVIDERS = {"sso": server.settings()}
    return server


@pytest.fixture(scope="module")
def _workspace(app):
    return WorkspaceFactory()


@pytest.fixture
def workspace(_workspace):
    """One for this module: making one for each test would take most of the time. Nobody is in it but its owner."""
    with _workspace.scope():
        for model in (MemberSession, Identity, AuditEvent):
            model.objects.all().delete()
        User.objects.exclude(email=_workspace.account.owner_email).delete()
    return _workspace


@pytest.fixture
def alice(workspace):
    """With a password and a confirmed address."""
    member = workspace.member("alice@acme.example")
    member.set_password(PASSWORD)
    member.email_confirmed_at = timezone.now()
    with workspace.scope():
        member.save()
    return member


@pytest.fixture(autouse=True)
def many_tries(app):
    for limit in (STARTS, RETURNS):
        reset(limit, "127.0.0.1")


def start(client, path="/login/with/sso/", **form):
    """The address at the provider that the page leads to."""
    page = client.post(path, form)
    assert page.status_code == 200, page.content
    return unescape(re.search(r'http-equiv="refresh" content="0; url=([^"]+)"', page.content.decode())[1])


def agree(provider, address):
    """What the provider sends the browser back with."""
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    return urlsplit(provider.agreed(query))


def come_back(client, provider, path="/login/with/sso/", **form):
    """By way of the relay on the bare host."""
    back = agree(provider, start(client, path, **form))
    assert back.netloc == urlsplit(django_settings.SITE_URL).netloc
    relayed = Client(headers={"host": "localhost"}).get(f"{back.path}?{back.query}")
    there = urlsplit(relayed["Location"])
    assert there.hostname == client.headers_host
    return client.get(f"{there.path}?{there.query}")


def browser(workspace, member=None):
    client = workspace.client(member)
    client.headers_host = workspace.host
    return client


def is_logged_in(client):
    return client.get("/").status_code == 200


def identities(workspace):
    with workspace.scope():
        return list(Identity.objects.values_list("user__email", "subject"))


def test_a_member_whose_address_both_have_seen_gets_in_and_goes_where_they_were_going(workspace, alice, sso):
    client = browser(workspace)
    answer = come_back(client, sso, next="/budget/")
    assert (answer.status_code, answer["Location"]) == (302, "/budget/")
    assert answer["Referrer-Policy"] == "same-origin"
    assert is_logged_in(client)
    assert identities(workspace) == [(alice.email, "alice-at-sso")]
    with workspace.scope():
        assert MemberSession.objects.latest("pk").method == "sso"
        linked = AuditEvent.objects.get(event="sign_in.identity_linked")
    assert (linked.actor, linked.target, linked.details["how"]) == (alice.email, "Acme SSO", "log-in")


def test_whoever_has_a_second_step_is_asked_for_it_all_the_same(workspace, alice, sso):
    with workspace.scope():
        User.objects.filter(pk=alice.pk).update(second_step_at=timezone.now())
    client = browser(workspace)
    answer = come_back(client, sso, next="/budget/")
    assert answer["Location"] == "/login/code/?next=%2Fbudget%2F"
    assert not is_logged_in(client)


def test_after_that_the_subject_alone_decides_and_no_address(workspace, alice, sso):
    come_back(browser(workspace), sso)
    other = workspace.member("mallory@acme.example")
    with workspace.scope():
        User.objects.filter(pk=other.pk).update(email_confirmed_at=timezone.now())
    sso.person["email"] = other.email
    client = browser(workspace)
    come_back(client, sso)
    with workspace.scope():
        assert MemberSession.objects.latest("pk").user_id == alice.pk
    sso.person = {"sub": "ALICE-at-sso", "email": alice.email, "email_verified": True}
    assert come_back(browser(workspace), sso).status_code == 403
    assert identities(workspace) == [(alice.email, "alice-at-sso")]


@pytest.mark.parametrize(
    "case", ["not verified there", "a word there", "not confirmed here", "removed", "nobody", "looks alike"]
)
def test_an_address_that_is_not_proven_twice_lets_nobody_in_and_says_the_same_each_time(workspace, alice, sso, case):
    changed = {"not confirmed here": {"email_confirmed_at": None}, "removed": {"is_active": False}}.get(case, {})
    with workspace.scope():
        User.objects.filter(pk=alice.pk).update(**{"email_confirmed_at": timezone.now(), **changed})
    if case == "not verified there":
        sso.person["email_verified"] = False
    if case == "a word there":
        sso.person["email_verified"] = "yes"
    if case == "looks alike":
        with workspace.scope():
            User.objects.filter(pk=alice.pk).update(email="kelvin@acme.example")
        sso.person["email"] = "\u212aelvin@acme.example"
    if case == "nobody":
        sso.person["email"] = "nobody@acme.example"
    client = browser(workspace)
    answer = come_back(client, sso)
    assert answer.status_code == 403
    assert b"not linked to a member of this workspace" in answer.content
    assert b'name="password"' in answer.content
    assert not is_logged_in(client)
    assert identities(workspace) == []


def test_a_removed_members_identity_opens_nothing_and_a_provider_that_is_gone_neither(workspace, alice, sso, settings):
    come_back(browser(workspace), sso)
    client = browser(workspace)
    with workspace.scope():
        User.objects.filter(pk=alice.pk).update(is_active=False, removed_at=timezone.now())
    assert come_back(client, sso).status_code == 403
    with workspace.scope():
        User.objects.filter(pk=alice.pk).update(is_active=True, removed_at=None)
    back = agree(sso, start(client))
    settings.LOGIN_PROVIDERS = {}
    assert client.get(f"{BACK}?{back.query}").status_code == 404
    assert client.post("/login/with/sso/").status_code == 404
    assert b"Log in with" not in client.get("/login/").content
    assert not is_logged_in(client)


@pytest.mark.parametrize("lie", LIES)
def test_a_provider_that_lies_lets_nobody_in(workspace, alice, sso, lie, caplog):
    client = browser(workspace)
    sso.lies = lie
    at_once = lie in ("discovery", "plain http")
    answer = client.post("/login/with/sso/") if at_once else come_back(client, sso)
    assert answer.status_code == 502, answer.content
    assert b"did not answer as it should" in answer.content
    assert not is_logged_in(client)
    assert identities(workspace) == []
    assert "/token-elsewhere" not in sso.asked
    said = caplog.text + answer.content.decode()
    assert "Log-in with Acme SSO failed" in caplog.text
    assert LIES[lie] in caplog.text
    assert CLIENT_SECRET not in said
    assert "a secret of the provider" not in said


def test_what_the_id_token_does_not_say_userinfo_does(workspace, alice, sso):
    sso.lies = "userinfo"
    assert come_back(browser(workspace), sso).status_code == 302
    assert "/userinfo" in sso.asked


def test_keys_that_were_changed_are_fetched_anew(workspace, alice, sso):
    assert come_back(browser(workspace), sso).status_code == 302
    sso.key, sso.other_key = sso.other_key, sso.key
    assert come_back(browser(workspace), sso).status_code == 302


@pytest.mark.parametrize("how", ["slow", "drips its head", "drips its body"])
def test_a_provider_that_hangs_is_waited_for_no_longer_and_holds_neither_connection_nor_page(
    workspace, alice, sso, monkeypatch, how
):
    client = browser(workspace)
    back = agree(sso, start(client))
    sso.lies = how
    monkeypatch.setattr(http, "SECONDS", 0.5)
    began = time.monotonic()
    held = []
    monkeypatch.setattr(http.Conversation, "_send", _noting(http.Conversation._send, held))
    assert client.get(f"{BACK}?{back.query}").status_code == 502
    assert time.monotonic() - began < HANGS_SECONDS / 2
    sso.given_up.set()
    assert held == [None]


def _noting(send, held):
    def noted(self, *args, **kwargs):
        held.append(connection.connection)
        return send(self, *args, **kwargs)

    return noted


def test_a_denied_consent_and_an_odd_answer_are_words_on_the_log_in_page(workspace, sso):
    client = browser(workspace)
    state = parse_qs(urlsplit(start(client, next="/budget/")).query)["state"][0]
    answer = client.get(BACK, {"error": "access_denied", "state": state, "error_description": "<b>do this</b>"})
    assert answer.status_code == 403
    assert b"did not log you in" in answer.content
    assert b"do this" not in answer.content
    # Else its forms would come with Origin: null, and be refused.
    assert answer["Referrer-Policy"] == "same-origin"
    assert b'value="/budget/"' in answer.content
    for query in ({}, {"code": "x"}, {"state": "x", "code": "x"}, {"state": state, "code": "x"}, {"code": "\x00"}):
        assert client.get(BACK, query).status_code == 400, query
    state = parse_qs(urlsplit(start(client)).query)["state"][0]
    assert client.get(BACK, {"state": state, "code": "made-up"}).status_code == 400
    state = parse_qs(urlsplit(start(client)).query)["state"][0]
    assert client.get(BACK, {"state": state, "code": "x", "iss": "https://evil.example"}).status_code == 502


def test_an_answer_is_worth_something_in_the_browser_that_asked_alone_and_once(workspace, alice, sso):
    mallory, victim = browser(workspace), browser(workspace)
    back = agree(sso, start(mallory))
    assert victim.get(f"{BACK}?{back.query}").status_code == 400
    start(victim)
    assert victim.get(f"{BACK}?{back.query}").status_code == 400
    assert not is_logged_in(victim)
    assert "/token" not in sso.asked
    back = agree(sso, start(mallory))
    assert mallory.get(f"{BACK}?{back.query}").status_code == 302
    assert mallory.get(f"{BACK}?{back.query}").status_code == 400


def test_an_attempt_begun_at_acme_is_worth_nothing_at_globex(workspace, alice, globex, bob, sso):
    with globex.scope():
        User.objects.filter(pk=bob.pk).update(email_confirmed_at=timezone.now())
    sso.person["email"] = bob.email
    here, there = browser(workspace), browser(globex)
    back = agree(sso, start(here))
    there.cookies["login_attempt"] = here.cookies["login_attempt"].value
    there.cookies["login_attempt"]["path"] = BACK
    assert there.get(f"{BACK}?{back.query}").status_code == 400
    assert not is_logged_in(there)


def test_the_attempt_ends_after_ten_minutes(workspace, alice, sso, monkeypatch):
    client = browser(workspace)
    back = agree(sso, start(client))
    later = time.time() + 601
    with monkeypatch.context() as patch:
        patch.setattr("django.core.signing.time.time", lambda: later)
        assert client.get(f"{BACK}?{back.query}").status_code == 400


def test_the_same_person_at_the_neighbours_is_another_link(workspace, alice, globex, sso):
    come_back(browser(workspace), sso)
    assert come_back(browser(globex), sso).status_code == 403
    assert identities(globex) == []


def test_strangers_make_no_session_and_the_start_wants_the_forms_token(workspace, sso):
    with workspace.scope():
        before = Session.objects.count()
    client = browser(workspace)
    start(client)
    client.get(BACK, {"state": "x"})
    with workspace.scope():
        assert Session.objects.count() == before
    # Somebody else's link has not ended the attempt.
    cookie = client.cookies["login_attempt"]
    assert (cookie["httponly"], cookie["samesite"], cookie["domain"]) == (True, "Lax", "")
    strict = Client(headers={"host": workspace.host}, enforce_csrf_checks=True)
    assert strict.post("/login/with/sso/").status_code == 403
    assert strict.get("/login/with/sso/").status_code == 405
    assert strict.head(BACK).status_code == 405


def test_one_address_is_slowed_down(workspace, sso, monkeypatch):
    # However long a slow machine takes for so many, none is given back meanwhile.
    for name, rate in (("RETURNS", RETURNS), ("STARTS", STARTS)):
        monkeypatch.setattr(providers, name, Rate(f"{rate.name}-{uuid.uuid4().hex}", burst=rate.burst, every=3_600.0))
    client = browser(workspace)
    answers = [client.get(BACK, {"state": "x"}).status_code for _ in range(RETURNS.burst + 1)]
    assert answers[0] == 400
    assert answers[-1] == 429
    for _ in range(STARTS.burst):
        start(client)
    refused = client.post("/login/with/sso/", {"next": "/budget/"})
    assert refused.status_code == 429
    assert refused["Retry-After"]
    assert b'value="/budget/"' in refused.content


@pytest.mark.parametrize(
    "state", ["", "x", "0123456789ab", "{id}", "{id}.short", "{other}.{random}", "{id}.{random}x", "//evil.example"]
)
def test_the_relay_leads_to_our_own_hosts_alone(workspace, sso, state):
    state = state.format(id=workspace.tenant.public_id, random="r" * 43, other="0" * 12)
    bare = Client(headers={"host": "localhost"})
    answer = bare.get(BACK, {"state": state, "code": "secret"})
    assert answer.status_code == 400
    assert b"leads nowhere" in answer.content
    assert bare.get("/login/back/other/", {"state": state}).status_code == 404


# --- linking ---------------------------------------------------------------------------------------------------------

LINK = "/settings/account/identities/sso/"


def age(workspace, client, seconds):
    with workspace.scope():
        session = client.session
        session[PROVEN_AT] -= seconds
        session.save()


def test_a_member_links_an_account_and_gets_in_by_it_whatever_its_address(workspace, alice, sso):
    sso.person["email"] = "private@elsewhere.example"
    client = browser(workspace, alice)
    answer = come_back(client, sso, LINK)
    assert (answer.status_code, answer["Location"]) == (302, "/settings/account/")
    # By whoever found this browser open, perhaps: no new password ends it.
    assert mails_of(workspace, to=alice.email)[-1].subject == "An account of Acme SSO was linked"
    other = browser(workspace)
    assert come_back(other, sso).status_code == 302
    assert is_logged_in(other)


def test_a_log_in_of_a_while_ago_is_asked_for_the_password(workspace, alice, sso):
    client = browser(workspace, alice)
    assert b'type="password"' not in client.get(LINK).content
    age(workspace, client, 601)
    assert b'type="password"' in client.get(LINK).content
    for wrong in ({}, {"password": "wrong"}):
        answer = client.post(LINK, wrong)
        assert answer.status_code == 400
        assert b"autofocus" in answer.content
        assert b"refresh" not in answer.content
    assert come_back(client, sso, LINK, password=PASSWORD).status_code == 302
    with workspace.scope():
        User.objects.filter(pk=alice.pk).update(password="!")
    nobody = browser(workspace)
    come_back(nobody, sso)
    age(workspace, nobody, 601)
    assert nobody.post(LINK).status_code == 400


def test_an_account_that_is_anothers_here_is_refused_in_words(workspace, alice, sso):
    come_back(browser(workspace), sso)
    carol = browser(workspace, workspace.member("carol@acme.example"))
    answer = come_back(carol, sso, LINK)
    assert answer.status_code == 409
    assert b"linked to another member" in answer.content
    assert alice.email.encode() not in answer.content
    sso.person["sub"] = "second"
    assert come_back(carol, sso, LINK).status_code == 302
    sso.person["sub"] = "third"
    answer = come_back(carol, sso, LINK)
    assert answer.status_code == 409
    assert b"Unlink it first" in answer.content


def test_an_answer_for_linking_is_worth_nothing_to_who_is_not_that_member_any_more(workspace, alice, sso):
    client = browser(workspace, alice)
    back = agree(sso, start(client, LINK))
    client.post("/logout/")
    assert client.get(f"{BACK}?{back.query}").status_code == 400
    client = browser(workspace, alice)
    back = agree(sso, start(client, LINK))
    carol = browser(workspace, workspace.member("carol@acme.example"))
    client.cookies["sessionid"] = carol.cookies["sessionid"].value
    assert client.get(f"{BACK}?{back.query}").status_code == 400
    assert identities(workspace) == []


def test_the_last_way_in_stays_and_another_members_is_404(workspace, alice, sso, settings):
    client = browser(workspace)
    come_back(client, sso)
    with workspace.scope():
        mine = Identity.objects.get()
    unlink = f"/settings/account/identities/{mine.pk}/unlink/"
    assert browser(workspace, workspace.member("carol@acme.example")).post(unlink).status_code == 404
    with workspace.scope():
        User.objects.filter(pk=alice.pk).update(password="!")
        # One of a provider that is gone is no way in.
        Identity.objects.create(user=alice, provider="gone", subject="x")
    come_back(client, sso)
    assert (
        b"your only way in"
        in client.post(unlink, follow=False, secure=False).wsgi_request._messages._queued_messages[0].message.encode()
    )
    assert len(identities(workspace)) == 2
    settings.LOGIN_PROVIDERS["gone"] = settings.LOGIN_PROVIDERS["sso"]
    client.post(unlink)
    assert identities(workspace) == [(alice.email, "x")]
    with workspace.scope():
        assert AuditEvent.objects.filter(event="sign_in.identity_unlinked", actor=alice.email).count() == 1


# --- GitHub ----------------------------------------------------------------------------------------------------------


def test_github_is_asked_by_its_api_and_knows_people_by_number(workspace, alice, sso, settings):
    settings.LOGIN_PROVIDERS = {"sso": sso.github_settings()}
    sso.person["sub"] = 4711
    client = browser(workspace)
    assert come_back(client, sso).status_code == 302
    assert is_logged_in(client)
    assert identities(workspace) == [(alice.email, "4711")]
    sso.person["sub"] = True
    assert come_back(browser(workspace), sso).status_code == 502
    state = parse_qs(urlsplit(start(client)).query)["state"][0]
    assert client.get(BACK, {"state": state, "code": "made-up"}).status_code == 400


def test_an_address_that_github_has_not_seen_lets_nobody_in(workspace, alice, sso, settings):
    settings.LOGIN_PROVIDERS = {"sso": sso.github_settings()}
    sso.person |= {"sub": 4711, "email_verified": False}
    assert come_back(browser(workspace), sso).status_code == 403


def test_no_log_has_the_code(workspace, alice, sso, caplog):
    caplog.set_level(logging.DEBUG, "tenants")
    client = browser(workspace)
    back = agree(sso, start(client))
    client.get(f"{BACK}?{back.query}")
    assert parse_qs(back.query)["code"][0] not in "\n".join(
        record.getMessage() for record in caplog.records if record.levelno >= logging.INFO
    )
