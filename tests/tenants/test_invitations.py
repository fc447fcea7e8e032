"""Invitations: who is asked in, by whom, what the mail says, and who comes in by its link."""

from datetime import timedelta

import pytest
from django.utils import timezone

from tenants.audit.models import AuditEvent
from tenants.limits import Rate
from tenants.users import directory, invitations
from tenants.users.models import Invitation, User
from tests.support.cast import PASSWORD
from tests.support.factories import ConversationFactory
from tests.support.mails import mails_of
from tests.support.threads import at_once

pytestmark = pytest.mark.usefixtures("upstream")
NEW = "a new long passphrase"


@pytest.fixture(autouse=True)
def _no_network_is_full(monkeypatch):
    """All tests come from one address."""
    monkeypatch.setattr(invitations, "SENDER", Rate("invite-sender-in-tests", burst=10_000, every=0.001))


@pytest.fixture
def owner(workspace):
    return workspace.client(workspace.owner)


def invite(browser, *emails, role="member"):
    return browser.post("/settings/invitations/", {"emails": "\n".join(emails), "role": role})


def link_to(workspace, email):
    return mails_of(workspace, email)[-1].path


def trail(workspace, event):
    with workspace.scope():
        return list(AuditEvent.objects.filter(event=event).order_by("pk"))


def user_of(workspace, email):
    with workspace.scope():
        return User.objects.filter(email=email).first()


def test_who_is_invited_comes_in_with_the_role_and_a_proven_address(workspace, owner):
    assert invite(owner, "New@Person.Example", role="viewer").status_code == 302
    (mail,) = mails_of(workspace, "new@person.example")
    assert mail.subject == f"{workspace.owner.email} invites you to {workspace.tenant.name}"
    assert all("as a viewer" in part for part in (mail.txt, mail.html))
    assert all(f"http://{workspace.host}:8000{mail.path}" in part for part in (mail.txt, mail.html))
    browser = workspace.client()
    page = browser.get(mail.path)
    assert (page.status_code, page["Referrer-Policy"]) == (200, "strict-origin")
    words = page.content.decode()
    assert all(w in words for w in (workspace.owner.email, workspace.tenant.name, "new@person.example", "viewer"))
    assert user_of(workspace, "new@person.example") is None, "to look is not to come in"
    assert browser.post(mail.path, {"password": NEW})["Location"] == "/"
    assert browser.get("/budget/").status_code == 200
    made = user_of(workspace, "new@person.example")
    assert (made.role, made.is_active, made.email_confirmed_at is not None) == ("viewer", True, True)
    assert workspace.tenant in directory.workspaces_of("NEW@person.example")
    assert [line.target for line in trail(workspace, "members.joined")] == ["new@person.example"]
    assert [line.actor for line in trail(workspace, "members.invited")] == [workspace.owner.email]


def test_many_are_invited_at_once_and_each_that_cannot_be_is_named(workspace, owner):
    workspace.member("in@x.example")
    invite(owner, "open@x.example")
    typed = "a@x.example; b@x.example,c@x.example B@X.example nonsense\n in@X.example open@x.example"
    response = owner.post("/settings/invitations/", {"emails": typed, "role": "member"})
    words = response.content.decode()
    assert response.status_code == 400
    for said in (
        "b@x.example is named twice",
        "“nonsense” is not an e-mail address",
        "in@x.example is a member already",
        "open@x.example has an open invitation",
        "nonsense\n in@X.example open@x.example</textarea>",
    ):
        assert said in words, said
    assert not mails_of(workspace, "a@x.example"), "nothing is sent until all are right"
    assert invite(owner, "a@x.example; b@x.example,c@x.example").status_code == 302
    assert [len(mails_of(workspace, f"{name}@x.example")) for name in "abc"] == [1, 1, 1]
    many = invite(owner, *(f"m{n}@x.example" for n in range(51)))
    assert (many.status_code, "These are 51 addresses" in many.content.decode()) == (400, True)
    assert invite(owner, " ,; ").status_code == 400


def test_nobody_gives_a_role_above_their_own(workspace):
    admin = workspace.client(workspace.member("admin@x.example", "admin"))
    assert invite(admin, "a@x.example", role="owner").status_code == 400
    assert invite(admin, "a@x.example", role="admin").status_code == 302
    for role in ("member", "viewer"):
        browser = workspace.client(workspace.member(f"{role}@x.example", role))
        assert invite(browser, "b@x.example", role="viewer").status_code == 403
    owner = workspace.client(workspace.owner)
    invite(owner, "boss@x.example", role="owner")
    with workspace.scope():
        pk = Invitation.objects.get(email="boss@x.example").pk
    assert admin.post(f"/settings/invitations/{pk}/resend/").status_code == 403
    assert admin.post(f"/settings/invitations/{pk}/revoke/").status_code == 403
    assert len(mails_of(workspace, "boss@x.example")) == 1


@pytest.fixture
def ended(workspace, owner, globex):
    """Links that open nothing, by why."""

    def made(email):
        invite(owner, email)
        with workspace.scope():
            return link_to(workspace, email), Invitation.objects.get(email=email)

    expired, row = made("expired@x.example")
    with workspace.scope():
        Invitation.objects.filter(pk=row.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    revoked, row = made("revoked@x.example")
    assert owner.post(f"/settings/invitations/{row.pk}/revoke/").status_code == 302
    resent, row = made("resent@x.example")
    assert owner.post(f"/settings/invitations/{row.pk}/resend/").status_code == 302
    used, row = made("used@x.example")
    assert workspace.client().post(used, {"password": NEW}).status_code == 302
    moved, row = made("moved@x.example")
    workspace.member("moved@x.example")
    invite(globex.client(globex.owner), f"{workspace.slug}@x.example")
    return {
        "expired": expired, "revoked": revoked, "sent again": resent, "used": used, "of a member": moved,
        "a neighbour's": link_to(globex, f"{workspace.slug}@x.example"),
        "unknown": "/invitation/" + "x" * 43 + "/", "nonsense": "/invitation/%00é/",
    }  # fmt: skip


def test_a_link_that_is_no_longer_good_leads_to_one_and_the_same_page(workspace, globex, ended):
    assert globex.client().get(ended["a neighbour's"]).status_code == 200, "it is good at its own door"
    pages = {why: workspace.client().get(path) for why, path in ended.items()}
    assert {page.status_code for page in pages.values()} == {404}
    assert len({page.content for page in pages.values()}) == 1
    assert b"Ask whoever invited you for another" in pages["expired"].content
    with workspace.scope():
        before = User.objects.count()
    for why, path in ended.items():
        answer = workspace.client().post(path, {"password": NEW})
        assert answer.status_code == (302 if why == "used" else 404), why
    with workspace.scope():
        assert User.objects.count() == before
    assert globex.client().get(link_to(workspace, "resent@x.example")).status_code == 404
    assert workspace.client().get(link_to(workspace, "resent@x.example")).status_code == 200


def test_who_clicks_twice_is_in_and_made_once(workspace, owner):
    invite(owner, "twice@x.example")
    path = link_to(workspace, "twice@x.example")
    browsers = [workspace.client(), workspace.client()]
    answers = at_once(*(lambda browser=browser: browser.post(path, {"password": NEW}) for browser in browsers))
    assert sorted(answer["Location"] for answer in answers) == ["/", "/login/"]
    assert len(trail(workspace, "members.joined")) == 1
    inside = next(browser for browser in browsers if browser.get("/").status_code == 200)
    assert inside.get(path)["Location"] == inside.post(path, {"password": "other"})["Location"] == "/"


def test_a_password_that_will_not_do_is_said_and_the_invitation_stays_good(workspace, owner):
    invite(owner, "new@x.example")
    path, browser = link_to(workspace, "new@x.example"), workspace.client()
    for password in ("", "short", "new@x.example", "1234567890", " " * 12):
        answer = browser.post(path, {"password": password})
        assert answer.status_code == 400, password
        assert b"errorlist" in answer.content
    assert browser.post(path, {"password": NEW}).status_code == 302


def test_who_is_logged_in_as_somebody_else_is_told_and_then_is_the_new_one(workspace, owner):
    invite(owner, "new@x.example")
    path = link_to(workspace, "new@x.example")
    assert f"You are logged in as {workspace.owner.email}" in owner.get(path).content.decode()
    assert owner.post(path, {"password": NEW}).status_code == 302
    assert "new@x.example" in owner.get("/settings/members/").content.decode()
    assert owner.get("/settings/invitations/").status_code == 403


def test_a_former_member_comes_back_as_the_same_person_and_with_nothing_of_before_but_what_they_made(workspace, owner):
    carol = workspace.member("carol@x.example")
    before = workspace.client(carol)
    key = workspace.key(carol)
    with workspace.scope():
        kept = ConversationFactory(owner=carol, title="Of before")
    assert owner.post(f"/settings/members/{carol.pk}/remove/").status_code == 302
    invite(owner, "CAROL@x.example", role="admin")
    browser = workspace.client()
    assert browser.post(link_to(workspace, "carol@x.example"), {"password": NEW}).status_code == 302
    back = user_of(workspace, "carol@x.example")
    assert (back.pk, back.role, back.is_active, back.removed_at) == (carol.pk, "admin", True, None)
    assert b"Of before" in browser.get(f"/c/{kept.pk}/").content
    assert workspace.api(key).get("/api/budget/").status_code == 401
    assert before.get("/").status_code == 302
    assert workspace.client().post("/login/", {"email": "carol@x.example", "password": PASSWORD}).status_code == 400


@pytest.mark.parametrize("after", ["removed", "member", "admin"])
def test_what_an_inviter_may_no_longer_give_nobody_gets_from_them(workspace, owner, after):
    second = workspace.member("second@x.example", "owner")
    browser = workspace.client(second)
    invite(browser, "o@x.example", role="owner")
    invite(browser, "m@x.example", role="member")
    answer = (
        owner.post(f"/settings/members/{second.pk}/remove/")
        if after == "removed"
        else owner.post(f"/settings/members/{second.pk}/role/", {"role": after})
    )
    assert answer.status_code == 302
    still = {name: workspace.client().get(link_to(workspace, f"{name}@x.example")).status_code for name in "om"}
    assert still == {"o": 404, "m": 200 if after == "admin" else 404}
    assert len(trail(workspace, "members.invitation_revoked")) == (1 if after == "admin" else 2)


def test_who_is_removed_while_they_invite_has_invited_nobody(workspace, owner):
    for turn in range(3):
        second = workspace.member(f"second{turn}@x.example", "admin")
        browser = workspace.client(second)
        sent, removed = at_once(
            lambda browser=browser, turn=turn: invite(browser, *(f"m{turn}-{n}@x.example" for n in range(5))),
            lambda second=second: owner.post(f"/settings/members/{second.pk}/remove/"),
        )
        assert (removed.status_code, sent.status_code in (302, 403)) == (302, True)
        with workspace.scope():
            assert not invitations.open_ones().filter(invited_by=second).exists(), sent.status_code


def test_an_expired_invitation_is_renewed_by_another_and_a_good_one_by_sending_it_again(workspace, owner):
    invite(owner, "new@x.example", role="viewer")
    with workspace.scope():
        Invitation.objects.update(expires_at=timezone.now() - timedelta(days=1))
    assert "expired" in owner.get("/settings/members/").content.decode()
    assert invite(owner, "new@x.example", role="admin").status_code == 302
    with workspace.scope():
        (row,) = Invitation.objects.all()
        assert (row.role, row.expires_at > timezone.now() + timedelta(days=6)) == ("admin", True)
    admin = workspace.member("admin@x.example", "admin")
    assert workspace.client(admin).post(f"/settings/invitations/{row.pk}/resend/").status_code == 302
    first, second, third = (mail.path for mail in mails_of(workspace, "new@x.example"))
    assert [workspace.client().get(path).status_code for path in (first, second, third)] == [404, 404, 200]
    with workspace.scope():
        row.refresh_from_db()
        assert row.invited_by_id == admin.pk


def test_one_address_has_one_open_invitation_however_it_is_spelled_and_who_asks_at_once(workspace, owner):
    browsers = [workspace.client(workspace.member(f"admin{n}@x.example", "admin")) for n in range(2)]
    spelled = ["Une@Straße.example", "une@xn--strae-oqa.EXAMPLE"]
    answers = at_once(*(lambda b=b, s=s: invite(b, s) for b, s in zip(browsers, spelled, strict=True)))
    assert sorted(answer.status_code for answer in answers) == [302, 400]
    with workspace.scope():
        (row,) = Invitation.objects.all()
    assert workspace.client().post(link_to(workspace, row.email), {"password": NEW}).status_code == 302
    again = invite(owner, *spelled[1:])
    assert (again.status_code, "is a member already" in again.content.decode()) == (400, True)
    with workspace.scope():
        assert User.objects.filter(email__contains="example", role="member").count() == 1


def test_a_workspace_cannot_be_made_a_gun(workspace, owner):
    for _ in range(3):
        assert invite(owner, "often@x.example").status_code == 302
        with workspace.scope():
            Invitation.objects.update(revoked_at=timezone.now())
    answer = invite(owner, "other@x.example", "often@x.example")
    words = answer.content.decode()
    assert (answer.status_code, answer.has_header("Retry-After")) == (429, True)
    assert all(said in words for said in ("often@x.example: This address was invited often", "other@x.example\noften"))
    assert not mails_of(workspace, "other@x.example")
    # What was refused was not counted: 47 of 50 are left.
    assert invite(owner, *(f"m{n}@x.example" for n in range(47))).status_code == 302
    full = invite(owner, "one@more.example")
    assert (full.status_code, "has sent many invitations" in full.content.decode()) == (429, True)


def test_whose_own_address_is_not_confirmed_invites_nobody_where_addresses_must_be(workspace, owner, settings):
    settings.SIGNUP_CONFIRM_EMAIL = True
    answer = invite(owner, "new@x.example")
    assert (answer.status_code, "Confirm your own e-mail" in answer.content.decode()) == (403, True)
    with workspace.scope():
        User.objects.update(email_confirmed_at=timezone.now())
    assert invite(owner, "new@x.example").status_code == 302


def test_the_neighbours_invitations_are_nobodys_here(workspace, owner, globex):
    email, far = f"{workspace.slug}@y.example", 1_000_000 + workspace.tenant.pk
    with globex.scope():
        now = timezone.now()
        Invitation.objects.create(
            pk=far, email=email, role="member", digest=email, sent_at=now, expires_at=now + timedelta(days=7)
        )
    for act in ("resend", "revoke"):
        gone = owner.post(f"/settings/invitations/{far}/{act}/")
        assert (gone.status_code, gone.content.count(b"no longer open")) == (404, 1), "on the page of members"
    assert email not in owner.get("/settings/members/").content.decode()
    with globex.scope():
        assert Invitation.objects.get(pk=far).revoked_at is None


def test_logs_do_not_say_the_secret(workspace, caplog):
    workspace.client().get("/invitation/" + "s" * 43 + "/")
    assert "s" * 43 not in caplog.text
