"""Files in a message in a real browser: added, priced, sent, on the page after a reload, and without script."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.e2e.conftest import PATIENCE_MS
from tests.e2e.steps import ask, draft
from tests.e2e.test_signed_out import log_in, newcomer

pytestmark = pytest.mark.browser

NOTES = {"name": "notes.md", "mimeType": "text/markdown", "buffer": b"# Forty two\n"}
EMPTY = {"name": "empty.txt", "mimeType": "text/plain", "buffer": b""}
PICTURE = {"name": "cat.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n"}
# More than a form may be elsewhere: the front, web and Django let it through here.
LARGE = {"name": "large.csv", "mimeType": "text/csv", "buffer": b"1,2;" * 400_000}


def open_chat(page, web, acme):
    page.set_default_timeout(PATIENCE_MS)
    page.goto(web.address(acme.slug) + "/")
    log_in(page, newcomer(acme).email)
    page.locator("textarea[name=prompt]").wait_for()


def waiting(page):
    return page.locator(".files .file")


def test_a_file_is_added_priced_sent_with_its_question_and_there_after_a_reload(page, web, acme):
    open_chat(page, web, acme)
    chooser = page.get_by_label("Add a file")
    expect(chooser).to_have_js_property("multiple", True)  # once the page's script is there
    chooser.set_input_files([NOTES, EMPTY, PICTURE, LARGE])
    expect(waiting(page)).to_have_count(2)
    expect(waiting(page).first).to_contain_text("at most")
    expect(waiting(page).first).to_contain_text("$0.0")
    refused = page.get_by_role("alert").filter(has_text="cat.png: Pictures")
    expect(refused).to_be_visible()
    expect(refused).to_contain_text("empty.txt: ")  # and not only the last of them
    assert Axe().run(page).violations_count == 0
    page.get_by_role("button", name="Remove large.csv").click()
    expect(waiting(page)).to_have_count(1)
    page.reload()
    expect(waiting(page)).to_have_count(1)
    ask(page, "What is it?", 8)
    expect(page.locator(".turn--user .file__name")).to_have_text("notes.md")
    expect(waiting(page)).to_have_count(0)
    page.locator(".turn__facts", has_text=" out · ").wait_for()
    page.reload()
    expect(page.locator(".turn--user .file__name")).to_have_text("notes.md")
    with page.expect_download() as download:
        page.locator(".turn--user .file__name").click()
    assert download.value.suggested_filename == "notes.md"


# As the operating system hands over a file; `types` is what else is there.
HANDED = """([name, where, event, types]) => {
    const data = new DataTransfer();
    data.items.add(new File(["words"], name, { type: "text/plain" }));
    for (const type of types) data.setData(type, "words");
    const handed = event === "paste"
        ? new ClipboardEvent(event, { clipboardData: data, bubbles: true, cancelable: true })
        : new DragEvent(event, { dataTransfer: data, bubbles: true, cancelable: true });
    document.querySelector(where).dispatchEvent(handed);
    return handed.defaultPrevented;
}"""


def test_a_file_is_dropped_anywhere_on_the_page_or_pasted_into_the_box(page, web, acme):
    """The browser opened what was dropped, in the place of the page and of the answer that was under way."""
    open_chat(page, web, acme)
    expect(page.get_by_label("Add a file")).to_have_js_property("multiple", True)
    assert page.evaluate(HANDED, ["dropped.txt", ".top", "dragover", []])
    assert page.evaluate(HANDED, ["dropped.txt", ".top", "drop", []])
    expect(waiting(page)).to_have_count(1)
    # macOS hands a file over with its name, as words.
    for number, types in enumerate([[], ["text/plain"]]):
        assert page.evaluate(HANDED, [f"pasted-{number}.txt", "textarea", "paste", types])
        expect(waiting(page)).to_have_count(2 + number)
    # Words that have a picture of themselves with them, and a picture of a page, which is a link as well.
    assert not page.evaluate(HANDED, ["table.txt", "textarea", "paste", ["text/plain", "text/html"]])
    assert not page.evaluate(HANDED, ["linked.txt", ".scroll", "drop", ["text/uri-list"]])
    expect(page.locator(".files .file__name")).to_have_text(["dropped.txt", "pasted-0.txt", "pasted-1.txt"])


def test_without_script_a_file_is_added_and_nothing_typed_is_lost(browser, web, acme):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 800})
    page = context.new_page()
    open_chat(page, web, acme)
    page.locator("textarea[name=prompt]").fill("What is it?")
    page.locator("input[name=max_tokens]").fill("8")
    page.get_by_label("Add a file").set_input_files(NOTES)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(waiting(page)).to_have_count(1)
    assert draft(page) == "What is it?"
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".turn--user .file__name")).to_have_text("notes.md")
    context.close()
