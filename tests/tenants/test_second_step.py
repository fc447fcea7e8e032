"""The second step: setting it up, its codes at log-in, taken once, and a workspace that requires it."""

from __future__ import annotations

import json
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from datetime import timedelta
from io import StringIO

import pyotp
import pytest
from django.conf import settings
from django.core import signing
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import F
from django.utils import timezone

from tenants.audit.models import AuditEvent
from tenants.limits import key_of
from tenants.mail.models import OutgoingMail
from tenants.models import Limit, Tenant
from tenants.sealing import seal, unseal
from tenants.users import second_step
from tenants.users.entering import FIRST_STEP
from tenants.users.handoff import issue_token
from tenants.users.models import HandoffToken, RecoveryCode, Totp, User
from tests.support.cast import PASSWORD
from tests.support.factories import WorkspaceFactory

SET_UP = "/settings/security/two-step/"


@pytest.fixture
def carol(home):
    """Somebody of home whom no other test knows."""
    return home.member(f"{secrets.token_hex(4)}@acme.example")


def set_up(client):
    """By the pages: the app's codes, and the recovery codes."""
    assert client.post(SET_UP, {"begin": "yes"})["Location"] == SET_UP
    page = client.get(SET_UP).content.decode()
    app = pyotp.TOTP(re.search(r'id="typed">([A-Z2-7 ]+)<', page)[1].replace(" ", ""))
    assert client.post(SET_UP, {"code": app.now()})["Location"] == SET_UP + "codes/"
    return app, re.findall(r"(?:[a-z2-7]{4}-){3}[a-z2-7]{4}", client.get(SET_UP + "codes/").content.decode())


def next_code(app, ahead=1):
    return app.at(time.time(), counter_offset=ahead)


def as_if_time_had_gone(room, user):
    """What was taken was taken ten minutes ago."""
    with room.scope():
        assert Totp.objects.filter(user=user).update(last_interval=F("last_interval") - 20) == 1


def first_step(room, user, target=""):
    client = room.client()
    answer = client.post("/login/", {"email": user.email, "password": PASSWORD, "next": target})
    assert answer["Location"].startswith("/login/code/"), answer["Location"]
    return client


def events(room, user):
    with room.scope():
        return list(AuditEvent.objects.filter(target=user.email).order_by("pk").values_list("event", flat=True))


def is_in(client):
    return client.get("/").status_code == 200


@pytest.fixture
def with_app(home, carol):
    """(app, recovery codes) of Carol, whose first code was used up by setting it up."""
    return set_up(home.client(carol))


# --- setting up -----------------------------------------------------------------------------------------------------


def test_it_is_set_up_by_the_picture_and_a_right_code_and_its_recovery_codes_are_shown_once(home, carol):
    client = home.client(carol)
    assert client.post(SET_UP, {"begin": "yes"}).status_code == 302
    page = client.get(SET_UP)
    text = page.content.decode()
    assert "<svg" in text
    assert "style=" not in text.partition("<svg")[2].partition("</svg>")[0]
    secret = re.search(r'id="typed">([A-Z2-7 ]+)<', text)[1].replace(" ", "")
    with home.scope():
        totp = Totp.objects.get(user=carol)
        uri = second_step.begun(carol).uri
    assert secret not in totp.sealed_secret
    assert pyotp.parse_uri(uri).secret == secret
    assert (pyotp.parse_uri(uri).name, home.tenant.name in pyotp.parse_uri(uri).issuer) == (carol.email, True)
    # A wrong code turns nothing on, and the same secret is still there.
    wrong = client.post(SET_UP, {"code": "000000"})
    assert (wrong.status_code, secret[:4] in wrong.content.decode()) == (400, True)
    with home.scope():
        assert User.objects.get(pk=carol.pk).second_step_at is None
    assert client.post(SET_UP, {"code": pyotp.TOTP(secret).now()}).status_code == 302
    # A second click, whose browser throws the first one's answer away, leads there, too.
    for address in (SET_UP, SET_UP + "codes/"):
        assert client.post(address, {"code": "000000"})["Location"] == SET_UP + "codes/"
    shown = client.get(SET_UP + "codes/").content.decode()
    codes = re.findall(r"(?:[a-z2-7]{4}-){3}[a-z2-7]{4}", shown)
    assert len(set(codes)) == 10
    assert carol.email in shown, "a sheet of paper says whose they are"
    assert codes[0] not in client.get(SET_UP + "codes/").content.decode()
    assert secret[:4] not in client.get(SET_UP).content.decode()
    with home.scope():
        kept = list(RecoveryCode.objects.filter(user=carol).values_list("digest", flat=True))
        mail = unseal(OutgoingMail.objects.filter(to=carol.email).latest("pk").sealed_body)
    assert len(kept) == 10
    assert not any(codes[0].replace("-", "") in digest for digest in kept)
    assert "turned on" in mail
    assert "sign_in.second_step_added" in events(home, carol)


def test_a_second_click_is_told_of_no_wrong_code_while_the_first_is_being_answered(home, carol, monkeypatch):
    client, begun = home.client(carol), second_step.begun
    first = copy(client)
    assert client.post(SET_UP, {"begin": "yes"}).status_code == 302
    with home.scope():
        sent = {"code": pyotp.TOTP(begun(carol).secret).now()}

    def click():
        try:
            return first.post(SET_UP, sent)["Location"]
        finally:
            connection.close()

    def begun_just_before(user):
        found = begun(user)
        monkeypatch.setattr(second_step, "begun", begun)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(click).result() == SET_UP + "codes/"
        return found

    monkeypatch.setattr(second_step, "begun", begun_just_before)
    assert client.post(SET_UP, sent).headers.get("Location") == SET_UP
    assert client.get(SET_UP)["Location"] == SET_UP + "codes/"
    assert "recovery codes now" in client.get(SET_UP + "codes/").content.decode()


def test_a_browser_that_was_left_open_asks_for_the_password_first(home, carol, monkeypatch):
    client = home.client(carol)
    real = time.time
    monkeypatch.setattr("tenants.users.auth.time.time", lambda: real() + 601)
    page = client.get(SET_UP)
    assert 'name="password"' in page.content.decode()
    for body in ({"begin": "yes"}, {"begin": "yes", "password": "wrong"}, {"code": "123456"}):
        assert client.post(SET_UP, body).status_code == 400
    with home.scope():
        assert not Totp.objects.filter(user=carol).exists()
    assert client.post(SET_UP, {"begin": "yes", "password": PASSWORD}).status_code == 302
    assert 'id="typed"' in client.get(SET_UP).content.decode()


def test_a_password_that_is_asked_again_is_guessed_no_more_freely_than_at_log_in(home, carol, monkeypatch):
    client = home.client(carol)
    real = time.time
    monkeypatch.setattr("tenants.users.auth.time.time", lambda: real() + 601)
    # After the fifth the waits are 1, 2, 4 … seconds: a slow machine may let one through.
    found = [client.post(SET_UP, {"begin": "yes", "password": "wrong"}) for _ in range(8)]
    assert [answer.status_code for answer in found[:5]] == [400] * 5
    refused = [answer for answer in found[5:] if answer.status_code == 429]
    assert refused
    assert int(refused[0]["Retry-After"]) >= 1


def test_a_secret_that_somebody_began_in_another_tab_does_not_replace_the_one_that_was_confirmed(home, carol, with_app):
    app, _ = with_app
    with home.scope():
        second_step.begin(carol)
        totp = Totp.objects.get(user=carol)
    assert (unseal(totp.sealed_secret), totp.confirmed_at is not None) == (app.secret, True)


def test_to_turn_it_off_or_renew_its_codes_takes_the_password_and_a_code(home, carol, with_app):
    app, codes = with_app
    client = first_step(home, carol)
    client.post("/login/code/", {"code": next_code(app)})
    as_if_time_had_gone(home, carol)
    for path in ("off/", "codes/"):
        for body in ({"password": PASSWORD}, {"code": next_code(app)}, {"password": "wrong", "code": next_code(app)}):
            assert client.post(SET_UP + path, body).status_code == 400
    # The code beside a wrong password was not used up.
    answer = client.post(SET_UP + "codes/", {"password": PASSWORD, "code": next_code(app)})
    renewed = client.get(answer["Location"]).content.decode()
    assert codes[1] not in renewed
    with home.scope():
        assert RecoveryCode.objects.filter(user=carol, used_at=None).count() == 10
    assert home.client().post("/login/code/", {"code": codes[1]}).status_code == 302
    fresh = re.findall(r"(?:[a-z2-7]{4}-){3}[a-z2-7]{4}", renewed)
    assert first_step(home, carol).post("/login/code/", {"code": codes[2]}).status_code == 400
    assert client.post(SET_UP + "off/", {"password": PASSWORD, "code": fresh[0]}).status_code == 302
    assert home.client(carol).get("/").status_code == 200
    with home.scope():
        assert not Totp.objects.filter(user=carol).exists()
    assert {"sign_in.recovery_codes_made", "sign_in.recovery_code_used", "sign_in.second_step_removed"} <= {
        *events(home, carol)
    }


def test_an_operator_lets_somebody_in_who_has_lost_everything(home, neighbour, carol, with_app):
    with pytest.raises(CommandError, match="No such member"):
        call_command("turn_off_second_step", neighbour.slug, carol.email)
    call_command("turn_off_second_step", home.slug, carol.email, stdout=StringIO())
    assert is_in(home.client(carol))
    with home.scope():
        line = AuditEvent.objects.get(event="sign_in.second_step_removed", target=carol.email)
        mail = json.loads(unseal(OutgoingMail.objects.filter(to=carol.email).latest("pk").sealed_body))
    assert (line.actor, line.via) == ("operator", "command")
    assert all(f"{home.slug}.localhost" in part and "was turned off" in part for part in (mail["txt"], mail["html"]))
    with pytest.raises(CommandError, match="not on"):
        call_command("turn_off_second_step", home.slug, carol.email)


# --- logging in -----------------------------------------------------------------------------------------------------


def test_the_password_alone_opens_nothing_and_a_code_leads_where_one_was_going(home, carol, with_app):
    app, _ = with_app
    client = first_step(home, carol, "/budget/?x=1")
    assert "sessionid" not in client.cookies
    assert not is_in(client)
    page = client.get("/login/code/?next=/budget/%3Fx%3D1").content.decode()
    assert 'autocomplete="one-time-code"' in page
    assert 'value="/budget/?x=1"' in page
    answer = client.post("/login/code/", {"code": next_code(app), "next": "/budget/?x=1"})
    assert answer["Location"] == "/budget/?x=1"
    assert is_in(client)
    assert not client.cookies[FIRST_STEP].value
    with home.scope():
        assert carol.sessions.latest("pk").method == "password+code"
    # The same form sent twice, and a page that was left open: home.
    assert client.get("/login/code/")["Location"] == "/"


def test_it_stands_behind_every_way_in(home, carol, with_app):
    token = issue_token(home.tenant, user_id=carol.pk)
    client = home.client()
    answer = client.post("/welcome/", {"token": token}, headers={"origin": settings.SITE_URL})
    assert answer["Location"] == "/login/code/"
    assert not is_in(client)
    with home.scope():
        assert HandoffToken.objects.filter(user=carol).exclude(used_at=None).exists()


def test_a_code_opens_once_also_for_two_processes_at_once(home, carol, with_app):
    app, _ = with_app
    code = next_code(app)
    clients = [first_step(home, carol) for _ in range(4)]

    def one(client):
        try:
            return client.post("/login/code/", {"code": code}).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, clients))
    # Of tries in one and the same moment some are told to come a moment later.
    assert (found.count(302), {*found} <= {302, 400, 429}) == (1, True)
    assert first_step(home, carol).post("/login/code/", {"code": code}).status_code == 400


def test_a_code_that_another_process_has_just_taken_is_refused(home, carol, with_app, monkeypatch):
    """Both have read the row before either writes it."""
    app, _ = with_app
    real = second_step._interval_of

    def meanwhile(totp, code):
        interval = real(totp, code)
        Totp.objects.filter(pk=totp.pk).update(last_interval=interval)
        return interval

    monkeypatch.setattr(second_step, "_interval_of", meanwhile)
    assert first_step(home, carol).post("/login/code/", {"code": next_code(app)}).status_code == 400


@pytest.mark.parametrize(("ahead", "status"), [(-2, 400), (-1, 302), (0, 302), (1, 302), (2, 400)])
def test_a_phones_clock_may_be_half_a_minute_wrong(home, carol, with_app, ahead, status, monkeypatch):
    app, _ = with_app
    as_if_time_had_gone(home, carol)
    now = time.time()
    monkeypatch.setattr("tenants.users.second_step.time.time", lambda: now)
    client = first_step(home, carol)
    assert client.post("/login/code/", {"code": app.at(now, counter_offset=ahead)}).status_code == status


def test_an_older_code_is_refused_after_a_newer_one(home, carol, with_app):
    app, _ = with_app
    as_if_time_had_gone(home, carol)
    assert first_step(home, carol).post("/login/code/", {"code": next_code(app, 1)}).status_code == 302
    assert first_step(home, carol).post("/login/code/", {"code": next_code(app, 0)}).status_code == 400


def test_a_recovery_code_opens_once_however_it_is_typed(home, neighbour, carol, with_app):
    _, codes = with_app
    client = first_step(home, carol)
    assert "Recovery code" in client.get("/login/code/?with=recovery").content.decode()
    typed = f" {codes[0].upper().replace('-', ' ').replace('O', '0').replace('L', '1')} "
    assert client.post("/login/code/", {"code": typed, "with": "recovery"}).status_code == 302
    assert is_in(client)
    assert first_step(home, carol).post("/login/code/", {"code": codes[0]}).status_code == 400
    assert "sign_in.recovery_code_used" in events(home, carol)
    # It is worth nothing to anybody else, here or next door.
    other = home.member(f"{secrets.token_hex(4)}@acme.example")
    set_up(home.client(other))
    assert first_step(home, other).post("/login/code/", {"code": codes[1]}).status_code == 400


def test_wrong_codes_make_one_wait_and_the_right_password_does_not_end_that(home, carol, with_app):
    app, _ = with_app
    client = first_step(home, carol)
    found = [client.post("/login/code/", {"code": f"{number:06}"}).status_code for number in range(5)]
    assert found == [400] * 5
    who = (home.tenant.pk, carol.pk)
    row = Limit.objects.filter(key=key_of(second_step.CODES.name, who))
    assert row.update(free_at=timezone.now() + timedelta(seconds=60)) == 1
    # From elsewhere and after the password was right once more: the right code is not even looked at.
    again = first_step(home, carol)
    refused = again.post("/login/code/", {"code": next_code(app)})
    assert (refused.status_code, 50 <= int(refused["Retry-After"]) <= 60) == (429, True)
    assert "Too many wrong codes." in refused.content.decode()
    row.update(free_at=timezone.now())
    assert again.post("/login/code/", {"code": next_code(app)}).status_code == 302
    assert not row.exists()
    assert events(home, carol).count("sign_in.failed") == 5


def test_who_has_the_password_keeps_nobody_out_who_typed_a_code_at_home_before(home, carol, with_app):
    app, _ = with_app
    assert first_step(home, carol).post("/login/code/", {"code": next_code(app)}).status_code == 302
    as_if_time_had_gone(home, carol)
    guesser = first_step(home, carol)
    for number in range(2 * second_step.CODES.free):
        # Whatever its address: they share what there is to guess.
        guesser.post("/login/code/", {"code": f"{number:06}"}, headers={"x-real-ip": f"192.0.2.{number}"})
    # The wait was a second at least; a minute, so that it is not over on a slow machine.
    row = Limit.objects.filter(key=key_of(second_step.CODES.name, (home.tenant.pk, carol.pk)))
    assert row.update(free_at=timezone.now() + timedelta(seconds=60)) == 1
    there = guesser.post("/login/code/", {"code": "000000"}, headers={"x-real-ip": "192.0.2.99"})
    assert there.status_code == 429
    assert first_step(home, carol).post("/login/code/", {"code": next_code(app)}).status_code == 302


@pytest.mark.parametrize(
    "change", ["removed", "another password", "the neighbour's", "too old", "forged", "none", "turned off"]
)
def test_a_first_step_that_is_worth_nothing_any_more_leads_to_log_in_again(
    home, neighbour, carol, with_app, change, monkeypatch
):
    app, _ = with_app
    client = first_step(home, carol, "/budget/")
    where = home
    with home.scope():
        if change == "removed":
            User.objects.filter(pk=carol.pk).update(is_active=False, removed_at=timezone.now())
        elif change == "another password":
            carol.set_password("quite another password")
            carol.save(update_fields=["password"])
        elif change == "turned off":
            User.objects.filter(pk=carol.pk).update(second_step_at=None)
    if change == "the neighbour's":
        # The same id, password and secret next door: only the tie tells them apart.
        where = neighbour
        with home.scope():
            row = User.objects.get(pk=carol.pk)
        with neighbour.scope():
            User.objects.filter(pk=row.pk).delete()
            row.save(force_insert=True)
            Totp.objects.create(user=row, sealed_secret=seal(app.secret), confirmed_at=timezone.now())
        moved = neighbour.client()
        moved.cookies[FIRST_STEP] = client.cookies[FIRST_STEP].value
        client = moved
    elif change == "too old":
        real = time.time
        monkeypatch.setattr(signing.time, "time", lambda: real() + 301)
    elif change == "forged":
        client.cookies[FIRST_STEP] = signing.dumps([home.tenant.pk, carol.pk, "x", "password"], salt="another")
    elif change == "none":
        del client.cookies[FIRST_STEP]
    code = next_code(app)
    answer = client.post("/login/code/", {"code": code, "next": "/budget/"})
    assert answer["Location"] == "/login/?next=%2Fbudget%2F"
    assert "sessionid" not in client.cookies
    page = client.get(answer["Location"]).content.decode()
    assert page.count("Log in again: your first step was too long ago") == 1
    assert where.client().get("/").status_code == 302


def test_the_cookie_is_for_this_hosts_log_in_alone(home, carol, with_app):
    cookie = first_step(home, carol).cookies[FIRST_STEP]
    assert (cookie["httponly"], cookie["path"], cookie["domain"], cookie["samesite"]) == (True, "/login/", "", "Lax")
    assert 0 < int(cookie["max-age"]) <= 300
    with home.scope():
        carol.refresh_from_db()
    assert carol.get_session_auth_hash() not in signing.loads(cookie.value, salt="tenants.users.first-step")


# --- a workspace that requires it -----------------------------------------------------------------------------------


@pytest.fixture
def strict(app):
    room = WorkspaceFactory()
    Tenant.objects.filter(pk=room.tenant.pk).update(requires_second_step=True)
    return room


def test_who_has_none_is_led_to_set_it_up_and_reaches_nothing_else_by_a_browser(strict, settings):
    settings.ROOT_URLCONF = "tests.tenants.test_session_tie"
    dave = strict.member("dave@acme.example")
    client = strict.client(dave)
    for path in ("/", "/budget/", "/settings/keys/", "/settings/security/", "/whoami/"):
        assert client.get(path)["Location"] == SET_UP, path
    for path in ("/", "/settings/keys/", "/settings/security/sessions/end/"):
        refused = client.post(path, {"prompt": "mine", "name": "mine"})
        assert refused.status_code == 403
        assert "What you sent was not taken" in refused.content.decode()
        assert SET_UP in refused.content.decode()
    # A builder's view below /api/, too.
    body = client.get("/api/whoami/").json()
    assert (client.get("/api/whoami/").status_code, body["error"]) == (403, "second_step_required")
    assert strict.api(strict.key(dave)).get("/api/budget/").status_code == 200
    assert strict.client().get("/login/").status_code == 200
    assert "requires it of everybody" in client.get(SET_UP).content.decode()
    set_up(client)
    assert client.get("/").status_code == 200
    refused = client.post(SET_UP + "off/", {"password": PASSWORD, "code": "123456"})
    assert (refused.status_code, "cannot be turned" in refused.content.decode()) == (403, True)
    assert client.post("/logout/").status_code == 302


def test_an_owner_with_a_second_step_of_their_own_may_require_it(home, neighbour):
    path = "/settings/security/required/"
    assert home.client(home.member("erin@acme.example", "admin")).post(path, {"required": "yes"}).status_code == 403
    owner = home.client(home.owner)
    assert owner.post(path, {"required": "yes"}).status_code == 403
    set_up(owner)
    assert "Require it of everybody" in owner.get("/settings/security/").content.decode()
    try:
        for _ in range(2):
            assert owner.post(path, {"required": "yes"}).status_code == 302
        assert Tenant.objects.get(pk=home.tenant.pk).requires_second_step
        assert not Tenant.objects.get(pk=neighbour.tenant.pk).requires_second_step
        assert neighbour.client(neighbour.owner).get("/").status_code == 200
    finally:
        assert owner.post(path, {"required": "no"}).status_code == 302
    assert not Tenant.objects.get(pk=home.tenant.pk).requires_second_step
    with home.scope():
        said = AuditEvent.objects.filter(event__startswith="settings.second_step").order_by("pk")
        assert [line.event for line in said] == ["settings.second_step_required", "settings.second_step_not_required"]


def test_recovery_codes_have_eighty_bits():
    assert second_step.plain("abcd-efgh-ijkl-mnop") == "abcdefghijklmnop"
    assert second_step.RECOVERY_BYTES * 8 >= 80
    assert second_step.plain("١٢٣ ٤٥٦") != "123456"
    assert second_step.plain("１２３ ４５６") == "123456"


def test_a_code_that_cannot_be_looked_at_under_another_sealing_key_is_not_there_just_now(
    home, carol, with_app, settings, caplog
):
    app, _ = with_app
    as_if_time_had_gone(home, carol)
    client = first_step(home, carol)
    right, settings.KEY_SEALING_KEY = settings.KEY_SEALING_KEY, "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVoxMjM0NTY="
    for _ in range(second_step.CODES.free + 1):  # none counts as a wrong one
        refused = client.post("/login/code/", {"code": next_code(app, 0)})
        assert (refused.status_code, refused["Retry-After"]) == (503, "60")
    assert "cannot read" in refused.content.decode()
    assert "KEY_SEALING_KEY" not in refused.content.decode()
    assert any("KEY_SEALING_KEY is not the key" in line.getMessage() for line in caplog.records)
    settings.KEY_SEALING_KEY = right
    assert client.post("/login/code/", {"code": next_code(app, 0)}).status_code == 302
