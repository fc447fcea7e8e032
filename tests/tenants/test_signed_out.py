"""Who is signed out meanwhile loses nothing: led to log-in and back, a message kept, and no form done."""

import re
from unittest.mock import Mock

import pytest
from django.db import OperationalError

from tenants.users.links import make_link
from tenants.users.models import ApiKey, Link, User
from tests.support.cast import PASSWORD
from tests.tenants.test_second_step import next_code, set_up

pytestmark = pytest.mark.usefixtures("upstream")
WORDS = "What is a ledger, & why?"


def here(workspace, path="/"):
    return {"Referer": f"http://{workspace.host}{path}", "Origin": f"http://{workspace.host}"}


def hidden(page, name):
    found = re.search(rf'name="{name}" value="([^"]*)"', page.content.decode())
    return found and found[1]


def test_a_message_sent_while_signed_out_waits_on_the_log_in_page_and_is_in_the_box_afterwards(acme, alice):
    acme.client(alice)
    client = acme.client()
    form = {"prompt": WORDS, "max_tokens": "12", "conversation_id": ""}
    asked = client.post("/", form, headers=here(acme))
    assert asked.status_code == 401
    assert b"what you typed is still here" in asked.content
    assert "sessionid" not in asked.cookies
    draft, target = hidden(asked, "draft"), hidden(asked, "next")
    # A wrong password does not lose it.
    wrong = client.post("/login/", {"email": alice.email, "password": "wrong", "draft": draft, "next": target})
    assert hidden(wrong, "draft") == draft
    right = client.post("/login/", {"email": alice.email, "password": PASSWORD, "draft": draft, "next": target})
    assert right["Location"] == "/"
    page = client.get("/")
    assert "What is a ledger, &amp; why?</textarea>" in page.content.decode()
    assert hidden(page, "conversation_id") == ""
    assert b'value="12"' in page.content
    # Once, and nowhere else.
    assert b"What is a ledger" not in client.get("/").content
    assert WORDS not in right["Location"]


@pytest.mark.parametrize("button", ["/c/files/", "/c/files/7/remove/"])
def test_the_message_waits_as_well_where_a_file_was_to_be_added_or_taken_away(acme, alice, button):
    acme.client(alice)
    client = acme.client()
    # Without script the box's own form goes there, and a file that was refused is told on a page of that address.
    asked = client.post(button, {"prompt": WORDS, "conversation_id": ""}, headers=here(acme, "/c/files/"))
    assert asked.status_code == 401
    way_in = {"email": alice.email, "password": PASSWORD, "draft": hidden(asked, "draft"), "next": "/c/files/"}
    right = client.post("/login/", way_in, follow=True)
    assert right.status_code == 200
    assert "What is a ledger, &amp; why?</textarea>" in right.content.decode()


def test_the_message_waits_through_a_second_step_too_and_so_does_a_log_in_link(acme):
    member = acme.member("two-steps@example.org")
    app, _ = set_up(acme.client(member))
    client = acme.client()
    draft = hidden(client.post("/", {"prompt": WORDS}, headers=here(acme)), "draft")
    asked = client.post("/login/", {"email": member.email, "password": PASSWORD, "draft": draft})
    assert asked["Location"] == "/login/code/"
    assert client.get("/").status_code == 302
    assert client.post("/login/code/", {"code": next_code(app)})["Location"] == "/"
    assert b"What is a ledger" in client.get("/").content
    with acme.scope():
        secret = make_link(member, Link.Purpose.LOG_IN, email=member.email)
    other = acme.client()
    assert other.post(f"/login/link/{secret}/")["Location"] == "/login/code/"
    assert other.get("/").status_code == 302


def test_a_draft_is_of_one_workspace_and_cannot_be_made_up(acme, globex, alice, bob):
    globex.client(bob)
    draft = hidden(acme.client().post("/", {"prompt": WORDS}, headers=here(acme)), "draft")
    for packed in (draft, "nonsense", draft[:-2]):
        client = globex.client()
        client.post("/login/", {"email": bob.email, "password": PASSWORD, "draft": packed})
        page = client.get("/")
        assert page.status_code == 200
        assert b"ledger, " not in page.content


@pytest.mark.parametrize(
    ("page", "address", "form"),
    [
        ("/settings/members/", "/settings/invitations/", {"emails": "dora@example.org, emil@", "role": "viewer"}),
        ("/settings/workspace/origins/", "/settings/workspace/origins/", {"origins": "https://app.example.com/typed"}),
        ("/settings/keys/", "/settings/keys/", {"name": "Typed server", "scopes": ["summarize"], "life": "30"}),
        ("/settings/workspace/", "/settings/workspace/", {"name": "Typed name", "time_zone": "Asia/Tokyo"}),
        ("/settings/workspace/", "/settings/workspace/address/", {"slug": "typed-address"}),
    ],
)
def test_what_was_typed_in_settings_waits_too(acme, page, address, form):
    """Fifty addresses are not typed twice: neither after a log-out nor after a log-in in another tab."""
    typed = next(iter(form.values()))
    # Another form that has fields of the same names leaves it alone.
    other = "/settings/keys/" if page == "/settings/workspace/" else "/settings/workspace/"
    admin = acme.member("typist@example.org", role="admin")
    acme.client(admin)
    client = acme.client(csrf=True)
    token = {"csrfmiddlewaretoken": hidden(client.get("/login/"), "csrfmiddlewaretoken")}
    asked = client.post(address, {**form, **token}, headers=here(acme, page))
    draft, target = hidden(asked, "draft"), hidden(asked, "next")
    way_in = {"email": admin.email, "password": PASSWORD, "draft": draft, "next": target}
    assert client.post("/login/", {**way_in, **token}, headers=here(acme))["Location"] == page
    assert "origins" in form or "emails" in form or typed not in client.get(other).content.decode()
    opened = client.get(page).content.decode()
    assert typed in opened
    for chosen in {"role", "life", "time_zone"} & form.keys():
        assert f'<option value="{form[chosen]}" selected>' in opened
    if "scopes" in form:  # a key must not come to may more than was chosen
        assert re.findall('name="scopes" value="([a-z:]+)" checked', opened) == form["scopes"]
    assert typed not in client.get(page).content.decode()
    older = client.post(address, {**form, **token}, headers=here(acme, page))
    assert older["Location"] == page
    opened = client.get(page).content.decode()
    assert typed in opened
    assert "send it again" in opened


@pytest.mark.parametrize("failure", [None, OperationalError("the database is away")])
def test_what_was_typed_is_on_the_page_that_says_why_it_was_not_taken(acme, monkeypatch, failure):
    """Back is no way to it: who has become a viewer since may not open the page of prompts any more."""
    member = acme.member("demoted@example.org")
    client = acme.client(member)
    with acme.scope():
        User.objects.filter(pk=member.pk).update(role="viewer")
    if failure is not None:
        monkeypatch.setattr("tenants.middleware.find_tenant", Mock(side_effect=failure))
    form = {"title": "Mine", "text": "<b> of an hour’s work", "is_shared": "on"}
    refused = client.post("/prompts/", form, headers=here(acme, "/prompts/"))
    assert refused.status_code == (403 if failure is None else 503)
    assert 'readonly dir="auto">&lt;b&gt; of an hour’s work</textarea>' in refused.content.decode()
    # Nobody puts words there from elsewhere, and what no form of ours keeps is not shown again.
    for path, headers in (("/prompts/", {"Origin": "https://evil.example"}), ("/nothing/", here(acme))):
        assert b"hour" not in client.post(path, form, headers=headers).content


def test_a_form_of_settings_leads_to_log_in_and_back_to_its_page_with_a_sentence_and_does_nothing(acme, alice):
    acme.client(alice)
    acme.key(alice)
    with acme.scope():
        key = ApiKey.objects.filter(revoked_at=None).latest("pk")
    client = acme.client()
    asked = client.post(f"/settings/keys/{key.pk}/revoke/", headers=here(acme, "/settings/keys/"))
    assert asked["Location"] == "/login/?next=/settings/keys/"
    assert b"nothing was changed" in client.get(asked["Location"]).content
    for referer in ("https://evil.example/settings/", "http://globex.localhost/"):
        asked = client.post(f"/settings/keys/{key.pk}/revoke/", headers={"Referer": referer})
        assert asked["Location"].startswith(f"/login/?next=/settings/keys/{key.pk}/")
    with acme.scope():
        assert ApiKey.objects.get(pk=key.pk).is_active


@pytest.mark.parametrize(
    "form", ["account/email", "members/1/role", "invitations/1/resend", "keys/1/limit/remove", "security/sessions/end"]
)
def test_the_address_of_a_form_of_settings_leads_to_its_page(acme, alice, form):
    """Who mends a form and is signed out meanwhile is led back to it after log-in: it was a page of 405."""
    client = acme.client(alice)
    opened = client.get(f"/settings/{form}/")
    assert opened["Location"] == f"/settings/{form.split('/')[0]}/"
    assert client.get(opened["Location"], follow=True).status_code in (200, 403)
    assert client.put(f"/settings/{form}/").status_code == 405


def test_a_form_from_before_a_log_in_says_what_to_do_and_does_nothing(acme, alice):
    acme.client(alice)
    client = acme.client(csrf=True)
    old = hidden(client.get("/login/"), "csrfmiddlewaretoken")
    form = {"email": alice.email, "password": PASSWORD, "csrfmiddlewaretoken": old}
    assert client.post("/login/", form, headers=here(acme)).status_code == 302
    with acme.scope():
        keys = ApiKey.objects.count()
    stale = {"overlap": "1", "life": "30", "csrfmiddlewaretoken": old}
    refused = client.post("/settings/keys/1/rotate/", stale, headers=here(acme, "/settings/keys/"))
    assert refused.status_code == 403
    assert b"older than your log-in" in refused.content
    assert b'href="/settings/keys/"' in refused.content
    with acme.scope():
        assert ApiKey.objects.count() == keys
    # A message goes back into the box, and to nobody else's order.
    sent = client.post("/", {"prompt": WORDS, "csrfmiddlewaretoken": old}, headers=here(acme))
    assert sent["Location"] == "/"
    assert b"send it again" in client.get("/login/", follow=True).content
    foreign = client.post("/", {"prompt": "Evil words"}, headers={"Origin": "https://evil.example"})
    assert foreign.status_code == 403
    assert b"Evil words" not in foreign.content + client.get("/").content
    assert acme.holds() == 0


def test_on_the_bare_host_too(acme):
    from django.test import Client

    refused = Client(headers={"host": "localhost"}, enforce_csrf_checks=True).post("/find/", {"email": "a@b.example"})
    assert refused.status_code == 403
    assert b'href="/find/"' in refused.content
