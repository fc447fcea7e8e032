"""Where a member is logged in: the list, ending one or all of them, and what is left of a session in the end."""

from __future__ import annotations

import re
import secrets
from datetime import timedelta

import pytest
from django.contrib.sessions.models import Session
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tenants.audit.models import AuditEvent
from tenants.limits import take
from tenants.users import browsers, failures
from tenants.users.devices import device
from tenants.users.models import MemberSession
from tenants.users.tasks import forget_sessions
from tests.support.cast import PASSWORD

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
SAFARI = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/18.5 Mobile/15E148 Safari/604.1"
)


@pytest.fixture
def carol(home):
    user = home.member(f"{secrets.token_hex(4)}@acme.example")
    home.client(user)  # gives the password
    with home.scope():
        browsers.end_sessions(user)
    return user


def log_in(room, user, agent=FIREFOX):
    client = room.client()
    client.defaults["HTTP_USER_AGENT"] = agent
    assert client.post("/login/", {"email": user.email, "password": PASSWORD}).status_code == 302
    return client


def key_of(client):
    return client.cookies["sessionid"].value


def row_of(room, client):
    with room.scope():
        return MemberSession.objects.get(session_key=key_of(client))


def before_this_release(room, client):
    """The session as an older release left it."""
    with room.scope():
        assert MemberSession.objects.filter(session_key=key_of(client)).delete()[0] == 1
    return client


def is_in(room, client):
    """At web's pages, at its API and at the plane: one answer of all three."""
    page = client.get("/", headers={"user-agent": FIREFOX}).status_code == 200
    web = client.get("/api/budget/").status_code == 200
    # Who is known is refused for the token of forms that it lacks.
    plane = room.plane(client).post("/api/chat/", {"prompt": "hello"}).json()["error"] != "unauthenticated"
    assert page == web == plane
    return page


def events(room, user):
    with room.scope():
        return list(AuditEvent.objects.filter(target=user.email).order_by("pk").values_list("event", flat=True))


def test_the_page_lists_ones_own_browsers_and_ends_one(home, neighbour, carol):
    here, phone = log_in(home, carol), log_in(home, carol, SAFARI)
    text = re.sub(r"\s+", " ", here.get("/settings/security/").content.decode())
    assert 'Firefox on Linux</strong> <span class="tag">this one' in text
    assert "Safari on iPhone</strong>" in text
    assert text.index("this one") < text.index("Safari on iPhone")
    assert "by password" in text
    row = row_of(home, phone)
    # Neither another member, nor next door, nor twice.
    dave = home.client(home.member("dave@acme.example"))
    assert dave.post(f"/settings/security/sessions/{row.pk}/end/").status_code == 404
    assert neighbour.client(neighbour.owner).post(f"/settings/security/sessions/{row.pk}/end/").status_code == 404
    assert is_in(home, phone)
    assert here.post(f"/settings/security/sessions/{row.pk}/end/").status_code == 302
    assert here.post(f"/settings/security/sessions/{row.pk}/end/").status_code == 404
    assert not is_in(home, phone)
    assert is_in(home, here)
    assert here.post(f"/settings/security/sessions/{row_of(home, here).pk}/end/")["Location"] == "/login/"
    assert not is_in(home, here)
    assert events(home, carol) == ["sign_in.session_ended"] * 2


@pytest.mark.parametrize("which", ["others", "all"])
def test_log_out_everywhere_ends_also_what_no_row_knows(home, carol, which):
    here, phone = log_in(home, carol), log_in(home, carol, SAFARI)
    old = before_this_release(home, log_in(home, carol))
    dave = home.member("dave@acme.example")
    others = before_this_release(home, home.client(dave))
    assert is_in(home, old)
    before_this_release(home, old)
    assert here.post("/settings/security/sessions/end/", {"which": which}).status_code == 302
    assert not is_in(home, phone)
    assert not is_in(home, old)
    assert is_in(home, here) == (which == "others")
    assert is_in(home, others)
    with home.scope():
        keys = {key_of(client) for client in (phone, old)}
        assert not Session.objects.filter(session_key__in=keys).exists()
    assert events(home, carol) == ["sign_in.all_sessions_ended"]


def test_a_session_of_before_is_noted_with_the_next_page_and_stays_the_members(home, carol):
    old = before_this_release(home, log_in(home, carol))
    assert old.get("/").status_code == 200
    page = old.get("/settings/security/").content.decode()
    assert page.count("this one") == 1
    assert "logged in before" in page
    assert row_of(home, old).user_id == carol.pk
    assert row_of(home, old).method == ""


def test_use_is_noted_once_a_minute_by_one_statement_and_for_pages_alone(home, carol):
    client = log_in(home, carol)

    def asked(path, method="GET"):
        with CaptureQueriesContext(connection) as seen:
            assert client.generic(method, path).status_code == (200 if method == "GET" else 400)
        return [query["sql"] for query in seen if "users_membersession" in query["sql"]]

    first, began = row_of(home, client).seen_at, row_of(home, client).created_at
    assert len(asked("/")) == 1
    assert row_of(home, client).seen_at == first
    with home.scope():
        MemberSession.objects.filter(session_key=key_of(client)).update(seen_at=first - timedelta(minutes=2))
    assert asked("/api/budget/") == asked("/", "POST") == []
    assert row_of(home, client).seen_at < first
    assert len(asked("/")) == 1
    assert row_of(home, client).seen_at > first
    assert row_of(home, client).created_at == began


def test_log_out_and_a_new_log_in_leave_no_row_behind(home, carol):
    client = log_in(home, carol)
    first = key_of(client)
    client.post("/login/", {"email": carol.email, "password": PASSWORD})
    assert key_of(client) != first
    client.post("/logout/")
    with home.scope():
        assert not MemberSession.objects.filter(user=carol).exists()
        said = AuditEvent.objects.filter(actor_id=carol.pk).order_by("-pk").values_list("event", flat=True)
        assert said[0] == "sign_in.logged_out"
    # Again, by nobody: no line.
    client.post("/logout/")
    with home.scope():
        assert AuditEvent.objects.filter(event="sign_in.logged_out", actor_id=None).count() == 0


def test_the_daily_job_deletes_what_is_over_and_nothing_that_lives(home, carol):
    live, over = log_in(home, carol), log_in(home, carol, SAFARI)
    with home.scope():
        Session.objects.filter(session_key=key_of(over)).update(expire_date=timezone.now() - timedelta(seconds=1))
        MemberSession.objects.create(user=carol, session_key=secrets.token_hex(16))
        page = live.get("/settings/security/").content.decode()
        assert "iPhone" not in page
    with home.scope():
        forget_sessions()
        assert [row.session_key for row in MemberSession.objects.filter(user=carol)] == [key_of(live)]
        assert not Session.objects.filter(session_key=key_of(over)).exists()
    assert is_in(home, live)


def test_what_one_run_deletes_is_bounded(home, monkeypatch):
    monkeypatch.setattr(browsers, "BATCH", 2)
    with home.scope():
        past = timezone.now() - timedelta(days=1)
        Session.objects.bulk_create(
            Session(session_key=secrets.token_hex(16), session_data="", expire_date=past) for _ in range(7)
        )
        assert browsers.forget_old(at_most=4) == 4
        assert browsers.forget_old(at_most=100) == 3


def test_a_wrong_password_is_a_line_for_a_member_alone_and_strangers_fill_no_trail(home, carol):
    nobody = f"{secrets.token_hex(4)}@acme.example"

    def fail(email):
        answer = home.client().post(
            "/login/", {"email": email, "password": "wrong"}, REMOTE_ADDR=f"198.51.{secrets.randbelow(255)}.7"
        )
        assert answer.status_code == 400

    def lines(email):
        with home.scope():
            return AuditEvent.objects.filter(event="sign_in.failed", target=email).count()

    with CaptureQueriesContext(connection) as of_member:
        fail(carol.email.upper())
    with CaptureQueriesContext(connection) as of_nobody:
        fail(nobody)
    assert (lines(carol.email), lines(nobody)) == (1, 0)
    # The same statements for both, so that no time tells them apart.
    ends = {"COMMIT": "end", "ROLLBACK": "end"}
    of_both = [[query["sql"].partition(" ")[0] for query in seen] for seen in (of_member, of_nobody)]
    kinds = [[ends.get(kind, kind) for kind in kinds] for kinds in of_both]
    assert kinds[0] == kinds[1]
    assert (of_both[0].count("ROLLBACK"), of_both[1].count("ROLLBACK")) == (0, 1)
    take(failures.OF_ONE, home.tenant.pk, carol.email, cost=failures.OF_ONE.burst - 1)
    fail(carol.email)
    assert lines(carol.email) == 1


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (FIREFOX, "Firefox on Linux"),
        (SAFARI, "Safari on iPhone"),
        ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/138.0 Safari/537.36 Edg/138.0", "Edge on Windows"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Chrome/138.0 Safari/537.36", "Chrome on macOS"),
        ("curl/8.5.0", "curl"),
        ("x" * 200, "x" * 59 + "…"),
        ("", "An unnamed browser"),
    ],
)
def test_a_browser_is_named_in_words_its_person_knows(agent, words):
    assert device(agent) == words
