"""Leaving the page, coming back, other tabs, and lines that fail: what becomes of an answer and of what is typed."""

import re
import threading

import pytest
from playwright.sync_api import expect

from chat.models import Conversation, Message
from tenants.models import Tenant
from tests.e2e.steps import ask, draft, last, shown

pytestmark = pytest.mark.browser


@pytest.fixture
def goes_on(workspace):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(chat_settings={"goes_on": True})


@pytest.fixture
def here(goes_on, signed_in):
    """The owner's browser in a workspace whose answers go on without a reader."""
    signed_in.reload()
    return signed_in


def texts(page):
    return [" ".join(text.split()) for text in page.locator(".turn__text").all_inner_texts()]


def test_a_reload_before_the_first_word_follows_the_answer_to_its_end(here, upstream, workspace):
    upstream.tokens, upstream.delay_first, upstream.delay_between = ["one ", "two ", "three"], 2.0, 0.1
    ask(here, "count")
    here.locator(".turn[aria-busy]").wait_for()
    upstream.wait_until(lambda up: len(up.calls) == 1)
    here.reload()
    shown(here, "10 in / 3 out").wait_for()
    assert texts(here) == ["count", "one two three"]
    assert re.search(r"/c/\d+/$", here.url)
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "exact"
    assert draft(here) == ""


def test_a_reload_in_the_middle_shows_the_words_so_far_and_those_that_follow(here, upstream, workspace):
    upstream.tokens, upstream.delay_between = [f"w{number} " for number in range(30)], 0.15
    upstream.last_word_after = threading.Event()
    ask(here, "go")
    shown(here, "w3").wait_for()
    here.reload()
    shown(here, "w3").wait_for()
    assert "w29" not in texts(here)[-1], "it is followed, and not only shown at its end"
    # Another tab opens its page: it follows, too, and Stop there ends it everywhere.
    other = here.context.new_page()
    other.goto(here.url)
    other.locator("[data-chat=under-way] a").click()
    shown(other, "w3").wait_for()
    other.get_by_role("button", name="Stop").click()
    shown(other, "Stopped before its end.").wait_for()
    shown(here, "Stopped before its end.").wait_for()
    (line,) = workspace.settled(lines=1)
    assert line.tokens_output < 30
    assert f"${line.cost / 100_000_000:.6f}".rstrip("0") in last(here, "facts").inner_text()


def test_who_leaves_for_another_page_finds_the_answer_on_return(here, upstream, odd, workspace):
    ask(here, "first")
    shown(here, "10 in / 4 out").wait_for()
    conversation = here.url
    upstream.tokens, upstream.last_word_after = ["one ", "two ", "three "] * 4, threading.Event()
    ask(here, "second")
    shown(here, "one").wait_for()
    here.goto(odd.address(workspace.slug) + "/budget/")
    here.goto(conversation)
    shown(here, "one two").wait_for()
    upstream.last_word_after.set()
    shown(here, "10 in / 12 out").wait_for()
    assert texts(here) == ["first", "Hello, world.", "second", "one two three " * 3 + "one two three"]
    # What the answer cost is the same once the page is the server's.
    facts = last(here, "facts").inner_text()
    here.reload()
    assert last(here, "facts").inner_text() == facts


def test_stop_shows_the_settled_cost_without_a_reload(signed_in, upstream, workspace):
    upstream.tokens, upstream.last_word_after = ["word "] * 20, threading.Event()
    ask(signed_in, "a story")
    shown(signed_in, "word word").wait_for()
    signed_in.get_by_role("button", name="Stop").click()
    shown(signed_in, "Stopped before its end.").wait_for()
    (line,) = workspace.settled(lines=1)
    assert f"{line.tokens_input} in / {line.tokens_output} out" in last(signed_in, "facts").inner_text()
    expect(signed_in.locator("[data-chat=reserved]")).to_have_text("$0.00")
    assert line.cost == workspace.ledger()["spent"]


def test_another_tab_of_a_conversation_waits_and_shows_the_turn(signed_in, upstream):
    ask(signed_in, "first")
    shown(signed_in, "10 in / 4 out").wait_for()
    other = signed_in.context.new_page()
    other.goto(signed_in.url)
    other.locator("textarea[name=prompt]").fill("not sent yet")
    upstream.tokens, upstream.last_word_after = ["slow "] * 6, threading.Event()
    ask(signed_in, "second")
    other.get_by_text("Another tab is asking…").wait_for()
    upstream.last_word_after.set()
    expect(other.locator(".turn[id]")).to_have_count(4)
    assert texts(other)[2:] == ["second", "slow slow slow slow slow slow"]
    expect(other.get_by_text("Another tab is asking…")).to_be_hidden()
    assert draft(other) == "not sent yet"


def test_what_is_typed_outlives_a_reload_and_a_failed_line(signed_in, upstream, workspace):
    box = signed_in.locator("textarea[name=prompt]")
    box.fill("half a thou")
    signed_in.reload()
    assert draft(signed_in) == "half a thou"
    signed_in.context.set_offline(True)
    box.press("Enter")
    alert = signed_in.get_by_role("alert")
    alert.get_by_text("You are offline.").wait_for()
    assert draft(signed_in) == "half a thou"
    assert upstream.calls == []
    signed_in.context.set_offline(False)
    alert.get_by_role("button", name="Send again").click()
    shown(signed_in, "10 in / 4 out").wait_for()
    assert draft(signed_in) == ""
    signed_in.goto(signed_in.url.partition("/c/")[0] + "/")
    assert draft(signed_in) == ""


def test_what_no_longer_fits_is_said_and_its_summary_offered(signed_in, upstream, workspace, odd):
    with workspace.scope():
        talk = Conversation.objects.create(owner=workspace.owner, title="A long talk")
        before = None
        for number in range(6):
            role = "assistant" if number % 2 else "user"
            text = f"What was said at {number}. " * 60
            before = Message.objects.create(conversation=talk, parent_id=before, role=role, text=text).pk
        Conversation.objects.filter(pk=talk.pk).update(head_id=before)
    signed_in.goto(f"{odd.address(workspace.slug)}/c/{talk.pk}/")
    note = signed_in.locator("[data-chat=left-out]")
    note.get_by_text(re.compile(r"The first \d messages were left out: they no longer fit.")).wait_for()
    box = signed_in.locator("textarea[name=prompt]")
    box.fill("not sent yet")
    note.get_by_role("button", name="Summarize what was said before").click()
    # Whatever the earlier tests have taught of this model: its prompts always count as ten tokens.
    signed_in.get_by_text(re.compile(r"summarized, for \$0\.|still goes along")).wait_for()
    assert draft(signed_in) == "not sent yet"
