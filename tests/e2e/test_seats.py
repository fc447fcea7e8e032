"""A seat's limit in a real browser: a member asks, is refused, an owner raises the limit, and they go on."""

import re

import pytest

from billing.client import account_of, default_client
from billing.ledgers import ledgers_of
from billing.seats import seat_scope
from billing.subjects import seat_of
from tests.e2e.test_walk import settled
from tests.support.factories import WorkspaceFactory

pytestmark = pytest.mark.browser


@pytest.fixture
def logged_in(browser, web):
    """`logged_in(workspace, user)`: the page of a person of their own."""
    contexts = []

    def log_in(workspace, user):
        # This process hashes passwords in a way that the server's does not know: its session is handed over.
        session = workspace.client(user).cookies["sessionid"].value
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        contexts.append(context)
        context.add_cookies([{"name": "sessionid", "value": session, "url": web.address(workspace.slug)}])
        page = context.new_page()
        page.set_default_timeout(90_000)
        page.goto(web.address(workspace.slug) + "/")
        return page

    yield log_in
    for context in contexts:
        context.close()


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


def test_a_member_is_refused_at_their_limit_and_goes_on_once_an_owner_has_raised_it(web, logged_in):
    workspace = WorkspaceFactory()
    member = workspace.member(f"mia@{workspace.slug}.example")
    owner, page = logged_in(workspace, workspace.owner), logged_in(workspace, member)
    set_limit(owner, web, workspace, member, "0.10")

    send(page, "Say hello.")
    settled(page).wait_for()
    workspace.settled(lines=1)
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
    assert len(workspace.settled(lines=2)) == 2
