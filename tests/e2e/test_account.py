"""A new owner who confirms, and a member who forgot a password, in a real browser: by the links that mails bring."""

import json
import uuid

import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import Stack
from tests.support.cast import PASSWORD

pytestmark = pytest.mark.browser
NEW = "a wholly new pass phrase"


@pytest.fixture(scope="module")
def confirming(app, database_url, authority, upstream_server, tmp_path_factory):
    """A site where who signs up has to confirm. Its jobs process prints mails, as on a laptop."""
    variables = {
        "LLM_BASE_URL": upstream_server.base_url,
        "LLM_MODEL": "test-model",
        "LLM_PRICES": json.dumps({"test-model": {"input": 10, "output": 40}}),
        "SIGNUP_CONFIRM_EMAIL": "on",
    }
    upstream_server.reset()
    with Stack(
        tmp_path_factory.mktemp("confirming"), database_url=database_url, authority=authority, **variables
    ) as stack:
        yield stack


def ask(page, words):
    page.locator("textarea[name=prompt]").fill(words)
    page.locator("textarea[name=prompt]").press("Enter")


def test_an_owner_confirms_and_can_buy_and_a_forgotten_password_is_set_anew(confirming, page):
    slug = f"co-{uuid.uuid4().hex[:8]}"
    base, email = confirming.address(slug), f"owner@{slug}.example"
    page.goto(f"{confirming.url}/signup/")
    page.get_by_label("Workspace name").fill("Acme Works")
    page.get_by_label("Address").fill(slug)
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.locator("form button[type=submit]").click()
    page.wait_for_url(f"{base}/")
    expect(page.get_by_text("begins once you have confirmed")).to_be_visible()
    ask(page, "What is a ledger?")
    expect(page.get_by_role("alert")).to_contain_text("no budget yet")
    expect(page.locator("[data-chat=refusal-renews]")).to_be_hidden()

    page.goto(confirming.mailed(slug, "confirm"))
    page.get_by_role("button", name="Confirm my e-mail").click()
    page.wait_for_url(f"{base}/")
    expect(page.locator("[data-chat=remaining]")).to_have_text("$1.00")
    ask(page, "What is a ledger?")
    expect(page.locator(".turn--assistant .turn__facts").last).to_contain_text(" out · ")

    page.get_by_role("button", name="Log out").click()
    page.get_by_role("link", name="Forgotten your password?").click()
    page.get_by_label("E-mail").fill(email)
    page.get_by_role("button", name="Send me a link").click()
    expect(page.get_by_role("heading", name="Look into your mail.")).to_be_visible()
    page.goto(confirming.mailed(slug, "password"))
    page.get_by_label("New password").fill("short")
    page.get_by_role("button", name="Set the password").click()
    expect(page.get_by_label("New password")).to_be_focused()
    page.get_by_label("New password").fill(NEW)
    page.get_by_role("button", name="Set the password").click()
    page.wait_for_url(f"{base}/login/")
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill(NEW)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{base}/")
