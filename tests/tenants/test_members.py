"""A workspace's members: the page of them, and how one of them gets another role, hands over, leaves, is removed."""

import json
import threading
import uuid

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from billing import health
from billing.management.commands import ensure_demo
from billing.models import Account
from chat.models import Conversation
from config.stack.banner import banner
from tenants.audit.models import AuditEvent
from tenants.context import tenant_scope
from tenants.limits import Rate
from tenants.models import Tenant
from tenants.users import access, directory
from tenants.users.links import look_at, make_link
from tenants.users.models import ApiKey, HandoffToken, Identity, Link, MemberSession, RecoveryCode, Totp, User
from tests.support.cast import PASSWORD
from tests.support.factories import ConversationFactory, MessageFactory
from tests.support.threads import at_once

pytestmark = pytest.mark.usefixtures("upstream")


def role_of(workspace, user):
    with workspace.scope():
        found = User.objects.get(pk=user.pk)
    return found.role if found.is_active else None


def owners(workspace):
    with workspace.scope():
        return User.objects.filter(role="owner", is_active=True).count()


def trail(workspace, *events):
    with workspace.scope():
        lines = AuditEvent.objects.filter(event__in=events).order_by("pk")
        return [(line.event, line.actor, line.target) for line in lines]


def page_of(browser):
    response = browser.get("/settings/members/")
    assert response.status_code == 200
    return response.content.decode()


# --- the page ---


def test_the_page_shows_each_what_their_role_may_see(workspace, settings):
    settings.MEMBERS_BESIDE = "tests.tenants.test_members.beside"
    carol = workspace.member("carol@x.example", "viewer")
    workspace.client(carol)
    gone = workspace.member("gone@x.example")
    owner = workspace.client(workspace.owner)
    owner.post(f"/settings/members/{gone.pk}/remove/")
    owner.post("/settings/invitations/", {"emails": "new@x.example", "role": "admin"})
    whole = page_of(owner)
    assert f"<b>beside {carol.pk}</b>" in whole
    assert f"<b>beside {gone.pk}</b>" not in whole
    assert all(email in whole for email in ("carol@x.example", "gone@x.example", "new@x.example"))
    assert whole.count("last seen") == 2
    assert whole.count("two-step log-in off") == 2
    seen = page_of(workspace.client(carol))
    assert all(email in seen for email in ("carol@x.example", workspace.owner.email))
    assert all(hidden not in seen for hidden in ("gone@x.example", "new@x.example", "/role/", "/remove/", "Invite"))
    assert seen.count("two-step log-in") == 1, "one's own"


def beside(request, members):
    from django.utils.html import format_html

    return {member.pk: format_html("<b>beside {}</b>", member.pk) for member in members}


# --- roles ---


def test_a_role_is_changed_at_once_and_by_nobody_beyond_their_own(workspace):
    owner, admin = workspace.client(workspace.owner), workspace.member("admin@x.example", "admin")
    carol = workspace.member("carol@x.example")
    browser, hers = workspace.client(admin), workspace.client(carol)
    assert hers.get("/settings/invitations/").status_code == 403
    assert browser.post(f"/settings/members/{carol.pk}/role/", {"role": "admin"}).status_code == 302
    assert hers.get("/settings/invitations/").status_code == 302
    for who, role, status in (
        (carol, "owner", 400),
        (carol, "king", 400),
        (workspace.owner, "member", 403),
    ):
        answer = browser.post(f"/settings/members/{who.pk}/role/", {"role": role})
        assert answer.status_code == status, (who, role)
    assert browser.post(f"/settings/members/{workspace.owner.pk}/remove/").status_code == 403
    assert owner.post(f"/settings/members/{carol.pk}/role/", {"role": "owner"}).status_code == 302
    assert [role_of(workspace, user) for user in (workspace.owner, admin, carol)] == ["owner", "admin", "owner"]
    assert trail(workspace, "roles.changed") == [
        ("roles.changed", "admin@x.example", "carol@x.example"),
        ("roles.changed", workspace.owner.email, "carol@x.example"),
    ]


def test_the_only_owner_can_neither_leave_nor_be_removed_nor_step_down(workspace):
    owner = workspace.client(workspace.owner)
    pk = workspace.owner.pk
    for path, body in (
        ("leave/", {}),
        (f"{pk}/remove/", {}),
        (f"{pk}/role/", {"role": "admin"}),
    ):
        answer = owner.post(f"/settings/members/{path}", body)
        assert (answer.status_code, "Hand the workspace over" in answer.content.decode()) == (409, True), path
    assert role_of(workspace, workspace.owner) == "owner"
    assert "Leave…" not in page_of(owner)


@pytest.mark.parametrize("steps_down", [False, True])
def test_an_owner_hands_over_and_stays_or_steps_down(workspace, steps_down):
    first, carol = workspace.owner, workspace.member("carol@x.example")
    owner = workspace.client(first)
    answer = owner.post(
        "/settings/members/hand-over/", {"member": carol.pk, **({"steps_down": "on"} if steps_down else {})}
    )
    assert answer.status_code == 302
    assert role_of(workspace, carol) == "owner"
    assert role_of(workspace, first) == ("admin" if steps_down else "owner")
    assert len(trail(workspace, "roles.handed_over")) == 1
    wrong = owner.post("/settings/members/hand-over/", {"member": "999999"})
    assert wrong.status_code == (403 if steps_down else 400)


def test_two_owners_who_show_each_other_out_at_once_leave_one(workspace):
    first, second = workspace.owner, workspace.member("second@x.example", "owner")
    browsers = workspace.client(first), workspace.client(second)
    for _ in range(4):
        answers = at_once(
            lambda: browsers[0].post(f"/settings/members/{second.pk}/role/", {"role": "member"}),
            lambda: browsers[1].post(f"/settings/members/{first.pk}/role/", {"role": "member"}),
        )
        assert owners(workspace) == 1
        assert sorted(answer.status_code for answer in answers)[0] == 302
        assert sorted(answer.status_code for answer in answers)[1] in (302, 403)
        with workspace.scope():
            User.objects.filter(pk__in=[first.pk, second.pk]).update(role="owner")


@pytest.mark.parametrize("acts", [("leave/", "leave/"), ("down", "leave/"), ("down", "down")])
def test_two_owners_who_go_at_once_leave_one(workspace, acts):
    first, second = workspace.owner, workspace.member("second@x.example", "owner")

    def go(browser, user, act):
        if act == "down":
            return browser.post(f"/settings/members/{user.pk}/role/", {"role": "viewer"})
        return browser.post(f"/settings/members/{act}")

    browsers = workspace.client(first), workspace.client(second)
    answers = at_once(lambda: go(browsers[0], first, acts[0]), lambda: go(browsers[1], second, acts[1]))
    assert sorted(answer.status_code for answer in answers) == [302, 409]
    assert owners(workspace) == 1


# --- the way out ---


@pytest.mark.parametrize("how", ["removed", "leaves"])
def test_who_goes_is_out_at_every_door_at_once_and_what_they_made_stays(workspace, globex, how):
    carol = workspace.member(f"carol@{workspace.slug}.example")
    browser, key = workspace.client(carol), workspace.key(carol)
    api = workspace.api(key)
    assert api.chat("hello").status_code == 200
    assert browser.get("/").status_code == 200
    with workspace.scope():
        now = timezone.now()
        User.objects.filter(pk=carol.pk).update(second_step_at=now)
        Totp.objects.create(user=carol, sealed_secret="x", confirmed_at=now)
        RecoveryCode.objects.create(user=carol, digest="x")
        Identity.objects.create(user=carol, provider="p", subject="s")
        HandoffToken.objects.create(user=carol, digest="x", expires_at=now)
        link = make_link(carol, Link.Purpose.LOG_IN, email=carol.email)
    for tenant in (workspace.tenant, globex.tenant):
        directory.note(tenant, carol.email)
    plane = workspace.plane(browser)
    if how == "removed":
        answer = workspace.client(workspace.owner).post(f"/settings/members/{carol.pk}/remove/")
    else:
        answer = browser.post("/settings/members/leave/")
    assert answer.status_code == 302
    assert browser.get("/")["Location"].startswith("/login/")
    assert plane.post("/api/chat/", {"prompt": "hello"}).status_code == 401
    assert api.chat("hello").status_code == api.get("/api/budget/").status_code == 401
    assert workspace.client().post("/login/", {"email": carol.email, "password": PASSWORD}).status_code == 400
    with workspace.scope():
        gone = User.objects.get(pk=carol.pk)
        assert (gone.is_active, gone.removed_at is not None, gone.second_step_at) == (False, True, None)
        for model in (MemberSession, Totp, RecoveryCode, Identity, HandoffToken):
            assert not model.objects.filter(user=carol).exists(), model
        assert not ApiKey.objects.filter(user=carol, revoked_at=None).exists()
        assert look_at(link, Link.Purpose.LOG_IN) is None
        assert Conversation.objects.filter(owner=carol).count() == 1
    assert len(workspace.lines()) == 1
    assert list(directory.workspaces_of(carol.email)) == [globex.tenant]
    who = workspace.owner.email if how == "removed" else carol.email
    event = "members.removed" if how == "removed" else "members.left"
    assert trail(workspace, "members.removed", "members.left") == [(event, who, carol.email)]


@pytest.mark.on_standin
def test_an_answer_that_runs_when_its_reader_is_removed_goes_on_and_is_paid_once(workspace, upstream):
    carol = workspace.member("carol@x.example")
    api, owner = workspace.api(workspace.key(carol)), workspace.client(workspace.owner)
    upstream.tokens, upstream.last_word_after = ["word "] * 20, threading.Event()
    stream = api.chat("hello", stream=True)
    parts = stream.streaming_content
    begun = b"".join(next(parts) for _ in range(2))
    assert owner.post(f"/settings/members/{carol.pk}/remove/").status_code == 302
    assert api.chat("more").status_code == 401
    upstream.last_word_after.set()
    whole = begun + b"".join(parts)
    assert (whole.count(b"word "), whole.count(b"event: done")) == (20, 1), "words may come two in an event"
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.cost) == ("exact", workspace.ledger()["spent"])
    assert len(upstream.calls) == 1
    with workspace.scope():
        assert Conversation.objects.get(owner=carol).messages.count() == 2


def test_nobody_acts_on_a_neighbours_member(workspace, globex):
    far = 1_000_000 + workspace.tenant.pk
    with globex.scope():
        User.objects.create(pk=far, email=f"far-{far}@x.example", is_active=False, removed_at=timezone.now())
        hers = ConversationFactory(owner_id=far)
    owner = workspace.client(workspace.owner)
    for pk in (far, 10**30):
        assert owner.post(f"/settings/members/{pk}/role/", {"role": "viewer"}).status_code == 404
        gone = owner.post(f"/settings/members/{pk}/remove/")
        assert (gone.status_code, gone.content.count(b"so nothing was changed")) == (404, 1), "on the page of members"
        assert owner.get(f"/settings/members/{pk}/chats/").status_code == 404
        assert owner.get(f"/settings/members/{pk}/chats/{hers.pk}/").status_code == 404
        assert owner.post("/settings/members/hand-over/", {"member": pk}).status_code == 400


# --- what former members wrote ---


def test_a_former_members_conversations_are_read_by_admins_and_written_down(workspace):
    carol, owner = workspace.member("carol@x.example"), workspace.client(workspace.owner)
    with workspace.scope():
        talk = ConversationFactory(owner=carol, title="Of the ledger")
        MessageFactory(conversation=talk, text="What is a ledger?")
        mine = ConversationFactory(owner=workspace.owner)
        for _ in range(50):
            ConversationFactory(owner=carol)
    listed, shown = f"/settings/members/{carol.pk}/chats/", f"/settings/members/{carol.pk}/chats/{talk.pk}/"
    for path in (listed, shown):
        assert owner.get(path).status_code == 404, "she is still a member"
    owner.post(f"/settings/members/{carol.pk}/remove/")
    assert "Of the ledger" not in owner.get(listed).content.decode(), "the newest fifty"
    assert "Of the ledger" in owner.get(f"{listed}?before={talk.pk + 1}").content.decode()
    page = owner.get(shown)
    assert "What is a ledger?" in page.content.decode()
    assert "<textarea" not in page.content.decode()
    assert owner.get(f"{listed}{mine.pk}/").status_code == 404
    assert owner.get(f"/c/{talk.pk}/").status_code == 404
    assert owner.get(f"{listed}?before=nonsense").status_code == 200
    read = trail(workspace, "members.former_chat_read")
    assert set(read) == {("members.former_chat_read", workspace.owner.email, "carol@x.example")}
    for role, status in (("admin", 200), ("member", 403), ("viewer", 403)):
        browser = workspace.client(workspace.member(f"{role}@x.example", role))
        assert browser.get(listed).status_code == browser.get(shown).status_code == status


def test_nobody_floods_the_trail_by_looking(workspace, monkeypatch):
    monkeypatch.setattr(access, "ACTS", Rate(f"acts-{uuid.uuid4().hex}", burst=3, every=3_600.0))
    carol, owner = workspace.member("carol@x.example"), workspace.client(workspace.owner)
    with workspace.scope():
        talk = ConversationFactory(owner=carol)
    owner.post(f"/settings/members/{carol.pk}/remove/")
    listed = f"/settings/members/{carol.pk}/chats/"
    looks = [owner.get(path).status_code for path in (listed, f"{listed}{talk.pk}/", listed, f"{listed}{talk.pk}/")]
    assert looks == [200, 200, 429, 429]
    assert len(trail(workspace, "members.former_chat_read")) == 2


# --- the demo's person ---


@pytest.mark.parametrize("went", [{"is_active": False}, {"email": "moved@x.example"}])
def test_the_demos_log_in_works_again_after_its_person_went(app, settings, tmp_path, monkeypatch, went):
    slug = f"demo-{'moved' if 'email' in went else 'left'}"
    for module in (ensure_demo, health):
        monkeypatch.setattr(module, "DEMO_SLUG", slug)
    settings.STATE_DIR = tmp_path
    call_command("ensure_demo")
    tenant = Tenant.objects.get(slug=slug)
    with tenant_scope(tenant):
        User.objects.update(**went)
    call_command("ensure_demo")
    made = json.loads((tmp_path / "demo.json").read_text())
    browser = Client(headers={"host": f"{slug}.localhost"})
    assert browser.post("/login/", {"email": made["email"], "password": made["password"]}).status_code == 302
    assert browser.get("/settings/invitations/").status_code == 302


# --- an operator, and apps of one's own ---


def test_an_operator_gives_a_role_by_a_command_and_never_takes_the_only_owners(workspace, capsys):
    carol, owner = workspace.member("carol@x.example"), workspace.owner
    call_command("set_role", workspace.slug, " CAROL@x.example", "owner")
    assert "carol@x.example is an owner now." in capsys.readouterr().out
    assert workspace.tenant in directory.workspaces_of(carol.email)
    call_command("set_role", workspace.slug, owner.email, "viewer")
    assert (role_of(workspace, carol), role_of(workspace, owner)) == ("owner", "viewer")
    with pytest.raises(CommandError, match="only owner"):
        call_command("set_role", workspace.slug, carol.email, "admin")
    with pytest.raises(CommandError, match="No such member"):
        call_command("set_role", workspace.slug, "bob@globex.example", "admin")
    assert trail(workspace, "roles.changed") == [
        ("roles.changed", "operator", carol.email), ("roles.changed", "operator", owner.email)
    ]  # fmt: skip


def note_gone(member):
    Conversation.objects.create(owner=member, title=f"of {member.email}, who is {member.is_active}")


def test_an_app_of_ones_own_is_told_who_is_gone_in_that_transaction(workspace, settings):
    settings.ON_MEMBER_GONE = [f"{__name__}.note_gone"]
    carol = workspace.member("carol@x.example")
    workspace.client(workspace.owner).post(f"/settings/members/{carol.pk}/remove/")
    with workspace.scope():
        assert Conversation.objects.get(owner=carol).title == "of carol@x.example, who is False"


def test_the_terminal_names_no_demo_that_was_deleted(app, settings, tmp_path, monkeypatch):
    for module in (ensure_demo, health):
        monkeypatch.setattr(module, "DEMO_SLUG", "demo-deleted")
    settings.STATE_DIR = tmp_path
    call_command("ensure_demo")
    made = json.loads((tmp_path / "demo.json").read_text())
    assert made["password"] in banner(tmp_path, 8000, 1.0, chat_port=8000)
    Account.objects.filter(tenant__slug="demo-deleted").update(status=Account.Status.CLOSED)
    call_command("ensure_demo")
    said = banner(tmp_path, 8000, 1.0, chat_port=8000)
    assert "reopen_workspace" in said
    assert made["password"] not in said
    assert made["api_key"] not in said
    Account.objects.filter(tenant__slug="demo-deleted").update(status=Account.Status.ACTIVE)
    call_command("ensure_demo")
    assert made["password"] in banner(tmp_path, 8000, 1.0, chat_port=8000)
