"""A second step in a real browser: set up, asked for at log-in, and got past with a recovery code."""

import re
import time

import pyotp
import pytest
from django.db.models import F
from playwright.sync_api import expect

from tenants.users.models import Totp
from tests.support.cast import PASSWORD
from tests.support.factories import WorkspaceFactory

pytestmark = pytest.mark.browser


@pytest.fixture
def room(app):
    return WorkspaceFactory()


def first_step(page, web, room, user, target="/"):
    page.goto(web.address(room.slug) + target)
    page.get_by_label("E-mail").fill(user.email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()


@pytest.fixture
def user(room, settings):
    settings.PASSWORD_HASHERS = ["tenants.users.hashers.InTurn"]  # the process that serves has no other
    member = room.member("alice@acme.example")
    member.set_password(PASSWORD)
    with room.scope():
        member.save()
    return member


def test_from_setting_it_up_to_a_log_in_by_a_recovery_code(page, web, room, user):
    first_step(page, web, room, user, "/settings/security/")
    page.get_by_role("link", name="Set it up").click()
    page.get_by_role("button", name="Show the secret").click()
    expect(page.locator("svg.picture")).to_be_visible()
    app = pyotp.TOTP(page.locator("#typed").inner_text().replace(" ", ""))
    page.get_by_label("Code from your app").fill("000000")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This code is wrong")).to_be_visible()
    expect(page.get_by_label("Code from your app")).to_be_focused()
    page.get_by_label("Code from your app").fill(app.now())
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Keep your recovery codes now")).to_be_visible()
    codes = page.locator("#codes").inner_text().split()
    assert len(codes) == 10
    page.reload()
    expect(page.get_by_text(codes[0])).to_have_count(0)

    page.get_by_role("button", name="Log out").first.click()
    with room.scope():
        Totp.objects.update(last_interval=F("last_interval") - 20)  # as if it were later
    first_step(page, web, room, user, "/settings/security/")
    page.wait_for_url(re.compile("/login/code/"))
    expect(page.get_by_label("Code from your app")).to_be_focused()
    page.keyboard.type(app.at(time.time()))
    page.keyboard.press("Enter")
    page.wait_for_url(web.address(room.slug) + "/settings/security/")
    expect(page.get_by_text("this one")).to_be_visible()

    page.get_by_role("button", name="Log out everywhere", exact=True).click()
    expect(page.get_by_text("You are logged out everywhere.")).to_be_visible()
    first_step(page, web, room, user)
    page.get_by_role("link", name="Use a recovery code instead").click()
    page.get_by_label("Recovery code").fill(codes[0])
    page.keyboard.press("Enter")
    page.wait_for_url(web.address(room.slug) + "/")
    page.goto(web.address(room.slug) + "/settings/security/")
    expect(page.get_by_text("9 of 10 recovery codes are left.")).to_be_visible()
