"""What a key may, for how long, and what comes after it: scopes and roles at both doors, expiry, rotation, revoking."""

import json
import re
from datetime import timedelta
from threading import Thread

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.utils import timezone

from billing.errors import AuthorityUnavailable
from tenants.audit.models import AuditEvent
from tenants.roles import RANK, SCOPES, Action, may
from tenants.users.keys import create_key, digest
from tenants.users.models import ApiKey, User
from tests.support.plane import PlaneClient

pytestmark = pytest.mark.usefixtures("upstream")

# A call for each scope: of web, or below /api/chat/ of the plane. One that takes a body refuses "{" with 400.
CALLS = {
    "chat": ("POST", "/api/chat/"),
    "summarize": ("POST", "/api/summarize/"),
    "budget:read": ("GET", "/api/budget/"),
}
TRIED = tuple(scope for scope in SCOPES if scope in CALLS)


def ask(headers, scope, cookies=None, body="{"):
    """The operation's status and answer. A body that cannot be read is 400 to who may, and is not looked at before."""
    method, path = CALLS[scope]
    of_plane = path.startswith("/api/chat/")
    client = PlaneClient(headers=headers) if of_plane else Client(headers=headers)
    if cookies:
        client.cookies = cookies
    if method == "GET":
        answer = client.get(path)
    elif of_plane:
        answer = client.post(path, body)
    else:
        answer = client.post(path, body, content_type="application/json")
    return answer.status_code, answer.json()


def bearer(workspace, key, **named):
    return {"host": "localhost", "authorization": f"Bearer {key}", **named}


def test_each_scope_is_tried_by_a_call():
    assert set(CALLS) == set(SCOPES), "name a call for it in CALLS of this file: its method and its address"


@pytest.mark.parametrize("role", RANK)
def test_a_key_may_what_its_scopes_and_its_owners_role_both_allow(acme, role):
    owner = acme.member(f"{role}-keys@acme.example", role)
    for granted in [[scope] for scope in TRIED] + [list(TRIED)]:
        key = acme.key(owner, scopes=granted)
        for scope in TRIED:
            status, body = ask(bearer(acme, key), scope)
            if scope in granted and may(role, scope):
                assert status == (200 if CALLS[scope][0] == "GET" else 400), body
                continue
            assert (status, body["error"], body["needs"]) == (403, "forbidden", scope)
            assert ("role of this key's owner" if not may(role, scope) else "not made for") in body["message"]


@pytest.mark.parametrize("role", RANK)
def test_a_session_may_what_its_role_allows(acme, role):
    browser = acme.client(acme.member(f"{role}-sessions@acme.example", role))
    headers = {"host": acme.host, "x-csrftoken": browser.cookies["csrftoken"].value}
    for scope in TRIED:
        status, body = ask(headers, scope, browser.cookies)
        if may(role, scope):
            assert status in (200, 400)
        else:
            assert (status, body["error"], body["needs"]) == (403, "forbidden", scope)
            assert body["message"].startswith("Your role")


def test_a_refused_key_buys_nothing_and_its_body_is_not_read(workspace, upstream):
    key = workspace.key(scopes=["budget:read"])
    for scope in ("chat", "summarize"):
        for body in ("{", "x" * 2_000_000, '{"prompt": "hello"}', '{"text": "long"}'):
            assert ask(bearer(workspace, key), scope, body=body)[0] == 403
    assert not workspace.lines()
    assert workspace.ledger()["spent"] == 0


def test_a_key_of_before_scopes_may_what_its_owner_may(acme):
    key = acme.old_key()
    for scope in TRIED:
        assert ask(bearer(acme, key, **{"x-tenant-id": "acme"}), scope)[0] in (200, 400)


def test_what_says_nothing_is_taken_to_buy(acme, plane, monkeypatch):
    """At the plane any view, in web what asks by `caller`: a key that may only read is refused."""
    from django.http import HttpResponse
    from django.urls import ResolverMatch

    from tenants.http import Forbidden
    from tenants.users.auth import caller

    reads, chats = acme.key(scopes=["budget:read"]), acme.key(scopes=["chat"])
    for key, status in ((reads, 403), (chats, 200)):
        assert plane(headers=bearer(acme, key)).get("/api/plain/").status_code == status
    request = Client(headers=bearer(acme, reads)).get("/api/budget/").wsgi_request
    assert request.asker.key_id
    request.resolver_match = ResolverMatch(lambda request: HttpResponse(), (), {})
    with pytest.raises(Forbidden, match="chat"):
        caller(request)


def test_every_operation_says_what_it_is():
    from config.api import plane_api, tenant_api

    for api in (plane_api, tenant_api):
        for prefix, router in api._routers:
            for path, view in router.path_operations.items():
                for operation in view.operations:
                    needed = getattr(operation.view_func, "needs", None)
                    assert isinstance(needed, Action), f"{prefix}{path}: write @needs(…) right below its @router.…"


def test_an_expired_key_opens_nothing_at_either_door(acme):
    key = acme.key()
    for end, statuses in ((timedelta(minutes=1), {200, 400}), (timedelta(0), {401})):
        with acme.scope():
            ApiKey.objects.filter(digest=digest(key)).update(expires_at=timezone.now() + end)
        for named in ({}, {"x-tenant-id": "acme"}, {"host": acme.host}):
            assert {ask(bearer(acme, key, **named), scope)[0] for scope in TRIED} <= statuses


def test_a_workspace_may_want_a_second_step_of_sessions_and_never_of_keys(workspace):
    member = workspace.member("stepless@example.com")
    browser, key = workspace.client(member), workspace.key(member)
    headers = {"host": workspace.host, "x-csrftoken": browser.cookies["csrftoken"].value}
    type(workspace.tenant).objects.filter(pk=workspace.tenant.pk).update(requires_second_step=True)
    for scope in TRIED:
        status, body = ask(headers, scope, browser.cookies)
        assert (status, body["error"]) == (403, "second_step_required")
        assert ask(bearer(workspace, key), scope)[0] in (200, 400)
    with workspace.scope():
        User.objects.filter(pk=member.pk).update(second_step_at=timezone.now())
    assert {ask(headers, scope, browser.cookies)[0] for scope in TRIED} <= {200, 400}


# --- the page --------------------------------------------------------------------------------------------------------


def secret_on(page):
    (secret,) = re.findall(r"tk_[0-9a-f]{12}_\w{8}_[A-Za-z0-9_-]{43}", page.content.decode())
    return secret


def make(client, **fields):
    return client.post("/settings/keys/", {"name": "Server", "scopes": ["budget:read"], "life": "30", **fields})


def row_of(workspace, key):
    with workspace.scope():
        return ApiKey.objects.get(digest=digest(key))


def opens(workspace, key):
    return ask(bearer(workspace, key), "budget:read")[0] == 200


def told(workspace, event):
    with workspace.scope():
        return list(AuditEvent.objects.filter(event=event).order_by("pk"))


def test_a_key_is_made_as_it_was_wanted_and_written_down(workspace):
    client = workspace.client(workspace.owner)
    key = secret_on(client.get(make(client)["Location"]))
    row = row_of(workspace, key)
    assert row.scopes == ["budget:read"]
    assert timedelta(days=29) < row.expires_at - timezone.now() < timedelta(days=30)
    assert opens(workspace, key)
    line = told(workspace, "keys.made")[-1]
    assert (line.actor_id, line.via, line.target) == (workspace.owner.pk, "session", "Server")
    assert line.details["prefix"] == row.prefix
    assert key.rpartition("_")[2] not in json.dumps(line.details)
    assert secret_on(client.get(make(client, life="never")["Location"]))
    with workspace.scope():
        assert ApiKey.objects.latest("pk").expires_at is None


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("scopes", [], "Choose at least one"),
        ("scopes", ["keys:all"], "No key of yours"),
        ("scopes", ["chat"], "No key of yours"),
        ("life", "31", "not one of the available choices"),
        ("life", "", "required"),
        ("name", " ", "required"),
    ],
)
def test_a_form_that_is_wrong_says_where_and_keeps_what_was_typed(acme, field, value, says):
    viewer = acme.member("viewer-form@acme.example", "viewer")
    client = acme.client(viewer)
    with acme.scope():
        before = ApiKey.objects.count()
    page = make(client, **{"name": "Kept", field: value})
    assert page.status_code == 400
    text = page.content.decode()
    assert says in text
    assert field == "name" or 'value="Kept"' in text
    assert "autofocus" in text
    with acme.scope():
        assert ApiKey.objects.count() == before


def test_who_looks_after_everybodys_keys_sees_and_revokes_them_but_for_an_owners(workspace, acme):
    member, admin = workspace.member("maker@example.com"), workspace.member("admin@example.com", "admin")
    theirs, owners = workspace.key(member, name="Theirs"), workspace.key(name="Owners")
    page = workspace.client(admin).get("/settings/keys/").content.decode()
    assert "Theirs" in page
    assert "Owners" in page
    assert member.email in page
    assert "Owners" not in workspace.client(member).get("/settings/keys/").content.decode()

    def revoke(user, key):
        return workspace.client(user).post(f"/settings/keys/{row_of(workspace, key).pk}/revoke/").status_code

    assert revoke(member, owners) == 404
    assert revoke(admin, owners) == 403
    assert opens(workspace, owners)
    assert revoke(admin, theirs) == revoke(admin, theirs) == 302
    assert not opens(workspace, theirs)
    (line,) = told(workspace, "keys.revoked")
    assert (line.actor_id, line.target, line.details["owner"]) == (admin.pk, "Theirs", member.email)
    # The neighbour's owner, with the same number.
    assert (
        acme.client(acme.owner).post(f"/settings/keys/{row_of(workspace, theirs).pk + 10_000}/revoke/").status_code
        == 404
    )


def test_nobody_rotates_what_is_not_their_own(workspace):
    member, theirs = workspace.member("maker@example.com"), workspace.key()
    for user in (member, workspace.member("admin@example.com", "admin")):
        pk = row_of(workspace, theirs).pk
        answer = workspace.client(user).post(f"/settings/keys/{pk}/rotate/", {"overlap": "0", "life": "never"})
        assert answer.status_code == 404
    assert opens(workspace, theirs)


@pytest.fixture
def turned(workspace):
    """A key, and what rotates it."""
    key = workspace.key(name="Turned", scopes=["budget:read"])
    client = workspace.client(workspace.owner)

    def rotate(**fields):
        pk = row_of(workspace, key).pk
        return client.post(f"/settings/keys/{pk}/rotate/", {"overlap": "24", "life": "90", **fields})

    rotate.client = client
    return key, rotate


def test_a_rotated_key_goes_on_for_its_overlap_and_a_second_click_makes_no_second_one(workspace, turned):
    key, rotate = turned
    first, second = rotate(), rotate()
    assert (first.status_code, first["Location"]) == (302, second["Location"])
    new = secret_on(rotate.client.get(second["Location"]))
    old_row, new_row = row_of(workspace, key), row_of(workspace, new)
    assert (new_row.name, new_row.scopes, new_row.user_id) == ("Turned", ["budget:read"], old_row.user_id)
    assert new_row.replaces_id == old_row.pk
    assert timedelta(hours=23) < old_row.expires_at - timezone.now() < timedelta(hours=24)
    assert opens(workspace, key)
    assert opens(workspace, new)
    with workspace.scope():
        assert ApiKey.objects.filter(replaces=old_row).count() == 1
    assert [line.details["replaces"] for line in told(workspace, "keys.rotated")] == [old_row.prefix]
    page = rotate.client.get("/settings/keys/").content.decode()
    assert f"replaced by <code>{new_row.prefix}…</code>" in page
    assert f"/settings/keys/{old_row.pk}/rotate/" not in page
    with workspace.scope():
        ApiKey.objects.filter(pk=old_row.pk).update(expires_at=timezone.now())
    assert not opens(workspace, key)
    assert opens(workspace, new)


def test_rotated_at_once_the_old_one_opens_nothing_and_two_clicks_get_one_key(workspace, turned):
    key, rotate = turned
    first, second = rotate(overlap="0", life="never"), rotate(overlap="0", life="never")
    assert first["Location"] == second["Location"]
    assert opens(workspace, secret_on(rotate.client.get(second["Location"])))
    assert not opens(workspace, key)


def test_an_overlap_never_gives_a_key_more_life_than_it_had(workspace, turned):
    key, rotate = turned
    with workspace.scope():
        ApiKey.objects.filter(digest=digest(key)).update(expires_at=timezone.now() + timedelta(hours=1))
    assert rotate(overlap="168").status_code == 302
    assert row_of(workspace, key).expires_at < timezone.now() + timedelta(hours=1)


@pytest.mark.parametrize("end", ["revoked_at", "expires_at"])
def test_what_has_ended_is_not_rotated(workspace, turned, end):
    key, rotate = turned
    with workspace.scope():
        ApiKey.objects.filter(digest=digest(key)).update(**{end: timezone.now()})
    page = rotate()
    assert page.status_code == 409
    assert b"nothing to go on from" in page.content
    with workspace.scope():
        assert not ApiKey.objects.filter(replaces__digest=digest(key)).exists()


def test_a_choice_that_is_none_rotates_nothing(workspace, turned):
    key, rotate = turned
    assert rotate(overlap="9999").status_code == rotate(life="x").status_code == 400
    assert row_of(workspace, key).expires_at is None


def carried(old, new):
    hooked.append((old.pk, new.pk, ApiKey.objects.get(pk=new.pk).is_active))
    if failing:
        raise AuthorityUnavailable


hooked: list[tuple[int, int, bool]] = []
failing: list[bool] = []


def test_a_new_key_opens_nothing_until_its_limits_are_carried_over(workspace, turned, settings):
    """Where they cannot be, the old one goes on as it was, and another try takes up the same new key."""
    key, rotate = turned
    settings.KEY_ROTATED = f"{__name__}.carried"
    hooked.clear()
    failing[:] = [True]
    refused = rotate()
    assert refused.status_code == 503
    (old, new, was_active) = hooked[0]
    assert (old, was_active) == (row_of(workspace, key).pk, False)
    assert row_of(workspace, key).expires_at is None
    page = rotate.client.get(f"/settings/keys/?new={new}").content.decode()
    assert "Copy your new key" not in page
    assert page.count("<strong>Turned</strong>") == 1
    failing.clear()
    made = rotate()
    assert made["Location"].endswith(f"?new={new}")
    assert opens(workspace, secret_on(rotate.client.get(made["Location"])))
    assert {seen[:2] for seen in hooked} == {(old, new)}


def test_a_try_that_nobody_came_back_to_leaves_nothing(workspace, turned, settings):
    key, rotate = turned
    settings.KEY_ROTATED = f"{__name__}.carried"
    failing[:] = [True]
    rotate()
    failing.clear()
    with workspace.scope():
        left = ApiKey.objects.get(replaces__digest=digest(key))
        late = timezone.now() - timedelta(minutes=11)
        ApiKey.objects.filter(pk=left.pk).update(created_at=late, expires_at=late, sealed_secret="")
    assert opens(workspace, secret_on(rotate.client.get(rotate()["Location"])))
    with workspace.scope():
        assert not ApiKey.objects.filter(pk=left.pk).exists()


def revoked_meanwhile(old, new):
    old.revoke()


def test_a_key_that_is_revoked_while_it_is_rotated_has_no_heir(workspace, turned, settings):
    _, rotate = turned
    settings.KEY_ROTATED = f"{__name__}.revoked_meanwhile"
    assert rotate().status_code == 409
    with workspace.scope():
        assert not any(key.is_active for key in ApiKey.objects.filter(name="Turned"))


def test_two_clicks_at_the_same_moment_make_one_key(workspace, turned):
    key, rotate = turned
    cookies, seen = rotate.client.cookies, []

    def click():
        client = Client(headers={"host": workspace.host})
        client.cookies = cookies
        pk = pks[0]
        seen.append(client.post(f"/settings/keys/{pk}/rotate/", {"overlap": "0", "life": "90"})["Location"])
        connection.close()

    pks = [row_of(workspace, key).pk]
    clicks = [Thread(target=click) for _ in range(3)]
    for one in clicks:
        one.start()
    for one in clicks:
        one.join()
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert len(told(workspace, "keys.rotated")) == 1


def shown_beside(request, keys):
    return {key.pk: f"spent by {key.pk}" for key in keys}


def test_another_room_may_show_something_on_each_row(workspace, settings):
    settings.KEYS_BESIDE = f"{__name__}.shown_beside"
    pk = row_of(workspace, workspace.key()).pk
    assert f"spent by {pk}" in workspace.client(workspace.owner).get("/settings/keys/").content.decode()


def test_a_viewer_reads_and_sends_nothing(acme, upstream):
    viewer = acme.client(acme.member("reader@acme.example", "viewer"))
    page = viewer.get("/")
    assert page.status_code == 200
    assert b"Your role here is viewer" in page.content
    assert b"chat.js" not in page.content
    refused = viewer.post("/", {"prompt": "hello"})
    assert refused.status_code == 403
    assert viewer.get("/budget/").status_code == 200


def test_the_command_makes_a_key_with_scopes_and_an_end_and_is_written_down(workspace, capsys):
    call_command("api_key", workspace.slug, "--scopes", "chat, budget:read", "--expires-days", "7", "--name", "Nightly")
    row = row_of(workspace, capsys.readouterr().out.strip())
    assert row.scopes == ["chat", "budget:read"]
    assert timedelta(days=6) < row.expires_at - timezone.now() < timedelta(days=7)
    line = told(workspace, "keys.made")[-1]
    assert (line.actor, line.actor_id, line.via, line.target) == ("operator", None, "command", "Nightly")
    workspace.member("v@example.com", "viewer")
    for wrong in (["--scopes", "x"], ["--scopes", ","], ["--expires-days", "0"], ["--expires-days", "1e3"],
                  ["--email", "v@example.com"]):  # fmt: skip
        with pytest.raises(CommandError):
            call_command("api_key", workspace.slug, *wrong)


def test_a_brand_is_what_keys_begin_with(workspace, settings):
    before = workspace.key()
    settings.KEY_BRAND = "acmeco"
    with workspace.scope():
        after = create_key(workspace.owner, name="Branded")[1]
    assert after.startswith(f"acmeco_{workspace.tenant.public_id}_")
    assert opens(workspace, before)
    assert opens(workspace, after)
