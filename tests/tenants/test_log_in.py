"""Log-in's limits: guessing one account, one address guessing many, strangers who would keep the owner out."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from importlib import import_module
from itertools import islice
from pathlib import Path

import pyotp
import pytest
from django.contrib.auth.decorators import login_required
from django.contrib.auth.hashers import MD5PasswordHasher, PBKDF2PasswordHasher, check_password, make_password
from django.db import connection
from django.db.models import F
from django.http import HttpResponse
from django.test import Client
from django.urls import include, path
from django.utils import timezone

from tenants.context import public_scope
from tenants.limits import key_of, take
from tenants.models import Limit
from tenants.users import guesses, hashers
from tenants.users.guesses import ACCOUNT, ADDRESS, PAIR
from tenants.users.hashers import HashingBusy, InTurn, OneAtATime
from tenants.users.models import Totp, User
from tests.support.cast import PASSWORD


@pytest.fixture
def address():
    return an_address()


@pytest.fixture
def member(acme):
    """Somebody of acme whom no other test knows; Bob's namesake at globex has the same password."""
    return a_member(acme, f"{secrets.token_hex(4)}@acme.example")


def a_member(workspace, email):
    user = workspace.member(email)
    user.set_password(PASSWORD)
    with workspace.scope():
        user.save()
    return user.email


def an_address():
    return f"2001:db8:{secrets.randbelow(0xFFFF):x}:{secrets.randbelow(0xFFFF):x}::7"


def log_in(workspace, email, password, address):
    return Client(headers={"host": workspace.host}).post(
        "/login/", {"email": email, "password": password}, REMOTE_ADDR=address
    )


def statuses(workspace, email, password, address, *, times):
    return [log_in(workspace, email, password, address).status_code for _ in range(times)]


def later(limit, *who, seconds):
    gone = timedelta(seconds=seconds)
    changed = Limit.objects.filter(key=key_of(limit.name, who))
    assert changed.update(free_at=F("free_at") - gone, kept_until=F("kept_until") - gone) == 1


def let_through_since(began):
    """How many more of one pair, for the clock goes on: after 1, 2, 4 … seconds."""
    return int(math.log2(time.monotonic() - began + 1))


def network(address):
    return address.removesuffix("7") + "/64"


def take_all(workspace, email, address):
    """The pair's tries are over for a quarter of an hour."""
    who = (workspace.slug, email, network(address))
    take(PAIR, *who)
    Limit.objects.filter(key=key_of(PAIR.name, who)).update(free_at=timezone.now() + timedelta(seconds=899.5))


@pytest.fixture
def hashed(monkeypatch):
    """What was hashed."""
    found = []
    encode = MD5PasswordHasher.encode
    monkeypatch.setattr(MD5PasswordHasher, "encode", lambda *args: found.append(args[1]) or encode(*args))
    return found


def test_after_too_many_wrong_ones_the_right_one_is_not_even_looked_at(acme, globex, member, address, hashed):
    a_member(globex, member)
    hashed.clear()
    began = time.monotonic()
    found = statuses(acme, member, "wrong", address, times=60)
    assert (set(found[:5]), set(found)) == ({400}, {400, 429})
    assert found.count(400) == len(hashed) <= 5 + let_through_since(began)
    later(PAIR, acme.slug, member, network(address), seconds=-60)
    hashed.clear()
    refused = log_in(acme, member, PASSWORD, address)
    assert (refused.status_code, hashed) == (429, [])
    # The waits are 1, 2, 4 … seconds, and a slow machine lets more than five through.
    assert 30 <= int(refused["Retry-After"]) <= 60 + 2 ** (found.count(400) - 5)
    assert f"Too many tries to log in. Try again in {refused['Retry-After']} seconds." in refused.content.decode()
    # The form is there with what was typed, but for the password.
    assert f'value="{member}"' in refused.content.decode()
    # The same person's account next door, and whoever comes from elsewhere, are not kept waiting.
    assert log_in(globex, member, PASSWORD, address).status_code == 302
    assert log_in(acme, member, PASSWORD, an_address()).status_code == 302


def test_the_wait_grows_to_a_quarter_of_an_hour_and_the_right_one_ends_it(acme, member, address):
    statuses(acme, member, "wrong", address, times=4)
    told = []
    for _ in range(12):
        assert log_in(acme, member, "wrong", address).status_code == 400
        # As if the clock had stood still since: an answer takes longer than a second where the machine is busy.
        later(PAIR, acme.slug, member, network(address), seconds=-60)
        told.append(int(log_in(acme, member, PASSWORD, address)["Retry-After"]) - 60)
        later(PAIR, acme.slug, member, network(address), seconds=told[-1] + 60)
    waits = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    assert all(wait - 10 <= seen <= wait for seen, wait in zip(told, waits, strict=True)), told
    assert log_in(acme, member, PASSWORD, address).status_code == 302
    assert statuses(acme, member, "wrong", address, times=5) == [400] * 5


def test_who_types_it_right_is_never_kept_waiting(acme, member, address):
    for _ in range(12):
        assert log_in(acme, member, PASSWORD, address).status_code == 302
        assert log_in(acme, member, PASSWORD, an_address()).status_code == 302
    # Nothing is left of them.
    take(ADDRESS, network(address), cost=ADDRESS.burst)
    take(ACCOUNT, acme.slug, member, cost=ACCOUNT.burst)


@pytest.mark.slow
def test_tries_that_come_at_once_are_counted_before_they_are_hashed(acme, member, address, hashed):
    def one(number):
        try:
            return log_in(acme, member, "wrong", address).status_code
        finally:
            connection.close()

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(40)))
    assert set(found) == {400, 429}
    assert 5 <= len(hashed) == found.count(400) <= 5 + let_through_since(began)


def test_strangers_everywhere_slow_the_account_and_its_owner_gets_in_from_home(acme, member):
    home = an_address()
    assert log_in(acme, member, PASSWORD, home).status_code == 302
    take(ACCOUNT, acme.slug, member, cost=ACCOUNT.burst - 3)
    assert [log_in(acme, member, "wrong", an_address()).status_code for _ in range(5)] == [400] * 3 + [429] * 2
    elsewhere = an_address()
    assert 20 <= int(log_in(acme, member, PASSWORD, elsewhere)["Retry-After"]) <= 60
    assert log_in(acme, member, PASSWORD, home).status_code == 302
    # What the account refused made nobody's own wait longer, and it is no lock.
    later(ACCOUNT, acme.slug, member, seconds=60)
    assert log_in(acme, member, PASSWORD, elsewhere).status_code == 302


def test_one_address_guesses_a_hundred_times_wherever_it_tries(acme, globex, member, address):
    take(ADDRESS, network(address), cost=ADDRESS.burst - 4)
    other = address.replace("::7", "::8")  # of the same network
    for room, where in [(acme, address), (globex, other), (acme, other), (acme, address)]:
        assert log_in(room, f"{secrets.token_hex(4)}@nowhere.example", "wrong", where).status_code == 400
    later(ADDRESS, network(address), seconds=-60)
    assert 30 <= int(log_in(globex, "alice@nowhere.example", "wrong", other)["Retry-After"]) <= 70
    assert log_in(acme, member, PASSWORD, address).status_code == 429
    later(ADDRESS, network(address), seconds=70)
    assert log_in(acme, member, PASSWORD, address).status_code == 302


def test_a_neighbour_behind_the_same_address_keeps_nobody_out_who_was_in_from_there(acme, member, address):
    assert log_in(acme, member, PASSWORD, address).status_code == 302
    take(ADDRESS, network(address), cost=ADDRESS.burst)
    assert log_in(acme, f"{secrets.token_hex(4)}@nowhere.example", "wrong", address).status_code == 429
    assert log_in(acme, member, PASSWORD, address).status_code == 302
    # Who was in does not guess more freely for it.
    found = statuses(acme, member, "wrong", address, times=8)
    assert (found[:5], 429 in found[5:]) == ([400] * 5, True)


def test_who_is_told_to_wait_keeps_what_was_typed_but_the_password(acme, member, address):
    take_all(acme, member, address)
    answer = Client(headers={"host": acme.host}).post(
        "/login/", {"email": member, "password": "my secret", "next": "/budget/"}, REMOTE_ADDR=address
    )
    assert (answer.status_code, answer["Cache-Control"]) == (429, "private, no-store")
    page = answer.content.decode()
    assert all(f'value="{kept}"' in page for kept in (member, "/budget/"))
    assert "my secret" not in page


def test_an_account_that_is_not_there_is_answered_and_made_to_wait_alike(acme, member, hashed):
    def tried(email):
        where, said = an_address(), []
        for number in range(7):
            if number == 5:
                later(PAIR, acme.slug, email, network(where), seconds=-870)  # a slow machine has half a minute
            answer = log_in(acme, email, "wrong, naïve", where)
            page = re.sub(r'name="csrfmiddlewaretoken" value="\w+"', "", answer.content.decode()).replace(email, "…")
            wait = answer.get("Retry-After")
            # One second may have gone by in one of the two.
            page = re.sub(r"\b\d+ seconds?\b", "… seconds", page)
            said.append((answer.status_code, wait and 20 < int(wait) <= 30, page))
        return said

    there, count = tried(member), len(hashed)
    hashed.clear()
    assert tried(f"{secrets.token_hex(4)}@acme.example") == there
    assert len(hashed) == count == 5 * 2


def test_another_spelling_of_an_address_is_no_other_account(acme, member, address):
    spelled = [member, member.upper(), f" {member} ", member.replace("@", "\u200b@"), member.title()]
    for email in spelled:
        assert log_in(acme, email, "wrong", address).status_code == 400
    later(PAIR, acme.slug, member, network(address), seconds=-60)
    assert log_in(acme, member, "wrong", address).status_code == 429


def test_a_forged_header_is_no_other_address(acme, member, address):
    take_all(acme, member, address)
    for number in range(2):
        answer = Client(headers={"host": acme.host, "x-forwarded-for": f"203.0.113.{number}"}).post(
            "/login/", {"email": member, "password": "wrong"}, REMOTE_ADDR=address
        )
    assert answer.status_code == 429


def test_each_failure_and_each_refusal_is_logged_once_and_names_nobody(acme, member, address, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            log_in(acme, member, "my secret", address)
        take_all(acme, member, address)
        log_in(acme, member, "my secret", address)
    lines = [record.getMessage() for record in caplog.records if record.name == "tenants.users.guesses"]
    assert [line.split(":")[0] for line in lines] == ["Log-in failed"] * 2 + ["Log-in refused"]
    assert all(f"workspace={acme.slug} " in line for line in lines)
    assert f" address={':'.join(address.split(':')[:3])}::/48 limit=log-in wait_ms=" in lines[-1]
    assert 840_000 < int(lines[-1].rpartition("=")[2]) <= 900_000
    assert len({re.search("account=([0-9a-f]{12})", line)[1] for line in lines}) == 1
    for secret in (member, member.split("@")[0], "my secret", address, network(address)):
        assert secret not in caplog.text


def test_one_address_has_one_try_under_way_and_leaves_the_other_places_to_others(acme, member, address, monkeypatch):
    """With the right password of a workspace of their own a stranger is never made to wait, and kept everybody out."""
    monkeypatch.setattr(guesses, "_waiting", threading.BoundedSemaphore(1))
    monkeypatch.setattr(guesses, "WAIT_SECONDS", 30.0)
    at_work, go_on = threading.Event(), threading.Event()
    encode = MD5PasswordHasher.encode

    def slow(*args):
        at_work.set()
        return encode(*args) if go_on.wait(30) else None

    def one(_):
        try:
            return log_in(acme, member, PASSWORD, address).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool, monkeypatch.context() as patch:
        patch.setattr(MD5PasswordHasher, "encode", slow)
        asked = [pool.submit(one, 1)]
        assert at_work.wait(30)
        patch.setattr(MD5PasswordHasher, "encode", encode)
        asked.append(pool.submit(one, 2))
        until = time.monotonic() + 10
        while guesses._waiting.acquire(blocking=False) and time.monotonic() < until:
            guesses._waiting.release()
            time.sleep(0.01)
        third, elsewhere = log_in(acme, member, PASSWORD, address), log_in(acme, member, PASSWORD, an_address())
        go_on.set()
        assert [future.result() for future in asked] == [302, 302]
    assert (third.status_code, third["Retry-After"], elsewhere.status_code) == (429, "2", 302)
    assert log_in(acme, member, PASSWORD, address).status_code == 302


# --- hashing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def thread():
    """One place at work and one that waits, for a tenth of a second."""
    return OneAtATime(waiting=1, seconds=0.1)


def test_a_try_that_was_not_looked_at_does_not_count(acme, member, address, settings, thread, monkeypatch):
    settings.PASSWORD_HASHERS = ["tenants.users.hashers.InTurn"]
    monkeypatch.setattr(InTurn, "iterations", 1000)
    monkeypatch.setattr(hashers, "_hashing", thread)
    a_member(acme, member)
    free, at_work = threading.Event(), threading.Event()

    def work():
        at_work.set()
        free.wait()

    ours = threading.Thread(target=thread.do, args=[work])
    ours.start()
    assert at_work.wait(30)
    answers = [log_in(acme, member, "wrong", address) for _ in range(8)]
    with monkeypatch.context() as full:
        full.setattr(thread, "is_full", lambda: True)
        answers += [log_in(acme, member, "wrong", address) for _ in range(8)]
    assert {(answer.status_code, answer["Retry-After"]) for answer in answers} == {(429, "2")}
    assert "Many people are logging in just now." in answers[0].content.decode()
    free.set()
    ours.join()
    thread._seconds = 30.0
    assert statuses(acme, member, "wrong", address, times=5) == [400] * 5
    later(PAIR, acme.slug, member, network(address), seconds=1)
    assert log_in(acme, member, PASSWORD, address).status_code == 302


def test_one_hash_is_made_at_a_time_and_whoever_would_wait_for_long_is_told(thread):
    patient, free, at_work, most = OneAtATime(waiting=1, seconds=60), threading.Event(), [], []

    def work():
        at_work.append(1)
        most.append(len(at_work))
        free.wait(60)
        at_work.pop()
        return "done"

    def one(among):
        try:
            return among.do(work)
        except HashingBusy:
            return "busy"

    with ThreadPoolExecutor(7) as pool:
        asked = [pool.submit(one, patient) for _ in range(6)]
        told = [future.result() for future in islice(as_completed(asked), 4)]
        free.set()
        assert told == ["busy"] * 4
        assert sorted(future.result() for future in asked) == ["busy"] * 4 + ["done"] * 2
    assert most == [1, 1]

    free.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(one, thread)
        while not at_work:
            time.sleep(0.01)
        assert one(thread) == "busy"  # its time was over
        thread._seconds = 30.0
        free.set()
        assert (first.result(), one(thread), one(thread)) == ("done", "done", "done")


def test_a_failure_of_the_work_is_the_callers_and_frees_its_place():
    thread = OneAtATime(waiting=1, seconds=30)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            thread.do(lambda: 1 // 0)
    assert thread.do(lambda: 7) == 7


def test_the_thread_gives_way_to_all_others():
    thread = OneAtATime(waiting=1, seconds=30)
    if sys.platform != "linux":
        pytest.skip("Threads have no priority of their own here.")

    def priority():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    ours = priority()
    assert thread.do(priority) == min(19, ours + 10)
    assert priority() == ours
    with hashers.going_ahead():
        assert hashers._thread().do(priority) == ours
    assert hashers._thread().do(priority) == min(19, ours + 10)


def test_hashes_are_djangos_own_and_none_is_made_elsewhere(settings, monkeypatch):
    """The real settings' hasher: the tests' is a quick one."""
    from config import settings as real

    settings.PASSWORD_HASHERS = real.PASSWORD_HASHERS
    monkeypatch.setattr(PBKDF2PasswordHasher, "iterations", 1000)
    where = []
    encode = PBKDF2PasswordHasher.encode
    monkeypatch.setattr(
        PBKDF2PasswordHasher, "encode", lambda *args: where.append(threading.current_thread().name) or encode(*args)
    )
    made = make_password(PASSWORD)
    assert check_password(PASSWORD, made)
    assert not check_password("wrong", made)
    assert not check_password("wrong", "!")
    assert len(where) == 4
    assert all(name.startswith("hashing") for name in where)
    monkeypatch.setattr(PBKDF2PasswordHasher, "encode", encode)
    assert PBKDF2PasswordHasher().verify(PASSWORD, made)
    assert check_password(PASSWORD, PBKDF2PasswordHasher().encode(PASSWORD, "saltsaltsaltsaltsaltsa"))


# --- operators ---


@pytest.mark.parametrize("place", ["before ours", "after ours"])
def test_an_operator_comes_into_djangos_admin_as_the_readme_says_and_customers_log_in_as_before(
    app, settings, monkeypatch, place
):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    block = re.search(r"<!-- a test logs in by this block -->\n```python\n(.*?)```", readme, re.DOTALL)[1]
    # The admin itself wants a table; how one comes to it is what is tried.
    site = types.SimpleNamespace(login=lambda request: pytest.fail("Django's own form"))
    pages = [
        path("", login_required(lambda request: HttpResponse(request.user.email), login_url="/admin/login/")),
        path("login/", lambda request: site.login(request)),
    ]
    site.urls = (pages, "admin", "admin")
    recipe, urls = types.ModuleType("operators_recipe"), types.ModuleType("operators_urls")
    vars(recipe)["admin"] = types.SimpleNamespace(site=site)
    exec(block.replace("from django.contrib import admin\n", ""), vars(recipe))
    ours = import_module(settings.PUBLIC_SCHEMA_URLCONF).urlpatterns
    theirs = [path("", include(recipe.urlpatterns))]
    urls.urlpatterns = [*theirs, *ours] if place == "before ours" else [*ours, *theirs]
    monkeypatch.setitem(sys.modules, "operators_urls", urls)
    settings.PUBLIC_SCHEMA_URLCONF = "operators_urls"
    # A button for a provider has an address on workspaces' hosts alone.
    about = {"kind": "oidc", "issuer": "https://sso.example.com", "scopes": ["openid"]}
    settings.LOGIN_PROVIDERS = {"sso": {**about, "name": "Acme SSO", "client_id": "x", "client_secret": "y"}}
    name = f"{secrets.token_hex(4)}@site.example"
    with public_scope():
        operator = User.objects.create_superuser(name, PASSWORD)

    browser = Client(headers={"host": "localhost"})
    assert 'name="slug"' in browser.get("/login/").content.decode()
    led = browser.get(browser.get("/admin/")["Location"])["Location"]
    assert led.startswith("/login/operator/?next=/admin/login/")
    form = browser.get(led).content.decode()
    assert ('action="/login/operator/"' in form, "Acme SSO" in form) == (True, False)
    typed = {"email": name, "password": PASSWORD, "next": "/admin/"}
    assert browser.post("/login/operator/", {**typed, "password": "wrong"}).status_code == 400
    assert browser.post("/login/operator/", typed)["Location"] == "/admin/"
    assert browser.get("/admin/").content.decode() == name

    two_step = "/settings/security/two-step/"
    assert browser.post(two_step, {"begin": "yes"})["Location"] == two_step
    shown = re.search(r'id="typed">([A-Z2-7 ]+)<', browser.get(two_step).content.decode())[1]
    app_ = pyotp.TOTP(shown.replace(" ", ""))
    assert browser.post(two_step, {"code": app_.now()})["Location"] == two_step + "codes/"
    assert "-" in browser.get(two_step + "codes/").content.decode()
    with public_scope():
        Totp.objects.filter(user=operator).update(last_interval=0)
    browser = Client(headers={"host": "localhost"})
    assert browser.get("/login/code/?next=/admin/")["Location"] == "/login/operator/?next=%2Fadmin%2F"
    asked = browser.post("/login/operator/", typed)["Location"]
    assert asked.startswith("/login/code/")
    assert browser.get("/admin/").status_code == 302
    assert browser.get(asked).status_code == 200
    assert browser.post("/login/code/", {"code": app_.now(), "next": "/admin/"})["Location"] == "/admin/"
    assert browser.get("/admin/").status_code == 200
