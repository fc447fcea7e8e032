"""The pages of what an owner lets programs do: how much a key may ask for, and which web pages may ask at all."""

import re

import pytest

from tenants.audit.models import AuditEvent
from tenants.models import Tenant
from tenants.origins import NotAnOrigin, origin_of, origins_in
from tenants.users.models import ApiKey
from tests.support.money import eventually

pytestmark = pytest.mark.usefixtures("app")

ORIGINS = "/settings/workspace/origins/"


def key_of(workspace, user):
    workspace.key(user, name="Robot")
    with workspace.scope():
        return ApiKey.objects.latest("pk")


def rates_of(workspace, key):
    with workspace.scope():
        return ApiKey.objects.get(pk=key.pk).rates


def trail(workspace, event):
    with workspace.scope():
        return [line.details for line in AuditEvent.objects.filter(event=event).order_by("pk")]


def page(key):
    return f"/settings/keys/{key.pk}/rates/"


def test_an_owner_sets_changes_and_takes_away_a_key_s_rates_and_each_is_in_the_trail(workspace):
    owner = workspace.owner
    key, browser = key_of(workspace, owner), workspace.client(owner)
    assert browser.post(page(key), {"requests": "60", "tokens": "", "concurrent": "1"}).status_code == 302
    assert rates_of(workspace, key) == {"requests": 60, "concurrent": 1}
    shown = browser.get("/settings/keys/").content.decode()
    assert "at most 60 requests a minute · 1 call at once" in shown
    assert "Robot may ask for 60 requests a minute, 1 call at once at most." in shown
    assert browser.post(page(key), {"requests": "60", "concurrent": "1"}).status_code == 302
    assert browser.post(page(key), {}).status_code == 302
    assert rates_of(workspace, key) is None
    lines = trail(workspace, "keys.rates_set")
    assert [(line["requests"], line["concurrent"], line["before"]) for line in lines] == [
        (60, 1, []),
        (None, None, ["requests: 60", "concurrent: 1"]),
    ]


@pytest.mark.parametrize("typed", ["0", "-1", "1.5", "many", "1e3", "99999999999"])
def test_what_is_no_rate_comes_back_as_it_was_typed_with_the_cursor_there(workspace, typed):
    key = key_of(workspace, workspace.owner)
    answer = workspace.client(workspace.owner).post(page(key), {"requests": "5", "tokens": typed})
    text = answer.content.decode()
    assert answer.status_code == 400
    assert f'value="{typed}"' in text
    assert 'value="5"' in text
    assert re.search(r'<input[^>]*name="tokens"[^>]*autofocus', text)
    assert rates_of(workspace, key) is None


def test_the_operator_s_figure_is_the_most_that_can_be_written(workspace, settings):
    settings.KEY_RATES = {"requests": 10}
    key, browser = key_of(workspace, workspace.owner), workspace.client(workspace.owner)
    assert "at most 10 requests a minute" in browser.get("/settings/keys/").content.decode()
    answer = browser.post(page(key), {"requests": "11"})
    assert (answer.status_code, "Write at most 10." in answer.content.decode()) == (400, True)
    assert browser.post(page(key), {"requests": "10"}).status_code == 302


def test_rates_are_set_by_who_may_limit_and_not_above_them(workspace):
    admin, member = workspace.member("ann@x.example", "admin"), workspace.member("mia@x.example")
    own, owners, theirs = (key_of(workspace, user) for user in (admin, workspace.owner, member))
    for user, allowed, refused in ((admin, (own, theirs), (owners,)), (member, (), (theirs,))):
        browser = workspace.client(user)
        assert [browser.post(page(key), {"requests": "5"}).status_code for key in allowed] == [302] * len(allowed)
        assert [browser.post(page(key), {"requests": "6"}).status_code for key in refused] == [403] * len(refused)
    assert [rates_of(workspace, key) for key in (own, theirs, owners)] == [{"requests": 5}, {"requests": 5}, None]


def test_a_key_of_the_neighbour_s_or_one_that_has_ended_is_not_there(workspace, globex):
    foreign, browser = key_of(globex, globex.owner), workspace.client(workspace.owner)
    with globex.scope():
        ApiKey.objects.filter(pk=foreign.pk).update(id=987_654)
        foreign.pk = 987_654
    ended = key_of(workspace, workspace.owner)
    with workspace.scope():
        ended.revoke()
    assert [browser.post(page(key), {"requests": "5"}).status_code for key in (foreign, ended)] == [404, 404]
    assert rates_of(globex, foreign) is None


def test_a_rotated_key_carries_its_rates_on_and_both_are_changed_together(workspace):
    key, browser = key_of(workspace, workspace.owner), workspace.client(workspace.owner)
    browser.post(page(key), {"requests": "60"})
    assert browser.post(f"/settings/keys/{key.pk}/rotate/", {"overlap": "24", "life": "90"}).status_code == 302
    with workspace.scope():
        new = ApiKey.objects.latest("pk")
    assert (new.replaces_id, rates_of(workspace, new)) == (key.pk, {"requests": 60})
    assert browser.post(page(new), {"tokens": "1000"}).status_code == 302
    assert rates_of(workspace, key) == rates_of(workspace, new) == {"tokens": 1000}


# --- origins --------------------------------------------------------------------------------------------------------


def test_origins_are_kept_as_browsers_write_them_and_each_change_is_in_the_trail(workspace, globex):
    browser = workspace.client(workspace.owner)
    typed = "https://App.Example.com:443/\n\nhttp://localhost:3000\nhttps://app.example.com\n"
    assert browser.post(ORIGINS, {"origins": typed}).status_code == 302
    expected = ["https://app.example.com", "http://localhost:3000"]
    assert Tenant.objects.get(pk=workspace.tenant.pk).allowed_origins == expected
    assert Tenant.objects.get(pk=globex.tenant.pk).allowed_origins is None
    assert "https://app.example.com" in browser.get("/settings/workspace/").content.decode()
    assert browser.post(ORIGINS, {"origins": typed}).status_code == 302
    assert browser.post(ORIGINS, {"origins": ""}).status_code == 302
    assert Tenant.objects.get(pk=workspace.tenant.pk).allowed_origins is None
    assert [(line["before"], line["after"]) for line in trail(workspace, "settings.origins_changed")] == [
        ([], expected),
        (expected, []),
    ]


def test_an_origin_that_is_none_comes_back_as_it_was_typed(workspace):
    browser = workspace.client(workspace.owner)
    answer = browser.post(ORIGINS, {"origins": "https://good.example\nhttp://bad.example"})
    text = answer.content.decode()
    assert answer.status_code == 400
    assert "https://good.example\nhttp://bad.example" in text
    assert re.search(r"<textarea[^>]*autofocus", text)
    assert Tenant.objects.get(pk=workspace.tenant.pk).allowed_origins is None


def test_only_who_may_edit_the_workspace_names_origins(workspace):
    member = workspace.client(workspace.member("mia@x.example"))
    assert (member.get(ORIGINS).status_code, member.post(ORIGINS, {"origins": ""}).status_code) == (403, 403)
    admin = workspace.client(workspace.member("ann@x.example", "admin"))
    assert admin.post(ORIGINS, {"origins": "https://a.example"}).status_code == 302
    assert eventually(lambda: Tenant.objects.get(pk=workspace.tenant.pk).allowed_origins == ["https://a.example"])


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://a.example", "https://a.example"),
        ("HTTPS://A.example:443/", "https://a.example"),
        ("https://a.example:8443", "https://a.example:8443"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://demo.localhost", "http://demo.localhost"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
    ],
)
def test_an_origin_is_written_as_browsers_do(written, origin):
    assert origin_of(written) == origin


@pytest.mark.parametrize(
    "written",
    ["*", "https://*.example.com", "null", "a.example", "http://a.example", "ftp://a.example", "https://", "https://a.example/x",
     "https://a.example?x", "https://a.example#x", "https://u:p@a.example", "https://a.example:0", "https://a.example:99999",
     "https://a b.example", "https://[::1", "https://127.1", "https://-a.example", "javascript:alert(1)", "file:///x",
     "https://" + "a" * 400, "https://a.example:443:1", "http://10.0.0.1", "https://a..example", "https://ａ.example:x"],
)  # fmt: skip
def test_what_is_no_origin_is_refused(written):
    with pytest.raises(NotAnOrigin, match="“"):
        origin_of(written)


def test_no_more_than_twenty_origins_are_named():
    text = "\n".join(f"https://a{n}.example" for n in range(21))
    with pytest.raises(NotAnOrigin, match="21"):
        origins_in(text)
    assert len(origins_in(text.rpartition("\n")[0])) == 20


def test_a_rate_that_the_site_limits_is_never_said_to_have_no_limit(workspace, settings):
    settings.KEY_RATES = {"requests": 100}
    key, browser = key_of(workspace, workspace.owner), workspace.client(workspace.owner)
    text = browser.get(page(key)).content.decode()
    assert 'placeholder="at most 100"' in text
    assert text.count('placeholder="no limit"') == 2
    refused = browser.post(page(key), {"requests": "0", "tokens": "0"}).content.decode()
    assert refused.count("nothing for no limit") == 1
    assert "Write 1 or more, or nothing for the site’s limit." in refused
