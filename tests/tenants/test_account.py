"""One's own account: a forgotten password, a changed one, another e-mail address; and links of others tried here."""

import logging
import re
import secrets
import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from tenants.audit.models import AuditEvent
from tenants.limits import Rate
from tenants.logs import NoTokens
from tenants.threads import TenantExecutor
from tenants.users import addresses, directory, setting_passwords
from tenants.users.hashers import HashingBusy
from tenants.users.keys import digest
from tenants.users.links import make_link
from tenants.users.models import Link, MemberSession, User
from tenants.users.pages import passwords
from tenants.users.tasks import forget_sessions
from tests.support.cast import PASSWORD
from tests.support.jobs import rows
from tests.support.mails import mails_of, run_peoples_jobs

pytestmark = pytest.mark.usefixtures("app")

NEW = "a wholly new pass phrase"


@pytest.fixture
def carol(home):
    return home.member(an_email())


@contextmanager
def statements():
    """What is asked of the database meanwhile, without its values."""
    seen = []

    def note(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield seen


def up_to_a_wait(status, ask):
    """The answers up to the first that tells to wait. After the fifth the waits are 1, 2, 4 … seconds, so that a slow
    machine may let another one through.
    """
    answers = []
    while len(answers) < 10 and (not answers or status(answers[-1]) != 429):
        answers.append(ask())
    return answers


def an_email():
    return f"{secrets.token_hex(5)}@home.example"


def link(workspace, user, purpose, *, email=None):
    with workspace.scope(), transaction.atomic(durable=True):
        return make_link(user, purpose, email=email or user.email)


def again(workspace, user):
    with workspace.scope():
        return User.objects.get(pk=user.pk)


def log_in(workspace, email, password):
    return workspace.client().post("/login/", {"email": email, "password": password}).status_code


def is_in(client):
    return client.get("/settings/account/").status_code == 200


def events_of(workspace, user):
    with workspace.scope():
        return list(AuditEvent.objects.filter(actor_id=user.pk).order_by("pk").values_list("event", flat=True))


# --- a forgotten password -------------------------------------------------------------------------------------------


def test_links_that_ended_long_ago_are_forgotten_once_a_day_and_no_others(home, carol):
    asked = [link(home, carol, purpose) for purpose in (Link.Purpose.RESET, Link.Purpose.CONFIRM)]
    with home.scope():
        old, live = (Link.objects.get(digest=digest(secret)) for secret in asked)
        Link.objects.filter(pk=old.pk).update(expires_at=timezone.now() - timedelta(days=31))
        forget_sessions()
        assert not Link.objects.filter(pk=old.pk).exists()
        assert Link.objects.filter(pk=live.pk).exists()


def test_who_forgot_a_password_sets_another_by_mail_and_all_else_ends(home, carol):
    browser = home.client(carol)
    old = link(home, carol, Link.Purpose.LOG_IN)
    found = up_to_a_wait(int, lambda: log_in(home, carol.email, "what was it"))
    assert (found[:5], found[-1]) == ([400] * 5, 429)
    page = home.client().post("/password/", {"email": carol.email.upper()})
    assert (page.status_code, page["Location"]) == (302, "/password/asked/")
    assert run_peoples_jobs(home) == 1
    (mail,) = mails_of(home, to=carol.email)
    stranger = home.client()
    for _ in range(2):  # a mail program looks first
        assert carol.email in stranger.get(mail.path).content.decode()
    assert is_in(browser)
    answer = stranger.post(mail.path, {"new_password": NEW})
    assert (answer.status_code, answer["Location"]) == (302, "/login/")
    assert not is_in(stranger), "a reset logs nobody in: the second step is asked for there"
    assert not is_in(browser)
    assert (log_in(home, carol.email, PASSWORD), log_in(home, carol.email, NEW)) == (400, 302)
    assert again(home, carol).email_confirmed_at
    with home.scope():
        assert not Link.objects.filter(user=carol, used_at=None, expires_at__gt=timezone.now()).exists(), old
    assert "sign_in.password_reset" in events_of(home, carol)
    assert [mail.subject for mail in mails_of(home, to=carol.email)][1:] == ["Your password was changed"]
    assert stranger.post(mail.path, {"new_password": "yet another phrase"}).status_code == 404
    assert log_in(home, carol.email, NEW) == 302


def test_a_reset_leaves_the_second_step(home, carol):
    with home.scope():
        User.objects.filter(pk=carol.pk).update(second_step_at=timezone.now())
    home.client().post(f"/password/{link(home, carol, Link.Purpose.RESET)}/", {"new_password": NEW})
    assert again(home, carol).second_step_at


def test_asking_does_the_same_for_a_member_and_for_a_stranger(home, carol):
    def asked(email):
        browser = home.client()
        browser.get("/password/")
        with statements() as seen:
            answer = browser.post("/password/", {"email": email})
        said = browser.get(answer["Location"]).content.decode()
        return answer.status_code, answer["Location"], said, seen

    member, stranger = asked(carol.email), asked(an_email())
    assert member == stranger
    assert len(member[3]) > 2
    assert not any("users_user" in statement for statement in member[3])
    assert run_peoples_jobs(home) == 2
    assert [mail.subject for mail in mails_of(home, to=carol.email)] == ["Choose a new password"]


def test_links_are_asked_for_so_often_and_no_more(home, carol):
    for email in (carol.email, an_email()):
        answers = [home.client().post("/password/", {"email": email}) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [302] * 5 + [429]
        assert email in answers[-1].content.decode()
        assert int(answers[-1]["Retry-After"]) > 0
    run_peoples_jobs(home)


def test_who_has_many_networks_fills_no_queue_with_asking(home, monkeypatch):
    monkeypatch.setattr(passwords, "SITE", Rate(f"reset-site-{secrets.token_hex(4)}", burst=2, every=3_600.0))
    found = [
        home.client().post("/password/", {"email": an_email()}, headers={"x-real-ip": f"192.0.2.{n}"}).status_code
        for n in range(3)
    ]
    assert found == [302, 302, 429]


def test_a_password_that_is_no_good_keeps_the_link(home, carol):
    path = f"/password/{link(home, carol, Link.Purpose.RESET)}/"
    for bad in ("short", "password1234", carol.email, " " * 12, ""):
        assert home.client().post(path, {"new_password": bad}).status_code == 400
    assert home.client().post(path, {"new_password": NEW}).status_code == 302


def test_a_reset_that_could_not_be_hashed_keeps_the_link(home, carol, monkeypatch):
    path = f"/password/{link(home, carol, Link.Purpose.RESET)}/"

    def busy(*args):
        raise HashingBusy

    with monkeypatch.context() as patch:
        patch.setattr(setting_passwords, "make_password", busy)
        answer = home.client().post(path, {"new_password": NEW})
    assert (answer.status_code, answer["Retry-After"]) == (429, "2")
    assert home.client().post(path, {"new_password": NEW}).status_code == 302


def test_of_two_at_once_one_sets_the_password(home, carol):
    secret, start = link(home, carol, Link.Purpose.RESET), threading.Barrier(3)

    def act(password):
        start.wait(60)
        return home.client().post(f"/password/{secret}/", {"new_password": password}).status_code

    with TenantExecutor(3) as pool:
        phrases = [f"phrase of thread {n}" for n in range(3)]
        statuses = [each.result() for each in [pool.submit(act, phrase) for phrase in phrases]]
    assert sorted(statuses) == [302, 404, 404]
    assert log_in(home, carol.email, phrases[statuses.index(302)]) == 302


def test_a_link_of_anybody_elses_is_one_and_the_same_page(home, carol, globex, bob):
    with home.scope():
        expired = make_link(carol, Link.Purpose.RESET, email=carol.email)
        Link.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
        gone = home.member(an_email())
        removed = make_link(gone, Link.Purpose.RESET, email=gone.email)
        User.objects.filter(pk=gone.pk).update(is_active=False)
    secrets_ = ["x" * 43, "%00", expired, removed, link(globex, bob, Link.Purpose.RESET)]
    secrets_.append(link(home, carol, Link.Purpose.CONFIRM))  # good, and for another door
    pages = {
        (answer.status_code, answer.content)
        for secret in secrets_
        for answer in (
            home.client().get(f"/password/{secret}/"),
            home.client().post(f"/password/{secret}/", {"new_password": NEW}),
            home.client().get(f"/email/{secret}/"),
            home.client().post(f"/email/{secret}/"),
        )
    }
    ((status, _),) = pages
    assert status == 404
    assert log_in(globex, bob.email, NEW) == 400
    assert globex.client().post(f"/password/{secrets_[4]}/", {"new_password": NEW}).status_code == 302  # it was good


def test_pages_of_links_tell_their_address_to_nobody(home, carol, caplog):
    """And their own forms have an Origin: with "no-referrer" a browser says null, which CSRF's check refuses."""
    doors = {"password": Link.Purpose.RESET, "confirm": Link.Purpose.CONFIRM, "email": Link.Purpose.CHANGE}
    for door, purpose in doors.items():
        path = f"/{door}/{link(home, carol, purpose, email=an_email())}/"
        assert home.client().get(path)["Referrer-Policy"] == "strict-origin"
        assert home.client(csrf=True).post(path).status_code == 403
        record = logging.LogRecord("x", logging.WARNING, "", 0, "%s: %s", ("Not Found", path), None)
        NoTokens().filter(record)
        assert record.getMessage() == f"Not Found: /{door}/…/"


def test_logs_do_not_say_a_link_in_capitals_nor_a_key_that_was_put_into_an_address(acme):
    for path, said in [
        ("/CONFIRM/kO0secret/", "/CONFIRM/…/"),
        (f"/api/budget/{acme.key()}", "/api/budget/tk_"),
        (f"/api/budget/{acme.old_key()}/", "/api/budget/tk_…/"),
    ]:
        record = logging.LogRecord("x", logging.WARNING, "", 0, "%s: %s", ("Not Found", path), None)
        NoTokens().filter(record)
        assert record.getMessage().startswith(f"Not Found: {said}")
        assert "…" in record.getMessage()
        assert len(record.getMessage()) < 60


# --- a changed password ---------------------------------------------------------------------------------------------


def test_a_changed_password_keeps_this_browser_and_logs_the_others_out(home, carol):
    here, there = home.client(carol), home.client(carol)
    here = home.client(carol)
    reset = link(home, carol, Link.Purpose.RESET)
    before = here.cookies["sessionid"].value
    answer = here.post("/settings/account/password/", {"password": PASSWORD, "new_password": NEW})
    assert (answer.status_code, answer["Location"]) == (302, "/settings/account/")
    assert is_in(here)
    assert not is_in(there)
    assert here.cookies["sessionid"].value != before
    with home.scope():
        assert [one.session_key for one in MemberSession.objects.filter(user=carol)] == [
            here.cookies["sessionid"].value
        ]
    assert home.client().get(f"/password/{reset}/").status_code == 404
    assert (log_in(home, carol.email, PASSWORD), log_in(home, carol.email, NEW)) == (400, 302)
    assert "sign_in.password_changed" in events_of(home, carol)
    assert [mail.subject for mail in mails_of(home, to=carol.email)] == ["Your password was changed"]


def test_a_password_is_guessed_here_no_more_often_than_at_log_in(home, carol):
    browser = home.client(carol)

    def guess(path="password/", **new):
        return browser.post(f"/settings/account/{path}", {"password": "wrong", **new})

    def status(answer):
        return answer.status_code

    tries = up_to_a_wait(status, lambda: guess(new_password=NEW))
    assert [one.status_code for one in (*tries[:5], tries[-1])] == [400] * 5 + [429]
    assert "This is not your password." in tries[0].content.decode()
    *let_through, refused = up_to_a_wait(status, lambda: guess("email/", email="x@home.example"))
    assert len(let_through) < 5
    assert (refused.status_code, "x@home.example" in refused.content.decode()) == (429, True)
    assert again(home, carol).check_password(PASSWORD)
    with home.scope():
        counted = [one for one in (*tries, *let_through) if one.status_code == 400]
        assert AuditEvent.objects.filter(event="sign_in.failed", target=carol.email).count() == len(counted)


def test_a_new_password_is_held_to_the_same_rules(home, carol):
    browser = home.client(carol)
    for bad in ("short", "password1234", carol.email):
        answer = browser.post("/settings/account/password/", {"password": PASSWORD, "new_password": bad})
        assert answer.status_code == 400
    assert log_in(home, carol.email, PASSWORD) == 302


def test_who_has_no_password_is_led_to_the_mail_that_sets_one(home, carol):
    browser = home.client(carol)
    with home.scope():
        carol.set_unusable_password()
        carol.save()
        session = browser.session  # as one that a provider's log-in began
        session["_auth_user_hash"] = carol.get_session_auth_hash()
        session.save()
    page = browser.get("/settings/account/").content.decode()
    assert "You have no password here" in page
    assert 'action="/settings/account/email/"' not in page
    answer = browser.post("/settings/account/email/", {"password": "", "email": "x@home.example"})
    assert answer.status_code == 400


# --- another address ------------------------------------------------------------------------------------------------


def test_an_address_changes_once_its_new_owner_says_so(home, carol):
    new, old = an_email(), carol.email
    browser = home.client(carol)
    assert browser.post("/settings/account/email/", {"password": PASSWORD, "email": new}).status_code == 302
    run_peoples_jobs(home)
    (asked,), (to_new,) = mails_of(home, to=old), mails_of(home, to=new)
    assert "nothing changes" in to_new.txt
    assert new not in asked.txt
    assert home.client().get(to_new.path).status_code == 200
    assert again(home, carol).email == old
    with home.scope():
        directory.note(home.tenant, old)
    assert home.client().post(to_new.path).status_code == 302
    moved = again(home, carol)
    assert (moved.email, bool(moved.email_confirmed_at)) == (new, True)
    assert home.tenant in directory.workspaces_of(new)
    assert home.tenant not in directory.workspaces_of(old)
    assert is_in(browser)
    assert (log_in(home, old, PASSWORD), log_in(home, new, PASSWORD)) == (400, 302)
    assert {"sign_in.email_changed", "sign_in.email_confirmed"} <= set(events_of(home, carol))
    assert mails_of(home, to=old)[-1].subject == "Your e-mail address was changed"
    assert home.client().post(to_new.path).status_code == 404


def test_a_new_password_ends_a_link_that_is_asked_for_and_not_made_yet(home, carol):
    new, browser = an_email(), home.client(carol)
    assert browser.post("/settings/account/email/", {"password": PASSWORD, "email": new}).status_code == 302
    home.client().post("/password/", {"email": carol.email})
    queued = rows("SELECT args::text FROM public.procrastinate_jobs WHERE task_name LIKE 'tenants.users.%%'")
    assert queued
    assert "@" not in str(queued), "who is meant stands in the table for a month where a job fails, and in the log"
    form = {"password": PASSWORD, "new_password": NEW}
    assert browser.post("/settings/account/password/", form).status_code == 302
    assert run_peoples_jobs(home) == 2
    assert mails_of(home, to=new) == []
    with home.scope():
        assert not Link.objects.filter(user=carol, purpose=Link.Purpose.CHANGE).exists()


def test_an_address_of_another_members_is_asked_for_and_answered_like_a_free_one(home, carol):
    dave, free = home.member(an_email()), an_email()
    browser = home.client(carol)

    def asked(email):
        with statements() as seen:
            answer = browser.post("/settings/account/email/", {"password": PASSWORD, "email": email})
        said = browser.get(answer["Location"]).content.decode().replace(email, "…")
        return answer.status_code, re.sub(r'name="csrf\w+" value="\w+"', "", said), seen

    assert asked(free) == asked(dave.email)
    run_peoples_jobs(home)
    (told,) = mails_of(home, to=dave.email)
    assert (told.path, carol.email in told.txt) == ("/login/", False)
    with home.scope():
        assert not Link.objects.filter(email=dave.email).exists()


def test_an_address_that_was_taken_meanwhile_stays_with_who_has_it(home, carol):
    new = an_email()
    path = f"/email/{link(home, carol, Link.Purpose.CHANGE, email=new)}/"
    dave = home.member(new)
    assert home.client().post(path).status_code == 404
    assert (again(home, carol).email, again(home, dave).email) == (carol.email, new)


def test_a_link_to_the_address_of_before_confirms_nothing(home, carol):
    with home.scope(), transaction.atomic(durable=True):
        assert not addresses.confirm(carol, "another@home.example")
        assert addresses.confirm(carol, carol.email)
        assert addresses.confirm(carol, carol.email)
    assert events_of(home, carol) == ["sign_in.email_confirmed"]


def test_the_address_that_asked_is_not_moved_without_the_password(home, carol):
    browser = home.client(carol)
    answer = browser.post("/settings/account/email/", {"password": "wrong", "email": an_email()})
    assert answer.status_code == 400
    assert browser.post("/settings/account/email/", {"password": PASSWORD, "email": carol.email}).status_code == 400
    assert run_peoples_jobs(home) == 0
