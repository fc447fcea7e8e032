"""Log-in with an identity provider in a real browser, which holds the pages to their policy."""

import json

import pytest
from django.utils import timezone
from playwright.sync_api import expect

from tests.e2e.conftest import PATIENCE_MS
from tests.support.cast import PASSWORD
from tests.support.factories import WorkspaceFactory
from tests.support.oidc import IdentityProvider
from tests.support.web import WebProcess

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def provider():
    with IdentityProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def site(app, database_url, authority, provider):
    offered = {key: value for key, value in provider.settings().items() if key != "kind"}
    variables = {"LOGIN_OIDC": json.dumps({"acme-sso": offered})}
    with WebProcess(database_url=database_url, authority=authority, workers=1, **variables) as web:
        yield web


@pytest.fixture
def workspace(app, settings):
    """With Alice in it, whose address is confirmed, and whose password is hashed as the process that serves does."""
    settings.PASSWORD_HASHERS = ["tenants.users.hashers.InTurn"]
    made = WorkspaceFactory()
    alice = made.member("alice@acme.example")
    alice.set_password(PASSWORD)
    alice.email_confirmed_at = timezone.now()
    with made.scope():
        alice.save()
    return made


def test_a_member_logs_in_by_the_provider_says_no_and_is_led_back_at_once_the_next_time(
    page, site, provider, workspace
):
    here = site.address(workspace.slug)
    page.goto(f"{here}/budget/")
    page.get_by_role("button", name="Log in with Acme SSO").click()
    page.wait_for_url(f"{provider.issuer}/authorize*")
    page.get_by_role("button", name="Deny").click()
    expect(page.get_by_role("alert")).to_contain_text("Acme SSO did not log you in")

    page.get_by_role("button", name="Log in with Acme SSO").click()
    page.get_by_role("button", name="Agree").click()
    page.wait_for_url(f"{here}/budget/")

    page.get_by_role("button", name="Log out").click()
    provider.asks = False
    page.get_by_role("button", name="Log in with Acme SSO").click()
    page.wait_for_url(f"{here}/")
    expect(page.get_by_role("button", name="Log out")).to_be_visible()


def test_without_script_too_a_member_links_an_account_of_another_address(browser, site, provider, workspace):
    provider.reset()
    provider.person |= {"sub": "private", "email": "private@elsewhere.example"}
    here = site.address(workspace.slug)
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(f"{here}/login/?next=/settings/account/identities/acme-sso/")
    page.get_by_label("E-mail").fill("alice@acme.example")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    page.get_by_role("button", name="Go to Acme SSO").click()
    page.get_by_role("button", name="Agree").click()
    page.wait_for_url(f"{here}/settings/account/")
    context.close()

    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(f"{here}/login/")
    page.get_by_role("button", name="Log in with Acme SSO").click()
    page.get_by_role("button", name="Agree").click()
    page.wait_for_url(f"{here}/")
    context.close()
