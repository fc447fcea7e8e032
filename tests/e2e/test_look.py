"""The site's own pages in a browser: readable by everybody, on a phone, in light and dark, and no dead ends."""

import re
from contextlib import contextmanager
from datetime import timedelta

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.utils import timezone
from playwright.sync_api import expect

from billing import admin_client
from billing.models import BudgetPeriod
from billing.subjects import seat_of
from billing.topups import top_up
from tests.e2e.conftest import PATIENCE_MS
from tests.support.factories import ConversationFactory, UsageLineFactory, WorkspaceFactory, said
from tests.support.web import WebProcess

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(app, database_url, authority):
    """Web alone: these pages buy nothing. Links are built from SITE_URL, so that names the port."""
    web = WebProcess(database_url=database_url, authority=authority, workers=1, threads=8)
    web.env["SITE_URL"] = web.url
    with web:
        yield web


def wrong_with(page):
    """What axe finds, and whether the page is wider than its window."""
    found = [(one["id"], [node["target"] for node in one["nodes"]]) for one in Axe().run(page).response["violations"]]
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [*found, *([("wide", wide)] if wide > 0 else [])]


def open_docs(page):
    page.locator(".opblock").first.wait_for()
    page.locator(".opblock-summary-control").nth(2).click()
    page.locator(".responses-table pre").first.wait_for()


@pytest.mark.parametrize(
    ("scheme", "width", "hosts_and_paths"),
    [
        ("light", 360, [("", "/"), ("", "/api/docs"), ("nobody", "/")]),
        ("dark", 1280, [("", "/login/"), ("", "/signup/"), ("acme", "/login/")]),
    ],
)
def test_the_sites_pages_can_be_read_by_everybody(page, site, acme, scheme, width, hosts_and_paths):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    for slug, path in hosts_and_paths:
        page.goto(site.address(slug or None) + path)
        if path == "/api/docs":
            open_docs(page)
        assert wrong_with(page) == [], (slug, path)
    fonts = page.evaluate("document.fonts.ready.then(() => [...document.fonts].map((one) => one.family + one.status))")
    assert any("IBM Plex Sans" in font and font.endswith("loaded") for font in fonts)


def test_from_an_address_without_a_workspace_one_comes_to_ones_log_in(page, site, acme):
    page.goto(f"http://nobody.localhost:{site.port}/c/7/")
    expect(page.get_by_role("heading", level=1)).to_have_text("There is no workspace at this address.")
    page.get_by_role("link", name="Log in to another workspace").click()
    field = page.get_by_label("The workspace’s address")
    expect(field).to_be_focused()
    field.fill("not a name")
    field.press("Enter")
    expect(page.locator(".errorlist")).to_contain_text("or the whole address")
    expect(field).to_be_focused()
    field.fill(site.address("acme") + "/c/7/")
    field.press("Enter")
    page.wait_for_url(site.address("acme") + "/login/")


def test_sign_up_says_that_it_creates_and_goes_back_to_what_is_wrong(page, site, acme):
    page.goto(site.url + "/signup/")
    page.get_by_label("Workspace name").fill("Größe & Ærø")
    expect(page.get_by_label("Address")).to_have_value("grosse-aero")
    for label, text in (("Workspace name", "Mine"), ("Address", "acme"), ("E-mail", "mine@example.org")):
        page.get_by_label(label).fill(text)
    page.get_by_label("Password").fill("another password")
    button = page.locator("button[data-sending]")
    # The answer may come before anybody could look, so the page notes what its button said last.
    button.evaluate(
        "one => new MutationObserver(() => sessionStorage.setItem('said', one.textContent))"
        ".observe(one, { childList: true })"
    )
    button.click()
    expect(page.locator(".errorlist").first).to_be_visible()
    expect(page.get_by_label("Address")).to_be_focused()
    assert page.evaluate("sessionStorage.getItem('said')") == "Creating…"
    expect(button).to_have_text("Create workspace")


# Whether an amount's decimals stand below its dollars.
BROKEN = """decimals => decimals.map((one) => {
    const dollars = document.createRange();
    dollars.selectNode(one.previousSibling);
    return one.getBoundingClientRect().top >= dollars.getBoundingClientRect().bottom;
})"""


def be_owner_of(context, site, workspace):
    session = workspace.client(workspace.owner).cookies["sessionid"].value
    context.add_cookies([{"name": "sessionid", "value": session, "url": site.address(workspace.slug)}])


@contextmanager
def without_script(browser, site, workspace, width, height):
    """The chat page of the workspace's owner."""
    context = browser.new_context(java_script_enabled=False, viewport={"width": width, "height": height})
    be_owner_of(context, site, workspace)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(site.address(workspace.slug) + "/")
    yield page
    context.close()


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 800)])
def test_without_script_the_refusal_of_a_first_message_is_in_the_window(browser, site, width, height):
    workspace = WorkspaceFactory()
    workspace.leave(0)
    with without_script(browser, site, workspace, width, height) as page:
        page.locator("textarea[name=prompt]").fill("What is a ledger?")
        page.get_by_role("button", name="Send", exact=True).click()
        card, box = page.get_by_role("alert").bounding_box(), page.locator(".composer").bounding_box()
        assert page.title().startswith("Error: ")
        expect(page.locator("textarea[name=prompt]")).to_be_focused()
        expect(page.locator("textarea[name=prompt]")).to_have_accessible_description(re.compile("used up"))
        assert card["y"] >= 0
        assert card["y"] + card["height"] <= box["y"]


def test_on_a_phone_the_budget_page_breaks_no_amount_and_cuts_none(page, site):
    """A cost was two lines, `$0` and `.12345678`, and the figure of a large budget ran out of the window."""
    workspace = WorkspaceFactory()
    top_up(workspace.account, amount=123_456_789_012_345_678, key="large")
    spent = {
        "cost": 12_345_678,
        "created_at": timezone.now(),
        "app": "summarize",
        "model": "gpt-4o-mini-2024-07-18",
        "outcome": "overrun",
    }
    with workspace.scope():
        UsageLineFactory(**spent, tokens_input=128_000, tokens_output=1_024, tokens_cached=64_000, tokens_reasoning=640)
    period = BudgetPeriod.objects.get(account=workspace.account)
    began = period.starts_at - timedelta(days=30)
    over = {
        "opened_at": began,
        "closed_at": period.starts_at,
        "allowance": 100_000_000,
        "asked": 100_000_000,
        "spent": 22_234_567_890,
    }
    BudgetPeriod.objects.filter(pk=period.pk).update(number=1)
    BudgetPeriod.objects.create(
        account=workspace.account, number=0, starts_at=began, ends_at=period.starts_at, carried=12_345_678, **over
    )
    be_owner_of(page.context, site, workspace)
    seat = f"{workspace.account.scope}/workspace:{seat_of(workspace.owner.pk)}"
    subject = workspace.account.subject_tenant
    admin_client.ensure_budget(subject, seat, allocated=12_345_678_901_234, overdraft_limit=0)
    for width in (320, 360):
        page.set_viewport_size({"width": width, "height": 700})
        page.goto(site.address(workspace.slug) + "/budget/")
        assert wrong_with(page) == []
        assert page.locator(".lines .places").evaluate_all(BROKEN) == [False, False]
    # A row is two rows on the screen, and still one of four cells.
    row = page.get_by_role("table", name="Last calls").get_by_role("row").last
    expect(row.get_by_role("cell")).to_have_count(4)


@pytest.mark.parametrize(("width", "height"), [(360, 740), (740, 360)])
def test_without_script_a_search_on_a_phone_shows_what_it_has_found(browser, site, width, height):
    workspace = WorkspaceFactory()
    with workspace.scope():
        said(ConversationFactory(owner=workspace.owner, title="Of books"), "What is a ledger?")
    with without_script(browser, site, workspace, width, height) as page:
        page.get_by_role("button", name="Conversations").click()
        page.get_by_role("searchbox").fill("ledger")
        page.get_by_role("searchbox").press("Enter")
        found = page.get_by_role("link", name="Of books")
        expect(found).to_be_visible()
        expect(page.get_by_role("searchbox")).to_be_focused()
        assert 0 <= found.bounding_box()["y"] < min(height, page.locator("textarea[name=prompt]").bounding_box()["y"])
        found.click()
        expect(found).to_be_hidden()
        expect(page.locator(".turn").first).to_be_visible()


def test_without_script_the_drawer_opened_over_a_search_leaves_what_lies_under_it_where_it_is(browser, site):
    workspace = WorkspaceFactory()
    with without_script(browser, site, workspace, 820, 1180) as page:
        page.goto(site.address(workspace.slug) + "/?q=ledger")
        composer = page.locator(".composer")
        before = composer.bounding_box()
        page.get_by_role("button", name="Conversations").click()
        expect(page.get_by_role("button", name="Close")).to_be_visible()
        assert composer.bounding_box() == before


@pytest.mark.parametrize("width", [960, 1280])
def test_without_script_no_button_of_the_message_lies_under_another(browser, site, width):
    workspace = WorkspaceFactory()
    with workspace.scope():
        conversation = ConversationFactory(owner=workspace.owner)
        said(conversation, "What is a ledger?")
    with without_script(browser, site, workspace, width, 700) as page:
        for path in ("/", f"/c/{conversation.pk}/"):
            page.goto(site.address(workspace.slug) + path)
            for name in ("Add", "Send"):
                page.get_by_role("button", name=name, exact=True).click(trial=True)


def test_a_brand_is_on_each_page_without_a_word_of_the_policy(page, app, database_url, authority, tmp_path):
    (tmp_path / "logo.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
    )
    brand = {"BRAND_NAME": "Nordlicht", "BRAND_ACCENT": "#7a1fa2", "BRAND_LOGO": str(tmp_path / "logo.svg")}
    with WebProcess(database_url=database_url, authority=authority, workers=1, threads=4, **brand) as web:
        page.goto(web.url + "/")
        expect(page.locator(".brand__name")).to_have_text("Nordlicht")
        assert page.locator("img.mark--logo").evaluate("image => image.complete && image.naturalWidth") == 9
        colour = page.locator(".hero em").evaluate("words => getComputedStyle(words).color")
        assert colour == "rgb(122, 31, 162)"
        # Colours that are still on their way are no colours of the page.
        page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        assert wrong_with(page) == []
