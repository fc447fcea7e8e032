"""Log-in, keys and the pages of a workspace, without script."""

import re
import uuid
from datetime import timedelta
from threading import Thread
from unittest.mock import Mock

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models import QuerySet
from django.test import Client
from django.utils import timezone

from tenants.audit.models import AuditEvent
from tenants.models import Tenant
from tenants.users import keys
from tenants.users.keys import create_key
from tenants.users.models import ApiKey
from tests.support.cast import PASSWORD

pytestmark = pytest.mark.usefixtures("upstream")


def test_a_wrong_password_says_so_and_signs_nobody_in(acme, alice):
    client = acme.client()
    response = client.post("/login/", {"email": alice.email, "password": "wrong"})
    assert response.status_code == 400
    assert alice.email.encode() in response.content
    assert client.get("/").status_code == 302


def test_globexs_member_cannot_log_in_at_acme(acme, globex, bob):
    globex.client(bob)
    assert acme.client().post("/login/", {"email": bob.email, "password": PASSWORD}).status_code == 400


def test_email_is_typed_in_any_case(acme, alice):
    acme.client(alice)
    response = acme.client().post("/login/", {"email": alice.email.upper(), "password": PASSWORD})
    assert response.status_code == 302


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "javascript:alert(1)", "foo", "\\\\evil", "/budget/"]
)
def test_after_log_in_only_this_host_is_gone_to(acme, alice, target):
    acme.client(alice)
    response = acme.client().post("/login/", {"email": alice.email, "password": PASSWORD, "next": target})
    assert response["Location"] == ("/budget/" if target == "/budget/" else "/")


@pytest.mark.parametrize("charset", ["latin-1", "utf-16", "hex", "rot13", "zlib", "undefined", "no-such"])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_form_in_another_charset_is_400(acme, alice, charset, kind):
    client = acme.client(alice)
    client.handler.enforce_csrf_checks = True
    for path in ("/login/", "/", "/welcome/", "/api/chat/"):
        response = client.generic("POST", path, b"email=a&password=b", content_type=f"{kind}; charset={charset}")
        assert response.status_code == 400, (path, response.content)
    assert response.json()["error"] == "invalid"


def test_a_form_that_is_too_large_or_broken_is_said_in_our_own_words(acme, alice):
    client = acme.client(alice)
    client.handler.enforce_csrf_checks = True
    large = client.post("/login/", {"email": "x" * (1024 * 1024 + 1)})
    assert large.status_code in (400, 413)
    large = client.post("/login/", b"a=" + b"x" * (1024 * 1024), content_type="application/x-www-form-urlencoded")
    assert large.status_code == 413
    assert b"1 MiB" in large.content
    many = client.post(
        "/", b"&".join(b"f%d=" % n for n in range(2_000)), content_type="application/x-www-form-urlencoded"
    )
    assert many.status_code == 400
    assert b"cannot be read" in many.content
    broken = client.post("/api/summarize/", b"x", content_type="multipart/form-data")
    assert (broken.status_code, broken["Content-Type"]) == (400, "application/json")


def test_a_key_ignores_cookies_altogether(acme, globex, alice):
    client = globex.api().client
    client.cookies["sessionid"] = acme.client(alice).cookies["sessionid"].value
    response = client.get("/api/budget/")
    assert response.status_code == 200
    assert "sessionid" not in response.cookies


def test_a_page_refuses_another_method_in_words(acme, alice):
    response = acme.client(alice).post("/budget/")
    assert response.status_code == 405
    assert b"does not answer" in response.content


@pytest.mark.parametrize("cookie", ["\x00aaaaaaaaaaaa", "a" * 5_000, "../../etc", "é"])
def test_a_session_cookie_of_nonsense_is_nobody(acme, cookie):
    client = acme.client()
    for headers in ({"Authorization": "Bearer x"}, {}):
        client.cookies["sessionid"] = cookie
        assert client.get("/", headers=headers).status_code == 302
        assert client.get("/api/budget/", headers=headers).status_code == 401


def test_each_log_in_has_a_session_of_its_own(acme, alice):
    """Also that of who is signed in already: a key that somebody else got to know opens nothing afterwards."""
    client = acme.client(alice)
    before = client.cookies["sessionid"].value
    assert client.post("/login/", {"email": alice.email, "password": PASSWORD}).status_code == 302
    assert client.cookies["sessionid"].value != before
    assert client.get("/").status_code == 200
    known = acme.client()
    known.cookies["sessionid"] = before
    assert known.get("/").status_code == 302


def test_log_out_ends_the_session_and_is_no_link(acme, alice):
    client = acme.client(alice)
    assert client.get("/logout/").status_code == 405
    assert client.post("/logout/").status_code == 302
    assert client.get("/").status_code == 302


def wanted(name, **fields):
    return {"name": name, "scopes": ["chat", "summarize", "budget:read"], "life": "90", **fields}


def secrets_on(page):
    return re.findall(r"tk_[0-9a-f]{12}_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{43}", page.content.decode())


def test_a_key_is_shown_once_and_its_hash_is_kept(acme, alice):
    client = acme.client(alice)
    made = client.post("/settings/keys/", wanted("Server"))
    assert made.status_code == 302
    (secret,) = secrets_on(client.get(made["Location"]))
    with acme.scope():
        key = ApiKey.objects.latest("pk")
        assert not any(secret in str(value) for value in vars(key).values())
    assert acme.api(secret).get("/api/budget/").status_code == 200
    with acme.scope():
        count = ApiKey.objects.count()
        assert ApiKey.objects.get(pk=key.pk).last_used_at is not None
    # A reload, by this address or by the plain one.
    assert secrets_on(client.get(made["Location"])) == secrets_on(client.get("/settings/keys/")) == []
    # Nor is it by the page of a form that was sent again as the secret was taken; whoever has not seen it is told.
    says = b"The secret of Server is shown once, and not"
    assert says in client.get(made["Location"]).content
    assert says not in client.get("/settings/keys/").content
    assert says not in acme.client(acme.member("carol@acme.example")).get(made["Location"]).content
    with acme.scope():
        assert ApiKey.objects.count() == count


def test_two_tabs_each_show_their_own_key(acme, alice):
    client = acme.client(alice)
    first, second = (client.post("/settings/keys/", wanted(name))["Location"] for name in ("One", "Two"))
    (later,), (earlier,) = secrets_on(client.get(second)), secrets_on(client.get(first))
    for secret, name in ((earlier, "One"), (later, "Two")):
        with acme.scope():
            assert ApiKey.objects.get(digest=keys.digest(secret)).name == name


def test_a_form_sent_again_before_its_key_was_shown_makes_no_second_key(acme, alice):
    """As by a double click without script, or once more after an answer that was lost: nobody would have the first."""
    client = acme.client(alice)
    form = wanted(f"Twice {uuid.uuid4().hex[:6]}")
    seen = []

    def click():
        browser = acme.client()
        browser.cookies = client.cookies
        seen.append(browser.post("/settings/keys/", form)["Location"])
        connection.close()

    clicks = [Thread(target=click) for _ in range(3)]
    for one in clicks:
        one.start()
    for one in clicks:
        one.join()
    assert len(set(seen)) == 1
    others = [{"life": "never"}, {"life": "30"}, {"scopes": ["chat"]}]
    assert not {client.post("/settings/keys/", form | other)["Location"] for other in others} & set(seen)
    assert secrets_on(client.get(seen[0]))
    again = client.post("/settings/keys/", form)["Location"]
    assert again not in seen, "one that was shown is somebody's"
    with acme.scope():
        made = ApiKey.objects.filter(name=form["name"])
        assert made.count() == 5
        assert AuditEvent.objects.filter(event="keys.made", target=form["name"]).count() == 5
        made.filter(pk=again.rpartition("=")[2]).update(revoked_at=timezone.now())
    assert client.post("/settings/keys/", form)["Location"] != again


def test_a_new_keys_secret_lies_sealed_and_is_no_one_elses(acme, alice):
    client = acme.client(alice)
    made = client.post("/settings/keys/", wanted("Server"))["Location"]
    with acme.scope():
        sealed = ApiKey.objects.latest("pk").sealed_secret
    assert sealed
    assert not secrets_on(acme.client(acme.member("carol@acme.example")).get(made))
    assert not client.head(made).content
    for odd in ("", "x", "-1", "9" * 30, "\u0663"):
        assert client.get("/settings/keys/", {"new": odd}).status_code == 200
    (secret,) = secrets_on(client.get(made))
    assert secret not in sealed


def test_a_secret_that_nobody_came_for_is_forgotten(acme, alice):
    client = acme.client(alice)
    late, revoked = (client.post("/settings/keys/", wanted(name))["Location"] for name in ("Late", "Revoked"))
    with acme.scope():
        key = ApiKey.objects.get(pk=late.rpartition("=")[2])
        ApiKey.objects.filter(pk=key.pk).update(created_at=key.created_at - timedelta(minutes=11))
        ApiKey.objects.get(pk=revoked.rpartition("=")[2]).revoke()
    assert not secrets_on(client.get(late))
    assert not secrets_on(client.get(revoked))
    with acme.scope():
        assert not ApiKey.objects.exclude(sealed_secret="").filter(name__in=["Late", "Revoked"]).exists()


def test_a_secret_that_cannot_be_opened_just_now_is_kept_for_later(acme, alice, settings):
    client = acme.client(alice)
    made = client.post("/settings/keys/", wanted("Restored"))["Location"]
    right, settings.KEY_SEALING_KEY = settings.KEY_SEALING_KEY, "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0NTY="
    assert client.get(made).status_code == 503
    settings.KEY_SEALING_KEY = right
    assert len(secrets_on(client.get(made))) == 1


def test_of_two_at_once_one_sees_the_secret(acme, alice, monkeypatch):
    """The second reads the slot before the first has emptied it."""
    with acme.scope():
        key, secret = create_key(alice, name="Raced", shown_later=True)
        sealed = key.sealed_secret

        def also(*args):
            monkeypatch.undo()
            taken.append(keys.take_secret(alice, key.pk))
            return sealed

        taken = []
        monkeypatch.setattr(QuerySet, "first", also)
        taken.append(keys.take_secret(alice, key.pk))
    assert taken == [secret, None]


def test_a_revoked_key_opens_nothing_from_that_moment(acme, alice):
    secret = acme.key(alice)
    with acme.scope():
        pk = ApiKey.objects.latest("pk").pk
    assert acme.api(secret).get("/api/budget/").status_code == 200
    assert acme.client(alice).post(f"/settings/keys/{pk}/revoke/").status_code == 302
    assert acme.api(secret).get("/api/budget/").status_code == 401


def test_another_members_key_cannot_be_revoked(acme, alice):
    acme.key(acme.owner)
    with acme.scope():
        pk = ApiKey.objects.latest("pk").pk
    assert acme.client(alice).post(f"/settings/keys/{pk}/revoke/").status_code == 404


def test_acmes_key_opens_nothing_at_globex(acme, globex):
    assert globex.api(acme.key()).get("/api/budget/").status_code == 401


def test_the_command_makes_a_key(acme, capsys):
    from django.core.management import CommandError, call_command

    call_command("api_key", "acme")
    secret = capsys.readouterr().out.strip()
    assert acme.api(secret, bare=True).get("/api/budget/").status_code == 200
    with pytest.raises(CommandError, match="no active workspace"):
        call_command("api_key", "nobody")


def test_chat_without_script_answers_with_a_page(workspace):
    client = workspace.client(workspace.owner)
    response = client.post("/", {"prompt": "hello there"})
    assert response.status_code == 302
    page = client.get(response["Location"]).content.decode()
    assert "hello there" in page
    assert "Hello, world." in page
    assert "$0.00026" in page


def test_a_refused_message_is_kept_and_the_page_says_why(workspace):
    workspace.leave(0)
    response = workspace.client(workspace.owner).post("/", {"prompt": "my precious draft"})
    assert response.status_code == 402
    page = response.content.decode()
    assert "my precious draft" in page
    assert "used up" in page


def test_a_prompt_that_is_too_long_is_kept_too(workspace):
    response = workspace.client(workspace.owner).post("/", {"prompt": "x" * 20_001})
    assert response.status_code == 400
    assert b"x" * 20_001 in response.content


@pytest.mark.on_standin
def test_the_budget_page_shows_the_ledger_the_calls_and_their_agreement(workspace):
    workspace.api().chat("hello")
    page = workspace.client(workspace.owner).get("/budget/").content.decode()
    assert "$0.00026" in page
    assert "test-model" in page
    assert "$1.00" in page


def test_pages_that_need_a_person_send_strangers_to_log_in(acme):
    for path in ("/", "/budget/", "/settings/keys/", "/c/1/"):
        response = acme.client().get(path)
        assert (response.status_code, response["Location"]) == (302, f"/login/?next={path}")


def test_an_unknown_page_is_a_page(acme):
    response = acme.client().get("/nothing/")
    assert response.status_code == 404
    assert response["Content-Type"].startswith("text/html")


@pytest.mark.on_standin
def test_every_answer_names_a_budget_and_globexs_is_404_like_an_unknown_one(acme, globex):
    api = acme.api()
    own, foreign, unknown = (api.get(f"/api/budget/{slug}/") for slug in ("acme", "globex", "nobody"))
    assert own.json()["tenant"] == "acme"
    assert own.json().keys() == {"tenant", "subject_tenant", "balances", "as_of", "period"}
    assert own.json()["balances"][0].keys() == {
        "scope", "scope_path", "unit", "allocated", "spent", "reserved", "remaining", "debt",
    }  # fmt: skip
    assert (foreign.status_code, unknown.status_code) == (404, 404)
    assert foreign.content == unknown.content


def test_the_api_documents_itself_without_a_foreign_server(acme):
    for client in (acme.client(), Client(headers={"host": "localhost"})):
        page = client.get("/api/docs")
        assert page.status_code == 200
        # Links may lead away; what the page loads may not.
        assert not re.search(rb'(src="|<link [^>]*href=")(https?:)?//', page.content)
        assert client.get("/api/openapi.json").json()["paths"]


@pytest.mark.on_standin
def test_a_member_sees_the_limits_of_their_own_seat_and_nobody_elses(workspace):
    from billing import admin_client

    tenant = workspace.account.subject_tenant
    carol, dave = workspace.member("carol@x.example"), workspace.member("dave@x.example")
    for member, allocated in ((carol, 1_230_000), (dave, 4_560_000)):
        for below in ("", "/app:chat"):
            scope = f"tenant:{tenant}/workspace:user-{member.pk}{below}"
            admin_client.ensure_budget(tenant, scope, allocated=allocated, overdraft_limit=0)
    page = workspace.client(carol).get("/budget/").content.decode()
    assert "Your own limits" in page
    assert "Your budget for chat" in page
    assert page.count("$0.0123 of $0.0123") == 2
    assert "0.0456" not in page
    assert "Your own limits" not in workspace.client(workspace.owner).get("/budget/").content.decode()


def links(page):
    return re.findall(r'<a [^>]*?href="([^"]*)"', page.content.decode())


def test_where_no_workspace_answers_the_page_leads_away_from_there(acme):
    """Its own "/" is the page that was refused."""
    start = "http://localhost:8000/"
    nobody = Client(headers={"host": "nobody-here.localhost"}).get("/")
    with acme.scope():
        Tenant.objects.filter(pk=acme.tenant.pk).update(status=Tenant.Status.SUSPENDED)
    try:
        on_hold = acme.client().get("/")
    finally:
        Tenant.objects.filter(pk=acme.tenant.pk).update(status=Tenant.Status.ACTIVE)
    assert (nobody.status_code, on_hold.status_code) == (404, 403)
    for page in (nobody, on_hold):
        found = set(links(page)) - {"#main"}
        assert start in found
        assert {link for link in found if not link.startswith(start)} == set()
    assert f"{start}login/" in links(nobody)
    assert start not in links(acme.client().get("/nothing/"))


def focused(page):
    return re.findall(r"<input[^>]*\bname=\"(\w+)\"[^>]*\bautofocus\b", page.content.decode())


def test_the_cursor_is_where_something_is_to_be_mended(acme, alice):
    bare = Client(headers={"host": "localhost"})
    typed = {"name": "Acme", "slug": "acme", "email": "a@acme.example", "password": PASSWORD}
    assert focused(bare.get("/signup/")) == ["name"]
    assert focused(bare.post("/signup/", typed)) == ["slug"]
    assert focused(bare.post("/signup/", {**typed, "email": "x", "password": "short"})) == ["email"]
    assert focused(acme.client().get("/login/")) == ["email"]
    wrong = acme.client().post("/login/", {"email": alice.email, "password": "wrong"})
    assert focused(wrong) == ["password"]
    assert b'aria-describedby="form-errors"' in wrong.content
    assert b"<title>Error: " in wrong.content


def test_what_is_forbidden_is_said_in_our_own_words(acme, alice, monkeypatch):
    """Also what Django forbids: a view's PermissionDenied was a page without a way on, and a forged form's led away."""
    client = acme.client(alice)
    monkeypatch.setattr("tenants.users.pages.keys.forget_untaken", Mock(side_effect=PermissionDenied))
    refused = client.get("/settings/keys/")
    assert refused.status_code == 403
    assert b"You may not do this." in refused.content
    client.handler.enforce_csrf_checks = True
    forged = client.post("/settings/keys/", wanted("Server"))
    assert forged.status_code == 403
    assert b'href="/settings/keys/">Open the page again</a>' in forged.content


def test_a_page_is_put_into_the_menu_without_a_change_to_a_file_of_ours(acme, alice, settings, tmp_path):
    """The menu itself lies where no other template takes its place, and each release may change it."""
    (tmp_path / "partials").mkdir()
    (tmp_path / "partials" / "nav_more.html").write_text('<a href="/poems/">Poems</a>')
    ours = settings.TEMPLATES[0]
    settings.TEMPLATES = [{**ours, "DIRS": [tmp_path, *ours["DIRS"]]}]
    menu = acme.client(alice).get("/budget/").content.decode().partition("</nav>")[0]
    assert re.findall(r'<a href="(/[a-z]*/?)"', menu)[-4:] == ["/", "/budget/", "/poems/", "/settings/"]
    assert b"/poems/" not in acme.client().get("/login/").content
