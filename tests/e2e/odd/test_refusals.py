"""Before it is sent a message has a price, while it is answered a meter, and what refuses it is a card with ways on."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.e2e.steps import ask, draft, last, shown

pytestmark = pytest.mark.browser


def test_a_message_has_its_price_before_it_is_sent_and_a_meter_while_it_is_answered(signed_in, upstream):
    price = signed_in.locator("[data-chat=price]")
    assert "out per million tokens" in price.inner_text()
    signed_in.locator("textarea[name=prompt]").fill("How much is this?")
    message = price.locator("[data-chat=price-message]")
    expect(message).to_have_text(re.compile(r"≈ \$0\.\d+, at most \$0\.\d+"))
    assert not price.get_by_text("More than is left.").is_visible()
    upstream.tokens, upstream.delay_between = ["word "] * 6, 0.3
    signed_in.locator("textarea[name=prompt]").press("Enter")
    last(signed_in, "facts").get_by_text(re.compile(r"≈ \$0\.\d+ of \$0\.\d+ held so far")).wait_for()
    shown(signed_in, "10 in / 6 out").wait_for()
    assert not message.is_visible()


def test_a_price_above_what_is_left_is_said_in_words(signed_in, workspace):
    workspace.leave(500_000)
    signed_in.reload()
    signed_in.locator("textarea[name=prompt]").fill("How much is this?")
    signed_in.get_by_text("More than is left.").wait_for()
    assert "% of the budget is spent." in signed_in.locator(".strip").inner_text()
    assert Axe().run(signed_in, context=".talk").response["violations"] == []


def test_a_refusal_is_a_card_with_what_it_needs_and_keeps_the_message(signed_in, upstream, workspace):
    workspace.leave(0)
    words = "tell me all of it " * 30
    ask(signed_in, words, max_tokens=900)
    card = signed_in.get_by_role("alert")
    card.get_by_text("is used up").wait_for()
    assert re.search(r"It needs\s+\$0\.\d+\s+Left in this workspace's budget\s+\$0\.00", card.inner_text())
    assert card.get_by_role("link", name="See the budget").is_visible()
    assert not card.get_by_role("button", name="Shorter answer").is_visible(), "not even a word fits"
    assert draft(signed_in).strip() == words.strip()
    signed_in.emulate_media(color_scheme="dark", reduced_motion="reduce")
    assert Axe().run(signed_in, context=".talk").response["violations"] == []
