"""The chat page by keyboard alone, and as a screen reader is told of it: the focus is neither lost nor covered."""

import pytest
from playwright.sync_api import expect

from tests.e2e.odd.conftest import enter
from tests.support.factories import ConversationFactory, said

pytestmark = pytest.mark.browser


@pytest.fixture
def talk(workspace):
    """A conversation of the owner, which is longer than the window; its number."""
    with workspace.scope():
        made = ConversationFactory(owner=workspace.owner, title="Of books")
        said(made, "What is a ledger?", text="A book. " * 200)
    return made.pk


@pytest.fixture
def chat(page, odd, workspace, talk):
    """The page of that conversation."""
    page.set_default_timeout(20_000)
    enter(page, odd, workspace, f"/c/{talk}/")
    return page


def box(page):
    return page.locator("textarea[name=prompt]")


def test_a_button_that_goes_away_leaves_the_focus_at_the_message_box(chat, upstream):
    page = chat
    stop, send = page.get_by_role("button", name="Stop"), page.get_by_role("button", name="Send")
    for press in ("Send", "Continue", "Try again"):
        upstream.finish_reason = "length"
        upstream.tokens, upstream.delay_between = ["a word "] * 40, 0.1
        if press == "Send":
            box(page).fill("go on")
        page.get_by_role("button", name=press, exact=True).last.focus()
        page.keyboard.press("Enter")
        expect(stop).to_be_visible()
        expect(box(page)).to_be_focused()
        page.locator(".turn__text").last.get_by_text("a word").wait_for()
        stop.focus()
        page.keyboard.press("Enter")
        expect(send).to_be_visible()
        expect(box(page)).to_be_focused()


def test_what_is_open_over_the_page_closes_as_the_focus_goes_on_to_what_it_covers(chat):
    page = chat
    menu, picker = page.locator(".menu"), page.locator(".picker")
    menu.locator("summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(menu.get_by_label("Title")).to_be_focused()
    menu.get_by_role("button", name="Delete").focus()
    expect(menu).to_have_attribute("open", "")
    page.keyboard.press("Tab")
    expect(page.get_by_role("region", name="Messages")).to_be_focused()
    expect(menu).not_to_have_attribute("open", "")

    for close in ("Escape", "Shift+Tab"):
        picker.locator("summary").focus()
        page.keyboard.press("Enter")
        expect(picker).to_have_attribute("open", "")
        page.keyboard.press(close)
        expect(picker).not_to_have_attribute("open", "")
    picker.locator("summary").focus()

    # In the sheet of a phone it covers nothing, and closes by itself: the sheet stays.
    page.set_viewport_size({"width": 360, "height": 740})
    page.get_by_role("button", name="Options").click()
    picker.locator("summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.get_by_role("link", name="Settings of this conversation").focus()
    expect(picker).to_have_attribute("open", "")
    picker.get_by_role("link").last.focus()
    page.keyboard.press("Escape")
    expect(picker.locator("summary")).to_be_focused()
    expect(page.locator("#options")).to_be_visible()


def test_after_a_search_the_focus_is_before_what_it_has_found(chat, talk):
    page = chat
    page.get_by_role("searchbox").fill("ledger")
    page.keyboard.press("Enter")
    page.get_by_text("Found: “ledger”").wait_for()
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Of books")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/c/{talk}/?at=*")


def told(page):
    """What is read out with the box, where the focus is after a page has come."""
    expect(box(page)).to_be_focused()
    return box(page).evaluate(
        """box => box.getAttribute("aria-describedby").split(" ")
            .map(id => document.getElementById(id).textContent.trim().replace(/\\s+/g, " ")).join(" ")"""
    )


def test_what_a_page_came_to_say_is_read_out_with_the_box_until_the_next_message(chat, upstream):
    page = chat
    assert told(page).startswith("$")
    page.locator(".menu summary").click()
    page.get_by_role("button", name="Pin to the top").click()
    page.get_by_role("status").get_by_text("Pinned.").wait_for()
    assert told(page).startswith("Pinned. $")
    box(page).fill("go on")
    page.keyboard.press("Enter")
    page.locator(".turn__facts", has_text=" 10 in").wait_for()
    assert "Pinned." not in told(page)
    page.locator(".menu summary").click()
    page.locator(".menu").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Undo").wait_for()
    assert told(page).startswith("Deleted: Of books. It can be taken back for 30 days.")
