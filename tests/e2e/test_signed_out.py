"""A tab that is signed out, and the way in by a mail, in a real browser."""

import re
import uuid

import pytest
from playwright.sync_api import expect

from tenants.mail.models import OutgoingMail
from tenants.users import directory
from tests.e2e.conftest import PATIENCE_MS, hash_of_password
from tests.support.cast import PASSWORD
from tests.support.jobs import until

pytestmark = pytest.mark.browser


def log_in(page, email):
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()


def newcomer(workspace):
    member = workspace.member(f"carol-{uuid.uuid4().hex[:8]}@example.org")
    with workspace.scope():
        member.password = hash_of_password()
        member.save(update_fields=["password"])
    return member


def message(page):
    return page.locator("textarea[name=prompt]")


def test_a_tab_that_was_signed_out_keeps_the_draft_through_log_in_for_its_own_member(page, web, acme):
    member, other = newcomer(acme), newcomer(acme)
    home = web.address(acme.slug) + "/"
    page.goto(home)
    log_in(page, member.email)
    message(page).wait_for()
    message(page).fill("First")
    page.locator("input[name=max_tokens]").fill("8")
    page.get_by_role("button", name="Send").click()
    page.wait_for_url(re.compile(r"/c/\d+/$"))
    page.locator(".turn__facts", has_text=" out · ").wait_for()
    conversation = page.url

    # Signed out in another tab of the same browser.
    tab = page.context.new_page()
    tab.goto(home)
    tab.get_by_role("button", name="Log out").click()
    tab.wait_for_url(re.compile("/login/"))
    message(page).fill("What is a ledger?")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("You are signed out.")
    expect(message(page)).to_have_value("What is a ledger?")
    message(page).fill("What is a ledger, in short?")
    page.get_by_role("alert").get_by_role("link", name="Log in").click()
    log_in(page, member.email)
    page.wait_for_url(conversation)
    expect(message(page)).to_have_value("What is a ledger, in short?")

    # Logged in anew elsewhere: the token is of before, and the link leads straight back.
    tab.goto(home)
    tab.get_by_role("button", name="Log out").click()
    log_in(tab, member.email)
    message(tab).wait_for()
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("You are signed out.")
    page.get_by_role("alert").get_by_role("link", name="Log in").click()
    page.wait_for_url(conversation)
    expect(message(page)).to_have_value("What is a ledger, in short?")

    # Another member who logs in at this tab does not see it.
    page.goto(home)
    tab.reload()
    tab.get_by_role("button", name="Log out").click()
    message(page).fill("Mine alone")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("alert").get_by_role("link", name="Log in").click()
    log_in(page, other.email)
    expect(message(page)).to_have_value("")
    assert page.evaluate("Object.keys(sessionStorage).filter((key) => key.startsWith('draft:'))") == []


def test_without_script_the_message_waits_on_the_log_in_page(browser, web, acme):
    member = newcomer(acme)
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(web.address(acme.slug) + "/")
    log_in(page, member.email)
    message(page).fill("Do not lose this.")
    session = next(cookie for cookie in context.cookies() if cookie["name"] == "sessionid")
    context.clear_cookies(name="sessionid")
    assert session
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("status")).to_contain_text("what you typed is still here")
    log_in(page, member.email)
    expect(message(page)).to_have_value("Do not lose this.")
    context.close()


def test_workspaces_are_found_by_a_mail_whose_link_logs_in_once(page, web, acme):
    """A laptop has no mail server: the jobs process prints the mail, and its link is whole."""
    member = newcomer(acme)
    directory.note(acme.tenant, member.email)
    page.goto(web.address() + "/")
    page.get_by_role("navigation").get_by_role("link", name="Log in").click()
    page.get_by_role("link", name="Have your workspaces sent to you").click()
    page.get_by_label("E-mail").fill(member.email)
    page.get_by_role("button", name="Send the mail").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Look into your mail.")
    link = web.mailed(acme.slug, "login/link")
    page.goto(link)
    page.get_by_role("button", name="Log in").click()
    message(page).wait_for()
    page.goto(link)
    expect(page.get_by_role("heading", level=1)).to_contain_text("has been used")
    sent = OutgoingMail.objects.filter(to=member.email, sealed_body="").exclude(sent_at=None)
    until(sent.exists)
