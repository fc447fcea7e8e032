"""A team in a real browser: somebody is invited, comes in, meets their limit and goes on; and a key is rotated."""

import re

import httpx
import pytest

from billing.client import account_of, default_client
from billing.ledgers import ledgers_of
from billing.seats import seat_scope
from billing.subjects import seat_of
from tests.e2e.conftest import PATIENCE_MS
from tests.e2e.test_walk import SETTLED_SECONDS, settled
from tests.support.cast import PASSWORD
from tests.support.factories import WorkspaceFactory

pytestmark = pytest.mark.browser


@pytest.fixture
def person(browser, web):
    """`person(workspace, user)`: a browser of somebody's own, logged in where a user is given; its page."""
    contexts = []

    def arrive(workspace, user=None):
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        contexts.append(context)
        if user is not None:
            # This process hashes passwords in a way that the server's does not know: its session is handed over.
            session = workspace.client(user).cookies["sessionid"].value
            context.add_cookies([{"name": "sessionid", "value": session, "url": web.address(workspace.slug)}])
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(web.address(workspace.slug) + "/")
        return page

    yield arrive
    for context in contexts:
        context.close()


def invite(page, web, workspace, email):
    page.goto(f"{web.address(workspace.slug)}/settings/members/")
    page.get_by_label("E-mail addresses").fill(email)
    page.get_by_role("button", name="Send invitations").click()
    page.get_by_role("heading", name="Invited").wait_for()


def accept(page, web, workspace, email):
    """By the link in the mail, as its reader follows it. The member that they are then."""
    page.goto(web.mailed(workspace.slug, "invitation"))
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Join").click()
    page.wait_for_url(web.address(workspace.slug) + "/")
    return workspace.member(email)


def set_limit(page, web, workspace, member, amount):
    page.goto(f"{web.address(workspace.slug)}/settings/members/{member.pk}/limit/")
    page.get_by_label("US dollars a period").fill(amount)
    page.get_by_role("button", name=re.compile("Set limit")).click()
    page.wait_for_url(re.compile("/settings/members/$"))


def send(page, words):
    page.locator("textarea[name=prompt]").fill(words)
    page.locator("input[name=max_tokens]").fill("12")
    page.get_by_role("button", name="Send").click()


def use_up(workspace, member):
    """As if another call had cost all that the seat has left."""
    account = account_of(workspace.tenant)
    (ledger,) = ledgers_of([seat_scope(account, member)])
    answer = default_client().create_event(
        {
            "idempotency_key": f"use-up-{ledger.scope}",
            "subject": {"tenant": account.subject_tenant, "workspace": seat_of(member.pk)},
            "action": {"kind": "test", "name": "spend"},
            "actual": {"unit": ledger.unit, "amount": ledger.remaining},
        }
    )
    assert answer.status == 201, answer.body


def test_who_is_invited_comes_in_meets_their_limit_and_goes_on_once_an_owner_has_raised_it(web, person):
    workspace = WorkspaceFactory()
    owner, page = person(workspace, workspace.owner), person(workspace)
    email = f"mia@{workspace.slug}.example"
    invite(owner, web, workspace, email)
    member = accept(page, web, workspace, email)
    set_limit(owner, web, workspace, member, "0.10")

    send(page, "Say hello.")
    settled(page).wait_for()
    workspace.settled(lines=1, seconds=SETTLED_SECONDS)
    use_up(workspace, member)
    send(page, "And once more, please.")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "Your budget in this workspace is used up. An owner or an admin can raise it." in alert.inner_text()
    assert page.locator("textarea[name=prompt]").input_value() == "And once more, please."
    page.goto(web.address(workspace.slug) + "/budget/")
    assert page.get_by_role("heading", name="Your own limits").is_visible()

    set_limit(owner, web, workspace, member, "0.30")
    page.goto(web.address(workspace.slug) + "/")
    send(page, "And once more, please.")
    settled(page).wait_for()
    assert len(workspace.settled(lines=2, seconds=SETTLED_SECONDS)) == 2


def test_a_key_is_rotated_and_both_open_until_the_old_one_is_revoked(web, person):
    workspace = WorkspaceFactory()
    page = person(workspace, workspace.owner)

    def status(key):
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(web.url + "/api/budget/", headers=headers, trust_env=False, timeout=60).status_code

    page.goto(web.address(workspace.slug) + "/settings/keys/")
    page.get_by_label("Name").fill("Server")
    page.get_by_role("button", name="Make key").click()
    first = page.locator("#secret").inner_text()
    page.locator("summary", has_text="Rotate").click()
    page.get_by_role("button", name="Rotate Server").click()
    second = page.locator("#secret").inner_text()
    assert (first != second, status(first), status(second)) == (True, 200, 200)

    old = page.locator(".row", has_text="replaced by")
    old.locator("summary", has_text="Revoke").click()
    old.get_by_role("button", name="Revoke Server for good").click()
    page.get_by_text("Server is revoked.").wait_for()
    assert (status(first), status(second)) == (401, 200)
