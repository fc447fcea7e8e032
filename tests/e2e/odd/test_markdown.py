"""An answer's Markdown, as a reader sees it: while it streams, after a reload, without script; and copied."""

import threading

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

CODE = "def twice(word: str) -> str:\n    return word + word  # " + "a long line " * 12 + "\n"
ANSWER = [
    "## Two ways\n\nA *first* paragraph with `code`, ",
    "[a link](https://example.com/) and <b>no tag</b>.\n\n",
    "- one\n- two\n  - inner\n\n```python\n" + CODE + "```\n\n",
    "| a | a long name | another | third | fourth | fifth |\n|--|--:|--|--|--|--|\n| 1 | 2 | 3 | 4 | 5 | 6 |\n\n",
    "> said\n\n1. first\n2. second\n\nשלום *עולם*\n\n",
    "The **end",
    "**.",
]


@pytest.fixture
def upstream(upstream):
    upstream.tokens = ANSWER
    return upstream


def ask(page):
    page.locator("textarea[name=prompt]").fill("**how** many?")
    page.locator("textarea[name=prompt]").press("Enter")


def words(page):
    return page.locator(".turn--assistant .words").last


def violations(page):
    """What axe finds in the turns."""
    return Axe().run(page, context=".turns").response["violations"]


def test_blocks_are_shown_as_they_end_and_the_page_is_the_same_after_a_reload(signed_in, upstream, odd):
    upstream.last_word_after = threading.Event()
    ask(signed_in)
    text = signed_in.locator(".turn--assistant .turn__text").last
    words(signed_in).locator("h3").wait_for()
    words(signed_in).locator("li >> nth=2").wait_for()
    assert signed_in.locator(".turn--assistant[aria-busy]").count() == 1
    signed_in.get_by_text("The **end").wait_for()  # plain, until it has ended
    first = words(signed_in).locator("figure").element_handle()
    upstream.last_word_after.set()
    signed_in.locator(".turn--assistant:not([aria-busy])").wait_for()
    assert first.evaluate("figure => figure.isConnected")
    streamed, html = text.inner_text(), words(signed_in).locator("> *").evaluate_all("all => all.map(e => e.outerHTML)")
    assert "The end." in streamed
    assert "<b>no tag</b>" in streamed
    assert "Copy" not in signed_in.locator("[data-chat=announce]").inner_text()
    signed_in.reload()
    assert words(signed_in).locator("> *").evaluate_all("all => all.map(e => e.outerHTML)") == html
    assert signed_in.locator(".turn--user .turn__text").inner_text() == "**how** many?"
    for scheme in ("light", "dark"):
        signed_in.emulate_media(color_scheme=scheme)
        assert violations(signed_in) == []
    signed_in.set_viewport_size({"width": 360, "height": 800})
    assert signed_in.evaluate("document.documentElement.scrollWidth") <= 360
    table = words(signed_in).locator(".words__table")
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    signed_in.emulate_media(media="print")  # on paper nothing scrolls
    for part in (table, words(signed_in).locator("pre")):
        assert part.evaluate("box => box.scrollWidth <= box.clientWidth")


@pytest.mark.parametrize("where", ["button:has-text('Copy this code')", "a[href='/budget/']:has-text('left')"])
def test_who_is_at_a_control_stays_there_when_the_page_takes_its_parts_as_the_server_has_them(
    signed_in, upstream, odd, where
):
    """Enter, pressed a moment after an answer had broken off, went to an empty message box."""
    upstream.last_word_after, upstream.cut_after = threading.Event(), len(ANSWER)
    ask(signed_in)
    control = signed_in.locator(where)
    control.focus()
    before = control.element_handle()
    upstream.last_word_after.set()
    signed_in.locator(".turn--assistant:not([aria-busy])").wait_for()
    assert not before.evaluate("control => control.isConnected")
    expect(control).to_be_focused()
    expect(signed_in.locator("textarea[name=prompt]")).not_to_be_focused()


def test_code_is_copied_by_a_button_that_says_so_and_is_only_there_with_script(signed_in, upstream, odd, browser):
    ask(signed_in)
    signed_in.locator(".turn--assistant:not([aria-busy])").wait_for()
    signed_in.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = words(signed_in).get_by_role("button", name="Copy this code")
    button.focus()
    signed_in.keyboard.press("Enter")
    signed_in.locator("[data-chat=announce]").get_by_text("Copied.").wait_for(state="attached")
    assert signed_in.evaluate("navigator.clipboard.readText()") == CODE
    signed_in.wait_for_url("**/c/*/")
    context = browser.new_context(java_script_enabled=False, storage_state=signed_in.context.storage_state())
    bare = context.new_page()
    bare.goto(signed_in.url)
    assert words(bare).locator("h3").inner_text() == "Two ways"
    assert not bare.locator(".code__copy").is_visible()
    context.close()
