"""One conversation as its reader sees it: sent, streaming, stopped, refused, topped up and gone on with.

Each state is looked at in light, in dark and on a phone. The README shows them: UPDATE_SCREENSHOTS writes the pictures.
"""

import json
import re
from datetime import timedelta
from functools import partial

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.utils import timezone
from playwright.sync_api import expect

from tests.e2e.steps import draft, last, shown
from tests.support.factories import ConversationFactory, WorkspaceFactory, said

pytestmark = pytest.mark.browser

WIDE, PHONE, SHORT, ZOOMED = (1120, 700), (360, 720), (360, 500), (320, 256)  # the last is 1280 × 1024 at 400 %
LEAST = (960, 600)  # that has the list beside the conversation, and the options beside Send
# Between light and dark nothing changes but colours.
LOOKS = (
    ("light", "light", WIDE, None),
    ("dark", "dark", WIDE, ["color-contrast"]),
    ("phone", "light", PHONE, None),
)
ON_A_PHONE = ("stream", "refuse", "go-on")  # in the README

EARLIER = ("Plan for the Riverside pilot", "Reply to the harbour office", "Names for the docking station")
STATUS = """The pilot is **on schedule**. Three things stand out:

- Both robots dock without help, 41 times out of 42.
- Battery life is 7.5 hours, half an hour above the target.
- The lift door is still slower than the map expects.
"""
PLAN = """Here is a plan that keeps Thursday free for the demo:

1. **Monday:** measure the lift door again, and send the figures to the map team.
2. **Tuesday:** try the new map at night, with nobody in the hall.
3. **Wednesday:** let both robots run for a whole shift.

On Friday, go through what the guests have asked, and"""
INVITATION = """**You are invited: Riverside demo, Thursday at 10:00**

Come and see two robots do a morning's round on their own. It takes half an hour, and there is coffee afterwards.
"""
PRICED = re.compile(r"^≈ \$0\.0*\d\d, at most \$0\.\d+$")
METERED = re.compile(r"^≈ \$0\.0*\d\d of \$0\.\d+ held so far, for an answer of at most 512 tokens$")
ASKED = "Now write the invitation to the demo on Thursday, in two sentences."


@pytest.fixture
def workspace(app):
    """With a name that a reader of the pictures may see."""
    made = WorkspaceFactory(name="Acme Robotics")
    made.leave(62_000_000)
    return made


@pytest.fixture
def talk(signed_in, odd, workspace):
    """The page of a conversation with one answer, beside others of earlier days."""
    with workspace.scope():
        owner, now = workspace.owner, timezone.now()
        for days, title in enumerate(EARLIER):
            ConversationFactory(owner=owner, title=title, active_at=now - timedelta(days=days))
        shown = ConversationFactory(owner=owner, title="Status of the Riverside pilot")
        facts = {"cost": 842_000, "tokens_input": 214, "tokens_output": 157, "model": "heron-1"}
        said(shown, "How is the Riverside pilot going, in three points?", text=STATUS, **facts)
    signed_in.goto(f"{odd.address(workspace.slug)}/c/{shown.pk}/")
    return signed_in


def wrong_with(page, within=None, rules=None):
    """What axe finds by these rules, or by all, and what is wider than its place."""
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    found = Axe().run(page, context=within, options=options).response["violations"]
    return [*((one["id"], [node["target"] for node in one["nodes"]]) for one in found), *page.evaluate(WIDER)]


# What may be cut with an ellipsis, or is only read aloud, is not meant.
WIDER = """() => [document.documentElement, ...document.querySelectorAll(".top *, .talk *")].filter((one) => {
    if (!one.checkVisibility() || one.closest(".unseen, .skip, .talk__bar, svg")) return false;
    const { left, right } = one.getBoundingClientRect();
    const { display, overflowX, textOverflow } = getComputedStyle(one);
    const mayBe = display === "inline" || overflowX === "auto" || textOverflow === "ellipsis" || one.matches("input");
    return left < -1 || right > innerWidth + 1 || (!mayBe && one.scrollWidth > one.clientWidth + 1);
}).map((one) => ["wide", one.className || one.tagName])"""

# Wholly inside the window, and nothing lies over its middle.
SEEN = """(one) => {
    const { left, top, right, bottom } = one.getBoundingClientRect();
    const inside = left >= -1 && top >= -1 && right <= innerWidth + 1 && bottom <= innerHeight + 1;
    return inside && one.contains(document.elementFromPoint((left + right) / 2, (top + bottom) / 2));
}"""


def expect_seen(*parts):
    for part in parts:
        for _ in range(600):
            if part.evaluate(SEEN):
                break
            part.page.wait_for_timeout(50)  # the page scrolls by itself once it has another size
        else:
            raise AssertionError(f"not in sight: {part}")


def resize(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})


def look(page, picture, state, *parts):
    """In each way to look: what a reader needs now is in sight, and nothing is wrong."""
    page.mouse.move(0, 0)
    for name, scheme, size, rules in LOOKS:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        resize(page, size)
        expect_seen(*parts)
        # What is around the conversation is the same in each state.
        assert wrong_with(page, None if state == "send" else ".talk", rules) == [], (state, name)
        if name != "phone" or state in ON_A_PHONE:
            picture(page, f"{state}-{name}")
    resize(page, WIDE)


def words(text):
    return re.findall(r"\s*\S+", text)


def paused(text):
    """An answer that comes so far, and no further while it is looked at."""
    frames = ({"choices": [{"index": 0, "delta": {"content": word}}]} for word in words(text))
    return [*(f"data: {json.dumps(frame)}\n\n" for frame in frames), {"wait_s": 300}]


def press_send_by_keyboard(page):
    """From the top of the page, by the links for it and by Tab."""
    page.locator(".skip").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(box(page)).to_be_focused()
    for _ in range(10):
        page.keyboard.press("Tab")
        if send(page).evaluate("send => send === document.activeElement"):
            return page.keyboard.press("Enter")
    raise AssertionError("Tab does not come to Send")


def box(page):
    return page.locator("textarea[name=prompt]")


def send(page):
    return page.get_by_role("button", name="Send", exact=True)


def strip(page, what):
    return page.locator(f".strip [data-chat={what}]")


def is_written(page, see):
    price = page.locator("[data-chat=price]")
    assert "out per million tokens" in price.inner_text()
    box(page).fill("Turn it into a plan for next week, day by day.")
    expect(price.locator("[data-chat=price-message]")).to_have_text(PRICED)
    assert not price.get_by_text("More than is left.").is_visible()
    see("send", last(page, "facts"), box(page), send(page), strip(page, "remaining"))
    resize(page, LEAST)
    assert page.evaluate(WIDER) == []


def streams(page, upstream, see):
    upstream.parts = paused(PLAN)
    box(page).press("Enter")
    shown(page, "the guests have asked, and").wait_for()
    expect(last(page, "facts")).to_have_text(METERED)
    expect(strip(page, "held-for")).to_be_visible()
    see("stream", last(page, "facts"), page.get_by_role("button", name="Stop"), strip(page, "remaining"))


def is_stopped(page, see):
    page.get_by_role("button", name="Stop").click()
    last(page, "end").get_by_text("Stopped before its end.").wait_for()
    last(page, "facts").get_by_text("not reported, estimated").wait_for()
    expect(strip(page, "held-for")).to_be_hidden()
    expect(strip(page, "reserved")).to_have_text("$0.00")
    assert not page.locator("[data-chat=price-message]").is_visible()
    see("stop", last(page, "facts"), page.get_by_role("button", name="Continue"), send(page), strip(page, "remaining"))


def is_too_dear(page, workspace):
    workspace.leave(500_000)
    page.reload()
    box(page).fill(ASKED)
    page.get_by_text("More than is left.").wait_for()
    assert "% of the budget is spent." in page.locator(".strip").inner_text()
    assert wrong_with(page, ".talk") == []


def is_refused(page, workspace, see):
    workspace.leave(0)
    send(page).click()
    card = page.get_by_role("alert").filter(has_text="is used up")
    card.wait_for()
    assert re.search(r"It needs\s+\$0\.\d+\s+Left in this workspace's budget\s+\$0\.00", card.inner_text())
    assert not card.get_by_role("button", name="Shorter answer").is_visible(), "not even a word fits"
    assert draft(page) == ASKED
    page.get_by_text("More than is left.").wait_for()
    ways = [card.get_by_role("link", name=name) for name in ("Top up", "See the budget")]
    needed = [*ways, box(page), send(page), strip(page, "remaining")]
    see("refuse", card, *needed)
    resize(page, SHORT)
    expect_seen(*needed)


def is_topped_up(page, workspace, see):
    """Elsewhere: the reader comes back to the page."""
    workspace.leave(50_000_000)
    page.reload()
    expect(box(page)).to_have_value(ASKED)
    expect(strip(page, "remaining")).to_have_text("$0.5000")
    expect(page.locator("[data-chat=price-message]")).to_have_text(PRICED)
    assert not page.locator("[data-chat=refusal]").is_visible()
    see("top-up", last(page, "facts"), box(page), send(page), strip(page, "remaining"))


def goes_on(page, upstream, see):
    upstream.parts, upstream.tokens = None, words(INVITATION)
    upstream.usage = {"prompt_tokens": 402, "completion_tokens": 58}
    press_send_by_keyboard(page)
    last(page, "facts").get_by_text("402 in / 58 out").wait_for()
    expect(strip(page, "held-for")).to_be_hidden()
    see("go-on", last(page, "facts"), send(page), strip(page, "remaining"))


def is_usable_at_400_percent(page):
    resize(page, ZOOMED)
    for part in (page.get_by_role("button", name="Try again").last, box(page), send(page)):
        part.focus()
        expect_seen(part)
    last(page, "facts").scroll_into_view_if_needed()
    expect_seen(last(page, "facts"))
    assert wrong_with(page, ".talk") == []


def test_a_message_is_sent_streams_is_stopped_refused_paid_for_and_answered(talk, upstream, workspace, picture):
    see = partial(look, talk, picture)
    is_written(talk, see)
    streams(talk, upstream, see)
    is_stopped(talk, see)
    is_too_dear(talk, workspace)
    is_refused(talk, workspace, see)
    is_topped_up(talk, workspace, see)
    goes_on(talk, upstream, see)
    is_usable_at_400_percent(talk)
    workspace.settled()
