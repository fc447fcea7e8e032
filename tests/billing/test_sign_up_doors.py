"""Sign-up's doors: a taken slug tells nothing, two clicks are one sign-up, and the limits hold."""

import logging
import re
import threading
import time
import uuid
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from billing import provisioning, signing_up
from billing.errors import SlugTaken
from billing.models import Account
from billing.plans import PLANS, Plan
from billing.tasks import provision_account
from tenants.threads import TenantExecutor
from tenants.users import hashers
from tenants.users.hashers import HashingBusy
from tests.support.cast import PASSWORD
from tests.support.factories import WorkspaceFactory
from tests.support.jobs import rows
from tests.support.money import eventually

pytestmark = pytest.mark.usefixtures("app", "sign_ups")
ALLOWANCE = PLANS["trial"].allowance


def form(**changes):
    slug = f"door-{uuid.uuid4().hex[:10]}"
    return {"name": "Door", "slug": slug, "email": f"a@{slug}.example", "password": PASSWORD, **changes}


@pytest.fixture
def bare():
    return Client(headers={"host": "localhost"})


@pytest.fixture
def strict(settings):
    """As production has it, but for an address that no other test signs up from."""
    settings.SIGN_UP_ADDRESS_RATE, settings.SIGN_UP_SITE_RATE, settings.SIGN_UP_FORM_RATE = (
        (2, 3600.0),
        (3, 3600.0),
        (6, 3600.0),
    )
    rows("DELETE FROM public.tenants_limit")
    yield
    rows("DELETE FROM public.tenants_limit")


def trials_in_the_pool():
    closed = Account.objects.filter(status=Account.Status.CLOSED)
    just_now = timezone.now() - timedelta(days=31)
    deleted = closed.filter(tenant__closed_at__gt=just_now, allowance_granted_at__isnull=False)
    gone = closed.exclude(pk__in=deleted.values("pk")).values("pk").union(provisioning.broken_off().values("pk"))
    return Account.objects.filter(plan="trial").exclude(pk__in=[pk for (pk,) in gone.values_list("pk")]).count()


def by_api(fields, address="192.0.2.1"):
    client = Client(headers={"host": "localhost", "x-real-ip": address})
    return client.post("/api/signup/", fields, content_type="application/json")


def by_page(fields, address="192.0.2.1"):
    return Client(headers={"host": "localhost", "x-real-ip": address}).post("/signup/", fields)


def plain(page):
    """What all pages of this kind have in common: without the marks and tokens that each has its own of."""
    return re.sub(r'value="[A-Za-z0-9_-]{43,64}"', "", page.content.decode())


# --- a taken slug -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", [by_api, by_page])
def test_a_taken_slug_is_one_answer_whatever_it_is_and_whoever_asks(door, monkeypatch):
    """By the same statements and without a hash, so in one time too."""
    monkeypatch.setattr(signing_up, "make_password", None)
    room = WorkspaceFactory()
    pending = provisioning.sign_up(**form(slug=room.slug + "-x"), plan="trial")
    own = {"email": room.account.owner_email, "password": PASSWORD}
    seen, asked = set(), set()
    states = [Account.Status.ACTIVE, Account.Status.FROZEN, Account.Status.CLOSED, None]
    for state in states:
        slug = pending.tenant.slug if state is None else room.slug
        Account.objects.filter(pk=room.account.pk).update(status=state or Account.Status.ACTIVE)
        for words in ({}, own, {**own, "password": "a wrong one, but long"}, {"email": pending.owner_email}):
            with CaptureQueriesContext(connection) as queries:
                answer = door({**form(), "email": "x@x.example", **words, "slug": slug})
            assert answer.status_code == 409
            text = plain(answer).replace(words.get("email", "x@x.example"), "EMAIL").replace(slug, "SLUG")
            seen.add(text)
            asked.add(tuple(re.sub(r"'[^']*'|\d+", "?", query["sql"]) for query in queries))
    Account.objects.filter(pk=room.account.pk).update(status=Account.Status.ACTIVE)
    assert len(seen) == len(asked) == 1
    assert "http://SLUG.localhost:8000/login/" in seen.pop()


def test_the_page_of_a_taken_slug_keeps_what_was_typed_and_leads_to_log_in(bare, acme):
    page = bare.post("/signup/", form(slug="acme", name="Kept Name")).content.decode()
    assert '<a href="http://acme.localhost:8000/login/">Log in to acme instead</a>' in page
    assert "Kept Name" in page
    assert PASSWORD not in page


# --- two clicks -------------------------------------------------------------------------------------------------------


def mark_of(browser):
    return re.search(r'name="mark" value="([^"]+)"', browser.get("/signup/").content.decode()).group(1)


def test_two_clicks_on_one_form_are_one_sign_up_and_the_second_is_handed_over(bare):
    """The browser throws the first answer away, and with it the cookie of its session."""
    data = form(mark=mark_of(bare))
    browsers = [Client(headers={"host": "localhost"}) for _ in range(2)]

    with TenantExecutor(2) as pool:
        answers = list(pool.map(lambda browser: browser.post("/signup/", data), browsers))
    assert [answer["Location"] for answer in answers] == ["/signup/wait/"] * 2
    assert Account.objects.filter(owner_email=data["email"]).count() == 1
    assert b'name="token"' in browsers[1].get("/signup/wait/").content


def test_a_form_sent_again_leads_to_log_in_once_its_browser_was_handed_over(bare):
    data = form(mark=mark_of(bare))
    assert b'name="token"' in bare.post("/signup/", data, follow=True).content
    answer = bare.post("/signup/", data, follow=True)
    assert answer.redirect_chain[-1] == (f"http://{data['slug']}.localhost:8000/login/", 302)


@pytest.mark.parametrize("mark", ["", "x" * 43, "short"])
def test_another_form_goes_on_with_nobodys_sign_up(mark, monkeypatch):
    monkeypatch.setattr(signing_up, "READY_SECONDS", 0.05)
    data = form()
    account = signing_up._claim(
        **{name: data[name] for name in ("name", "slug", "email")}, plan="trial", asked_by=signing_up.digest("its own")
    )
    browser = Client(headers={"host": "localhost"})
    assert browser.post("/signup/", {**data, "mark": mark}).status_code == 409
    assert browser.get("/signup/wait/")["Location"] == "/signup/"
    signing_up._keep_password(account, "!")


def test_each_form_has_a_mark_of_its_own_and_a_refused_one_keeps_it(bare):
    first, second = mark_of(bare), mark_of(bare)
    assert first != second
    assert bare.get("/signup/")["Cache-Control"] == "private, no-store"
    assert f'name="mark" value="{first}"' in bare.post("/signup/", form(slug="www", mark=first)).content.decode()


# --- what one process takes -------------------------------------------------------------------------------------------


def test_who_finds_too_many_waiting_is_answered_at_once_and_goes_on_by_the_status_address(monkeypatch):
    monkeypatch.setattr(signing_up, "_waiting", threading.BoundedSemaphore(1))
    monkeypatch.setattr(signing_up, "LOOK_SECONDS", None)  # it would fail whoever waits
    signing_up._waiting.acquire()
    made = by_api(form())
    assert made.status_code == 202
    path = made.json()["status_url"].removeprefix("http://localhost:8000")
    bare = Client(headers={"host": "localhost"})
    assert eventually(lambda: bare.get(path).json().get("api_key"), seconds=30)


def busy(*args):
    raise HashingBusy


@pytest.mark.parametrize("door", [by_api, by_page])
def test_where_no_password_can_be_hashed_a_sign_up_is_429_and_never_was(door, monkeypatch):
    data = form()
    with monkeypatch.context() as patch:
        patch.setattr(signing_up, "refuse_if_full", busy)
        assert door(data).status_code == 429
        assert not Account.objects.filter(tenant__slug=data["slug"]).exists()
    assert door(data).status_code in (201, 302)


def test_a_sign_ups_password_is_hashed_where_nothing_gives_way_to_others(monkeypatch):
    """With a log-in's priority it took four times as long on a busy machine."""
    where = []
    monkeypatch.setattr(signing_up, "make_password", lambda password: where.append(hashers._thread()) or "!")
    assert by_api(form()).status_code == 201
    assert where == [hashers._ahead]
    assert hashers._thread() is not hashers._ahead


def test_a_claim_whose_password_found_no_place_is_free_for_the_next_at_once(monkeypatch):
    data = form()
    with monkeypatch.context() as patch:
        patch.setattr(signing_up, "make_password", busy)
        refused = by_api(data)
    assert (refused.status_code, refused["Retry-After"]) == (429, "2")
    assert by_api(data).status_code == 201


def test_a_second_click_that_finds_no_place_leaves_the_first_its_claim_and_leads_to_the_waiting_room(bare, monkeypatch):
    monkeypatch.setattr(signing_up, "READY_SECONDS", 0.05)
    data = form(mark=mark_of(bare))
    fields = {name: data[name] for name in ("name", "slug", "email")}
    first = signing_up._claim(**fields, plan="trial", asked_by=signing_up.digest(data["mark"]))
    with monkeypatch.context() as patch:
        patch.setattr(signing_up, "make_password", busy)
        answer = bare.post("/signup/", data)
    assert (answer.status_code, answer["Location"]) == (302, "/signup/wait/")
    assert answer["Cache-Control"] == bare.get("/signup/wait/")["Cache-Control"] == "private, no-store"
    assert not provisioning.broken_off().filter(pk=first.pk).exists()
    signing_up._keep_password(first, "!")
    assert eventually(lambda: Account.objects.get(pk=first.pk).status == Account.Status.ACTIVE, seconds=30)


def test_a_claim_that_was_given_up_holds_no_place_at_the_worker(caplog, monkeypatch):
    """Three of them held all three places, and each was tried six times: one address delayed everybody by a minute."""
    data = form()
    account = signing_up._claim(
        **{name: data[name] for name in ("name", "slug", "email")}, plan="trial", asked_by=signing_up.digest("its own")
    )
    signing_up._give_up(account)
    monkeypatch.setattr(provisioning, "PASSWORD_WITHIN", timedelta(seconds=25))
    began = time.monotonic()
    provision_account(account_id=account.pk)  # and does not ask to be tried again
    assert time.monotonic() - began < 20
    # Said here or by the worker, whichever was first.
    assert eventually(lambda: "broken off" in caplog.text, seconds=30)


# --- a sign-up that was broken off ------------------------------------------------------------------------------------


def test_a_slug_whose_sign_up_died_before_its_password_was_kept_is_free_after_half_a_minute(
    bare, settings, monkeypatch
):
    """Nobody could ever log in to it. And whoever still waits for it does not get what has become another's."""
    settings.SIGN_UP_FORM_RATE = (1000, 0.001)
    lost, data = form(mark=mark_of(bare)), form()
    account = signing_up._claim(
        **{name: lost[name] for name in ("name", "slug", "email")},
        plan="trial",
        asked_by=signing_up.digest(lost["mark"]),
    )
    with monkeypatch.context() as patch:
        patch.setattr(signing_up, "make_password", busy)
        assert bare.post("/signup/", lost)["Location"] == "/signup/wait/"
    data["slug"] = lost["slug"]
    assert by_api(data).status_code == 409
    Account.objects.filter(pk=account.pk).update(created_at=timezone.now() - timedelta(seconds=31))
    looking = Account.objects.get(pk=account.pk)  # as a waiting room that has begun to look has it
    assert by_api(data).status_code == 201
    account.refresh_from_db()
    assert account.owner_email == data["email"]
    room = bare.get("/signup/wait/")
    assert (room.status_code, room["Location"]) == (302, "/signup/")
    assert provisioning.hand_over(looking) is None
    assert provisioning.hand_over(account) is not None
    # The first process was only slow: its password opens nothing.
    account.asked_by = signing_up.digest(lost["mark"])
    with pytest.raises(SlugTaken):
        signing_up._keep_password(account, "!")
    host = {"host": f"{data['slug']}.localhost"}
    login = {"email": data["email"], "password": PASSWORD}
    assert Client(headers=host).post("/login/", login).status_code == 302


def test_a_sign_up_that_was_broken_off_keeps_no_worker_waiting_for_its_password(monkeypatch):
    """Three of them kept all three workers: for a minute nobody's workspace was ready at once."""
    data = form()
    account = signing_up._claim(
        **{name: data[name] for name in ("name", "slug", "email")}, plan="trial", asked_by=signing_up.digest("lost")
    )
    signing_up._give_up(account)
    began = time.monotonic()
    monkeypatch.setattr(provisioning, "PASSWORD_WITHIN", timedelta(seconds=25))
    with pytest.raises(provisioning.PasswordMissing):
        eventually(lambda: not provisioning.provision(account))
    assert time.monotonic() - began < 20


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", [by_api, by_page])
def test_an_address_makes_so_many_workspaces_and_the_whole_site_so_many(door, strict):
    made = [door(form(), "192.0.2.7").status_code for _ in range(3)]
    assert made[:2] in ([201, 201], [302, 302])
    assert made[2] == 429
    assert door(form(), "192.0.2.8").status_code == made[0]
    refused = door(form(name="Kept Name"), "192.0.2.9")
    assert (refused.status_code, int(refused["Retry-After"]) > 3000) == (429, True)
    assert b"Try again in" in refused.content
    assert PASSWORD.encode() not in refused.content
    assert door is by_api or b"Kept Name" in refused.content
    WorkspaceFactory()  # whoever runs the site is not counted


def test_what_is_refused_takes_no_place_of_a_workspace_but_is_counted(strict, acme):
    answers = [by_api(form(slug="acme")).status_code for _ in range(2)]
    answers += [by_api(form(slug="www")).status_code for _ in range(2)]
    answers += [by_api(form()).status_code for _ in range(2)]
    assert answers == [409, 409, 400, 400, 201, 201]
    refused = by_api(form(slug="acme"))
    assert (refused.status_code, refused.json()["error"]) == (429, "rate_limited")


def test_all_trials_together_are_promised_no_more_than_the_pool(settings, caplog):
    open_trials = trials_in_the_pool()
    settings.TRIAL_POOL = (open_trials + 1) * ALLOWANCE
    with caplog.at_level(logging.WARNING):
        assert by_api(form()).status_code == 201
        assert "of TRIAL_POOL_USD" in caplog.text
        data = form()
        refused = by_api(data)
    assert (refused.status_code, refused.json()["error"]) == (429, "rate_limited")
    assert refused["Retry-After"] == "3600"
    assert [record.levelname for record in caplog.records if "No trial is made" in record.message] == ["ERROR"]
    # A workspace that is closed makes room, and the refused slug is free.
    closed = WorkspaceFactory().account
    assert by_api(data).status_code == 429
    Account.objects.filter(pk=closed.pk).update(status=Account.Status.CLOSED)
    settings.TRIAL_POOL = (open_trials + 2) * ALLOWANCE
    assert by_api(data).status_code == 201


def test_a_trial_that_was_broken_off_leaves_its_place_in_the_pool_until_it_is_taken_over(settings):
    lost = form()
    account = signing_up._claim(
        **{name: lost[name] for name in ("name", "slug", "email")}, plan="trial", asked_by=signing_up.digest("lost")
    )
    settings.TRIAL_POOL = trials_in_the_pool() * ALLOWANCE
    assert by_api(form()).status_code == 429
    signing_up._give_up(account)
    assert by_api(form(slug=lost["slug"])).status_code == 201
    assert by_api(form()).status_code == 429


def test_trials_that_come_together_share_the_last_place(settings):
    open_trials = trials_in_the_pool()
    settings.TRIAL_POOL = (open_trials + 1) * ALLOWANCE

    with TenantExecutor(3) as pool:
        answers = pool.map(lambda number: by_api(form(), f"192.0.2.{number}").status_code, range(3))
        assert sorted(answers) == [201, 429, 429]


def test_a_plan_that_is_sold_cannot_be_had_by_signing_up(bare, settings, monkeypatch):
    monkeypatch.setitem(PLANS, "pro", Plan(name="pro", allowance=100 * ALLOWANCE, overdraft=0, max_tokens=4_096))
    answer = bare.post("/api/signup/", {**form(), "plan": "pro"}, content_type="application/json")
    assert (answer.status_code, list(answer.json()["fields"])) == (400, ["plan"])
