"""Sixty conversations in a browser: the list moves with what is asked, and one is named, found and taken back."""

import os
import threading
from datetime import timedelta

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.utils import timezone
from playwright.sync_api import expect

from tests.e2e.steps import ask
from tests.support.factories import ConversationFactory, said

pytestmark = pytest.mark.browser

WIDE, PHONE = (1280, 800), (360, 740)


@pytest.fixture
def sixty(workspace):
    """One each hour; the oldest has been spoken of whales in."""
    with workspace.scope():
        now = timezone.now()
        owner = workspace.owner
        made = [ConversationFactory(owner=owner, active_at=now - timedelta(hours=n)) for n in range(60)]
        said(made[-1], "What sings?", text="A whale sings under the ice.")
        return made


def look(page, name):
    """Kept for whoever changes the look of the list."""
    if folder := os.environ.get("CONVERSATION_PICTURES"):
        page.screenshot(path=f"{folder}/{name}.png")


def wrong_with(page):
    found = [(one["id"], [node["target"] for node in one["nodes"]]) for one in Axe().run(page).response["violations"]]
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [*found, *([("wide", wide)] if wide > 0 else [])]


def resize(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})


def title(page):
    return page.get_by_role("heading", level=1)


def test_what_is_asked_moves_its_conversation_up_and_its_menu_does_not_leave_the_answer(
    sixty, signed_in, upstream, odd, workspace
):
    page, first = signed_in, signed_in.locator('[data-group="today"] li a').first
    rail = page.get_by_role("navigation", name="Conversations")
    ask(page, "A new question, and a long one at that, so that it is more than a title has room for")
    expect(first).to_have_text("A new question, and a long one at that, so that it is more …")
    expect(title(page)).to_have_text("A new question, and a long one at that, so that it is more …")
    assert page.title().startswith("A new question, and")
    page.locator(".turn__facts", has_text=" in / ").wait_for()

    page.goto(odd.address(workspace.slug) + f"/c/{sixty[30].pk}/")
    expect(rail.locator("li")).to_have_count(50)
    expect(rail.locator("[aria-current]")).to_have_text(sixty[30].title)
    upstream.tokens, upstream.last_word_after = ["a word "] * 30, threading.Event()
    ask(page, "go on")
    page.get_by_role("button", name="Stop").wait_for()
    page.locator("summary", has_text="Manage").click()
    page.get_by_label("Title").fill("Named meanwhile")
    page.get_by_label("Title").press("Enter")
    expect(title(page)).to_have_text("Named meanwhile")
    page.locator("summary", has_text="Manage").click()
    page.get_by_role("button", name="Delete", exact=True).first.click()
    page.get_by_text("It can be deleted once the answer has ended.").first.wait_for()
    assert page.title().startswith("Named meanwhile")
    page.get_by_role("button", name="Stop").click()
    field = page.locator("[data-chat=menu] [name=title]")
    field.evaluate("field => {field.closest('details').open = true; field.focus()}")
    page.locator(".turn__facts", has_text=" in / ").last.wait_for()
    page.get_by_role("button", name="Send").wait_for()
    expect(field).to_be_focused()
    page.keyboard.press("Escape")
    expect(first).to_have_text("Named meanwhile")
    expect(rail.locator("[aria-current]")).to_have_count(1)


def test_one_is_found_shared_deleted_and_taken_back_also_on_a_phone(sixty, signed_in):
    page, rail = signed_in, signed_in.get_by_role("navigation", name="Conversations")
    rail.get_by_role("link", name="Older").click()
    rail.get_by_role("link", name=sixty[-1].title, exact=True).wait_for()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        look(page, f"older-1280-{scheme}")
    resize(page, PHONE)
    page.reload()
    look(page, "older-360")
    box = rail.get_by_role("searchbox")
    box.fill("whal")
    box.press("Enter")
    rail.get_by_text("A whale sings under the ice.").wait_for()
    look(page, "found-360")
    assert wrong_with(page) == []
    rail.get_by_role("link", name="A whale sings").click()
    expect(title(page)).to_have_text(sixty[-1].title)
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.locator("summary", has_text="Manage").click()
        look(page, f"menu-360-{scheme}")
        assert wrong_with(page) == [], scheme
        page.keyboard.press("Escape")
        expect(page.get_by_label("Title")).to_be_hidden()
    page.keyboard.press("Enter")  # the focus is on what opens it
    page.get_by_role("button", name="Share in the workspace").click()
    page.get_by_text("Everybody in this workspace can read it now").wait_for()
    resize(page, WIDE)
    page.locator("summary", has_text="Manage").click()
    look(page, "menu-1280")
    assert wrong_with(page) == []
    page.get_by_role("link", name="its shared page").click()
    page.get_by_text("shares this conversation").wait_for()
    look(page, "shared-1280")
    resize(page, PHONE)
    look(page, "shared-360")
    assert wrong_with(page) == []
    page.get_by_role("link", name="Go to the conversation").click()
    page.locator("summary", has_text="Manage").click()
    page.get_by_role("button", name="Delete", exact=True).first.click()
    page.get_by_role("button", name="Undo").wait_for()
    look(page, "deleted-360")
    assert wrong_with(page) == []
    page.get_by_role("button", name="Undo").click()
    page.get_by_text("The conversation is back.").wait_for()
    expect(title(page)).to_have_text(sixty[-1].title)


def test_the_switch_of_titles_says_what_one_costs_and_each_tab_shows_a_title_without_a_reload(
    signed_in, odd, workspace, upstream
):
    page = signed_in
    page.goto(odd.address(workspace.slug) + "/settings/workspace/")
    page.get_by_text("which costs about $0.00").wait_for()
    page.get_by_role("button", name="Let the model write titles").click()
    page.get_by_role("button", name="Use the first words again").wait_for()
    look(page, "titles-1280")
    page.goto(odd.address(workspace.slug) + "/")
    is_seen = threading.Event()

    def say(body):
        if len(upstream.calls) > 1:  # the title
            is_seen.wait(60)
        return {"role": "assistant", "content": "Hello, world."}

    upstream.message = say
    ask(page, "What is a ledger?")
    expect(title(page)).to_have_text("What is a ledger?")
    is_seen.set()
    listed = page.locator("[data-group=today] li a").first
    for element in (title(page), listed):
        expect(element).to_have_text("Hello, world")
    assert page.title().startswith("Hello, world · ")
    page.get_by_text("Manage").click()
    expect(page.get_by_label("Title")).to_have_value("Hello, world")
    page.get_by_label("Title").fill("not sent yet")
    # As another tab tells it, in which the title was waited for.
    other = page.context.new_page()
    other.goto(odd.address(workspace.slug) + "/budget/")
    told = {
        "member": str(workspace.owner.pk),
        "id": page.url.rstrip("/").rpartition("/")[2],
        "state": "titled",
        "title": "Ledgers",
    }
    other.evaluate("told => new BroadcastChannel('chat').postMessage(told)", told)
    for element in (title(page), listed):
        expect(element).to_have_text("Ledgers")
    expect(page.get_by_label("Title")).to_have_value("not sent yet")
