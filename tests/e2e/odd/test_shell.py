"""The chat page's shell: the last turn is in sight, each part scrolls by itself, and nobody is shut out of any part."""

import os

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from chat.examples import EXAMPLES
from tests.e2e.odd.conftest import enter
from tests.support.factories import ConversationFactory, said

pytestmark = pytest.mark.browser

WIDE, PHONE, LOW = (1280, 800), (360, 740), (320, 256)


@pytest.fixture
def full(workspace):
    """Sixty conversations of the owner, the newest of them long. Its number."""
    with workspace.scope():
        made = ConversationFactory.create_batch(60, owner=workspace.owner)[-1]
        for n in range(12):
            said(made, f"Question {n}", text=f"Answer {n}. " + "It goes on. " * 60)
    return made.pk


@pytest.fixture
def signed_in(page, odd, workspace, full):
    enter(page, odd, workspace, f"/c/{full}/")
    return page


def resize(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})


def look(page, name):
    """Kept for whoever changes the shell's look."""
    if folder := os.environ.get("SHELL_PICTURES"):
        page.screenshot(path=f"{folder}/{name}.png")


def each_look(page, name):
    """Light and dark, in each size; nothing is wrong with any."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for size in (WIDE, (768, 900), PHONE):
            resize(page, size)
            look(page, f"{name}-{size[0]}-{scheme}")
            assert wrong_with(page) == [], (scheme, size)
            yield


def wrong_with(page):
    found = [(one["id"], [node["target"] for node in one["nodes"]]) for one in Axe().run(page).response["violations"]]
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [*found, *([("wide", wide)] if wide > 0 else [])]


def eventually(page, script):
    """Asked again and again from here: the page's policy lets nobody evaluate a string in it."""
    for _ in range(600):
        if page.evaluate(script):
            return
        page.wait_for_timeout(50)
    raise AssertionError(script)


# What the button to the end lies over when the focus gets there from above.
COVERED = """() => {
    const latest = document.querySelector("[data-chat=latest]");
    const acts = [...document.querySelectorAll(".turn__acts :is(a, button, summary)")].slice(0, 30);
    return acts.filter((act) => {
        act.focus();
        const [one, other] = [act, latest].map((element) => element.getBoundingClientRect());
        const isBeside = one.right < other.left || one.left > other.right;
        return act === document.activeElement && !isBeside && one.bottom > other.top && one.top < other.bottom;
    }).map((act) => act.textContent.trim());
}"""
BELOW = """() => {
    const end = [...document.querySelectorAll(".turn")].at(-1).getBoundingClientRect().bottom;
    const own = document.querySelector("[data-chat=scroll]").getBoundingClientRect();
    return Math.max(end - own.bottom, end - innerHeight);
}"""


def expect_last_turn_in_sight(page):
    """By its end, within the messages' part and the window; and the page itself has nowhere to scroll."""
    eventually(page, f"({BELOW})() <= 1")
    assert page.evaluate("document.scrollingElement.scrollHeight - innerHeight") <= 0
    box = page.locator("textarea[name=prompt]").bounding_box()
    assert box["y"] + box["height"] <= page.viewport_size["height"]


def ask(page, words):
    page.locator("textarea[name=prompt]").fill(words)
    page.locator("textarea[name=prompt]").press("Enter")


@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_the_last_turn_is_in_sight_also_while_it_streams_and_a_reader_who_went_up_is_left_there(
    signed_in, upstream, size
):
    page = signed_in
    resize(page, size)
    page.reload()
    expect_last_turn_in_sight(page)
    look(page, f"full-{size[0]}")
    assert wrong_with(page) == []

    upstream.tokens, upstream.delay_between = ["a line of the answer\n"] * 60, 0.04
    ask(page, "go on")
    for line in (1, 30):
        eventually(page, f"[...document.querySelectorAll('.turn__text')].at(-1).innerText.split('\\n').length > {line}")
        expect_last_turn_in_sight(page)
    latest = page.get_by_role("button", name="Latest")
    expect(latest).to_be_hidden()
    part = page.get_by_role("region", name="Messages")
    part.focus()
    page.keyboard.press("PageUp")
    expect(latest).to_be_visible()
    there = part.evaluate("async (part) => {await new Promise(r => setTimeout(r, 250)); return part.scrollTop}")
    page.wait_for_timeout(200)
    assert part.evaluate("(part) => part.scrollTop") == there, "what comes moves nobody"
    look(page, f"up-{size[0]}")
    if size == PHONE:
        assert wrong_with(page) == []
    latest.click()
    expect(latest).to_be_hidden()
    expect(part).to_be_focused()
    page.get_by_role("button", name="Send").wait_for()
    expect_last_turn_in_sight(page)


# The reader goes up by a little in the frame in which words have come, before the scroll that they caused is told.
GOES_UP_AS_WORDS_COME = """async () => {
    const [box, turns] = ["scroll", "turns"].map((name) => document.querySelector(`[data-chat=${name}]`));
    const frames = async () => { for (let n = 0; n < 3; n++) await new Promise(requestAnimationFrame); };
    let goesUp = false, seen;
    const reader = new ResizeObserver(() => {
        if (goesUp) box.scrollBy({top: -10, behavior: "instant"});
        seen();
    });
    const grown = new Promise((done) => seen = done);
    reader.observe(turns);
    await grown;
    const grow = async () => {
        const told = new Promise((done) => seen = done);
        turns.append(Object.assign(document.createElement("p"), {textContent: "more"}));
        await told;
        await frames();
    };
    goesUp = true;
    await grow();
    const there = box.scrollTop;
    goesUp = false;
    await grow();
    reader.disconnect();
    return box.scrollTop - there;
}"""


def test_a_reader_who_goes_up_in_the_moment_when_words_come_is_left_there(signed_in):
    expect_last_turn_in_sight(signed_in)
    assert signed_in.evaluate(GOES_UP_AS_WORDS_COME) == 0


# A key that is made up scrolls nothing: it is the moment between a reader's key and its scroll, in which words come.
WORDS_COME_AFTER_THE_KEY = """async (event) => {
    const [box, turns] = ["scroll", "turns"].map((name) => document.querySelector(`[data-chat=${name}]`));
    const before = box.scrollTop;
    box.dispatchEvent(event === "wheel" ? new WheelEvent(event, {deltaY: -100, bubbles: true})
                                        : new KeyboardEvent("keydown", {key: event, bubbles: true}));
    box.dispatchEvent(new Event("scroll")); // of the words before, which are followed in the frame before it is told
    turns.append(Object.assign(document.createElement("p"), {textContent: "more words"}));
    for (let n = 0; n < 3; n++) await new Promise(requestAnimationFrame);
    return box.scrollTop - before;
}"""


@pytest.mark.parametrize("event", ["PageUp", "wheel"])
def test_words_that_come_between_a_readers_key_and_its_scroll_take_nobody_back(signed_in, event):
    expect_last_turn_in_sight(signed_in)
    assert signed_in.evaluate(WORDS_COME_AFTER_THE_KEY, "ArrowDown") > 0, "who stays at the end is kept there"
    assert signed_in.evaluate(WORDS_COME_AFTER_THE_KEY, event) == 0


def test_the_list_scrolls_by_itself_and_is_a_drawer_where_there_is_no_room(signed_in):
    page = signed_in
    rail = page.get_by_role("navigation", name="Conversations")
    rail.get_by_role("link").last.focus()
    assert page.evaluate("scrollY + document.querySelector('.main').getBoundingClientRect().top") < 120
    expect_last_turn_in_sight(page)

    resize(page, PHONE)
    opener = page.get_by_role("button", name="Conversations")
    expect(rail).to_be_hidden()
    opener.focus()
    page.keyboard.press("Enter")
    expect(rail.locator("[aria-current]")).to_be_focused()
    look(page, "drawer-360")
    assert wrong_with(page) == []
    page.keyboard.press("Escape")
    expect(rail).to_be_hidden()
    expect(opener).to_be_focused()
    opener.click()
    page.mouse.click(350, 400)
    expect(rail).to_be_hidden()
    page.get_by_role("button", name="Options").click()
    expect(page.locator("select[name=model]")).to_be_focused()
    look(page, "options-360")
    assert wrong_with(page) == []
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("button", name="Options")).to_be_focused()


def test_an_empty_chat_offers_examples_and_all_is_done_by_keyboard(signed_in, upstream, odd, workspace):
    page = signed_in
    page.goto(odd.address(workspace.slug) + "/")
    for _ in each_look(page, "empty"):
        pass
    box = page.locator("textarea[name=prompt]")
    expect(box).to_be_focused()
    page.get_by_role("link", name=EXAMPLES[1].title).focus()
    page.keyboard.press("Enter")
    expect(box).to_have_value(EXAMPLES[1].prompt)
    expect(box).to_be_focused()
    expect(page.locator("[data-chat=price-message]")).to_contain_text("at most $")
    page.keyboard.type(" In short.")
    page.get_by_role("link", name=EXAMPLES[2].title).click()
    expect(box).to_have_value(f"{EXAMPLES[2].prompt}\n\nIn short.")

    resize(page, WIDE)
    page.evaluate("document.activeElement.blur(); document.querySelector('.skip').focus()")
    page.keyboard.press("Enter")  # to the content
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the message box")).to_be_focused()
    page.keyboard.press("Tab")
    for _ in range(3):  # through the search and the list
        page.keyboard.press("Tab")
    expect(page.locator(".rail__list a").nth(1)).to_be_focused()
    page.get_by_role("link", name="Skip to the message box").focus()
    page.keyboard.press("Enter")
    expect(box).to_be_focused()
    page.keyboard.press("Enter")
    page.locator(".turn__facts", has_text=" 10 in").wait_for()
    look(page, "asked-1280-dark")
    assert wrong_with(page) == []
    page.goto(odd.address(workspace.slug) + "/budget/")
    look(page, "budget-1280-dark")


EIGHT_PAGES_MORE = """() => {
    const last = document.querySelector(".nav").lastElementChild;
    for (const name of ["Reports", "Knowledge base", "Data", "Tuning", "Trials", "Playground", "Partners", "Support"])
        last.before(Object.assign(document.createElement("a"), {href: "/more/", textContent: name}));
}"""


def test_a_menu_with_eight_pages_of_a_builders_own_keeps_within_the_window(signed_in):
    """Such as config/templates/partials/nav_more.html may have. All pages could be scrolled sideways by its length."""
    page = signed_in
    page.evaluate(EIGHT_PAGES_MORE)
    for _ in each_look(page, "menu"):
        expect_last_turn_in_sight(page)


def test_a_conversation_is_printed_whole_and_nothing_else(signed_in):
    page = signed_in
    page.emulate_media(media="print")
    paper = page.evaluate("""() => {
        const turns = [...document.querySelectorAll(".turn")].map((turn) => turn.getBoundingClientRect());
        return [0, turns[0].top + scrollY, turns.at(-1).bottom + scrollY, document.documentElement.scrollHeight];
    }""")
    assert paper == sorted(paper)
    for part in ("#rail", ".composer", ".turn__acts", ".menu"):
        expect(page.locator(part).first).to_be_hidden()
    page.emulate_media(media="screen")


def test_in_a_low_window_the_page_scrolls_and_each_part_is_reached(signed_in, upstream):
    page = signed_in
    resize(page, LOW)
    page.reload()
    assert page.evaluate("document.scrollingElement.scrollHeight") > 2 * LOW[1]
    send = page.get_by_role("button", name="Send")
    send.scroll_into_view_if_needed()
    look(page, "low-composer")
    ask(page, "hello")
    page.locator(".turn__facts", has_text=" 10 in").wait_for()
    eventually(
        page,
        """() => {
        const end = [...document.querySelectorAll(".turn")].at(-1).getBoundingClientRect().bottom;
        return end > 0 && end <= innerHeight;
    }""",
    )
    page.evaluate("scrollTo(0, 0)")
    latest = page.get_by_role("button", name="Latest")
    latest.wait_for()
    look(page, "low-top")
    assert page.evaluate(COVERED) == []
    page.get_by_role("button", name="Conversations").click()
    look(page, "low-drawer")
    page.get_by_role("navigation", name="Conversations").get_by_role("link").last.scroll_into_view_if_needed()
    assert wrong_with(page) == []


def test_without_script_a_conversation_opens_at_its_end_and_drawer_and_examples_work(browser, odd, workspace, full):
    context = browser.new_context(java_script_enabled=False, viewport={"width": 360, "height": 740})
    page = context.new_page()
    enter(page, odd, workspace, f"/c/{full}/")
    turn = page.locator(".turn").last.bounding_box()
    assert turn["y"] + turn["height"] <= page.locator("textarea[name=prompt]").bounding_box()["y"]
    look(page, "no-script-360")
    page.get_by_role("button", name="Conversations").click()
    rail = page.get_by_role("navigation", name="Conversations")
    expect(rail).to_be_visible()
    page.keyboard.press("Escape")
    expect(rail).to_be_hidden()
    page.get_by_role("link", name="New conversation").click()
    page.get_by_role("link", name=EXAMPLES[0].title).click()
    expect(page.locator("textarea[name=prompt]")).to_have_value(EXAMPLES[0].prompt)
    page.goto(odd.address(workspace.slug) + "/?prompt=" + "%3C/textarea%3E%3Cb%3E" + "x" * 3_000)
    box = page.locator("textarea[name=prompt]").input_value()
    assert box == ("</textarea><b>" + "x" * 3_000)[:2_000]
    context.close()
