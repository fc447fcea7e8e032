"""One conversation as its reader sees it: sent, streaming, stopped, refused, topped up and gone on with.

Each state is looked at in light, in dark and on a phone. The README shows them: UPDATE_SCREENSHOTS writes the pictures.
"""

import json
import re
from datetime import timedelta

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.utils import timezone
from playwright.sync_api import expect

from tests.e2e.steps import draft, last, shown
from tests.support.factories import ConversationFactory, WorkspaceFactory, said

pytestmark = pytest.mark.browser

WIDE, PHONE, SHORT, ZOOMED = (
    (1120, 700),
    (360, 640),
    (360, 500),
    (320, 256),
)  # the last is four times the size in a window of 1280 × 1024
LOOKS = (("light", "light", WIDE), ("dark", "dark", WIDE), ("phone", "light", PHONE))

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


def wrong_with(page):
    """What axe finds, and what is wider than its place."""
    found = [(one["id"], [node["target"] for node in one["nodes"]]) for one in Axe().run(page).response["violations"]]
    return [*found, *page.evaluate(WIDER)]


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
        for _ in range(60):
            if part.evaluate(SEEN):
                break
            part.page.wait_for_timeout(50)  # the page scrolls by itself once it has another size
        else:
            raise AssertionError(f"not in sight: {part}")


def resize(page, size):
    page.set_viewport_size({"width": size[0], "height": size[1]})


def look(page, picture, state, *parts):
    """In each way to look: what a reader needs now is in sight, and nothing is wrong."""
    for name, scheme, size in LOOKS:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.mouse.move(0, 0)
        resize(page, size)
        expect_seen(*parts)
        assert wrong_with(page) == [], (state, name)
        picture(page, f"{state}-{name}")
    resize(page, WIDE)


def words(text):
    return re.findall(r"\s*\S+", text)


def paused(text):
    """An answer that comes so far, and no further while it is looked at."""
    frames = ({"choices": [{"index": 0, "delta": {"content": word}}]} for word in words(text))
    return [*(f"data: {json.dumps(frame)}\n\n" for frame in frames), {"wait_s": 60}]


def press_send_by_keyboard(page):
    """From the top of the page, by the links for it and by Tab."""
    page.locator(".skip").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("textarea[name=prompt]")).to_be_focused()
    send = page.get_by_role("button", name="Send", exact=True)
    for _ in range(10):
        page.keyboard.press("Tab")
        if send.evaluate("send => send === document.activeElement"):
            return page.keyboard.press("Enter")
    raise AssertionError("Tab does not come to Send")


def test_a_message_is_sent_streams_is_stopped_refused_paid_for_and_answered(talk, upstream, workspace, picture):
    page = talk
    box, send = page.locator("textarea[name=prompt]"), page.get_by_role("button", name="Send", exact=True)
    left, meter = page.locator("[data-chat=remaining]"), last(page, "facts")
    price = page.get_by_text(re.compile(r"^≈ \$0\.\d+, at most \$0\.\d+$"))

    box.fill("Turn it into a plan for next week, day by day.")
    price.wait_for()
    look(page, picture, "send", meter, box, send, left)

    upstream.parts = paused(PLAN)
    stop = page.get_by_role("button", name="Stop")
    box.press("Enter")
    shown(page, "the guests have asked, and").wait_for()
    meter.get_by_text("held so far").wait_for()
    look(page, picture, "stream", meter, stop, left)

    stop.click()
    last(page, "end").get_by_text("Stopped before its end.").wait_for()
    meter.get_by_text("not reported, estimated").wait_for()
    look(page, picture, "stop", meter, page.get_by_role("button", name="Continue"), send, left)

    workspace.leave(0)
    box.fill(ASKED)
    send.click()
    card = page.get_by_role("alert")
    card.get_by_text("is used up").wait_for()
    assert draft(page) == ASKED
    page.get_by_text("More than is left.").wait_for()
    look(page, picture, "refuse", card, card.get_by_role("link", name="Top up"), box, send, left)

    resize(page, SHORT)
    expect_seen(card.get_by_role("link", name="Top up"), box, send, left)

    workspace.leave(50_000_000)
    page.reload()
    expect(box).to_have_value(ASKED)
    expect(left).to_have_text("$0.5000")
    expect(card).to_be_hidden()
    price.wait_for()
    look(page, picture, "top-up", meter, box, send, left)

    upstream.parts, upstream.tokens = None, words(INVITATION)
    upstream.usage = {"prompt_tokens": 402, "completion_tokens": 58}
    press_send_by_keyboard(page)
    meter.get_by_text("402 in / 58 out").wait_for()
    look(page, picture, "go-on", meter, send, left)

    resize(page, ZOOMED)
    for part in (page.get_by_role("button", name="Try again").last, box, send):
        part.focus()
        expect_seen(part)
    meter.scroll_into_view_if_needed()
    expect_seen(meter)
    assert wrong_with(page) == []
    assert workspace.ledger()["reserved"] == 0
