"""Asked again, edited, gone on with, cut down: in a browser, while it streams and after a reload."""

import re

import pytest

from tests.e2e.steps import ask, draft, last, shown

pytestmark = pytest.mark.browser


def act(page, name, turn=-1):
    """A button under an answer. What stands there shows itself to a pointer or to the keyboard."""
    acts = page.locator(".turn--assistant .turn__acts").nth(turn)
    acts.evaluate("acts => acts.closest('.turn').scrollIntoView()")
    acts.locator("..").hover()
    acts.get_by_role("button", name=name).or_(acts.get_by_role("link", name=name)).click()


def texts(page):
    return [" ".join(text.split()) for text in page.locator(".turn__text").all_inner_texts()]


def test_an_answer_is_asked_for_again_and_each_version_stays(signed_in, upstream, workspace):
    ask(signed_in, "Who are you?")
    shown(signed_in, "10 in / 4 out").wait_for()
    upstream.tokens, upstream.delay_between = ["Some", "body", " else."], 0.2
    act(signed_in, "Try again")
    shown(signed_in, "10 in / 3 out").wait_for()
    assert texts(signed_in) == ["Who are you?", "Somebody else."]
    assert len(workspace.settled(lines=2)) == 2
    signed_in.reload()
    assert texts(signed_in) == ["Who are you?", "Somebody else."]
    signed_in.get_by_role("link", name="The version before").click()
    shown(signed_in, "Hello, world.").wait_for()
    # What is asked here follows the version that is shown.
    upstream.delay_between = 0
    ask(signed_in, "And then?")
    shown(signed_in, "And then?").wait_for()
    signed_in.locator(".composer__send").wait_for()
    assert [message["content"] for message in upstream.calls[-1]["messages"]] == [
        "Who are you?", "Hello, world.", "And then?",
    ]  # fmt: skip


def test_an_earlier_message_is_edited_and_a_refused_one_is_still_an_edit(signed_in, upstream):
    ask(signed_in, "Tell me of cats.")
    shown(signed_in, "10 in / 4 out").wait_for()
    signed_in.locator(".turn--user .turn__acts").last.evaluate("acts => acts.querySelector('a').click()")
    signed_in.wait_for_url(re.compile(r"edit="))
    assert draft(signed_in) == "Tell me of cats."
    assert texts(signed_in) == []
    upstream.status = 500
    ask(signed_in, "Tell me of dogs.")
    signed_in.get_by_role("alert").get_by_text("Nothing was charged.").wait_for()
    assert draft(signed_in) == "Tell me of dogs."
    signed_in.locator(".composer__send").wait_for()
    editing = signed_in.url
    signed_in.get_by_role("link", name="Leave it as it is").click()
    signed_in.wait_for_url(re.compile(r"at="))
    assert draft(signed_in) == "", "a changed message is no new one"
    signed_in.goto(editing)
    assert draft(signed_in) == "Tell me of dogs."
    upstream.status = None
    signed_in.locator("textarea[name=prompt]").press("Enter")
    shown(signed_in, "10 in / 4 out").wait_for()
    signed_in.reload()
    assert texts(signed_in) == ["Tell me of dogs.", "Hello, world."]
    assert "2 of 2" in signed_in.locator(".turn--user .turn__versions").inner_text()
    assert [message["content"] for message in upstream.calls[-1]["messages"]] == ["Tell me of dogs."]


def test_a_cut_answer_goes_on_and_a_turn_is_deleted(signed_in, upstream, workspace):
    upstream.tokens = ["word "] * 20
    ask(signed_in, "a story", max_tokens=5)
    shown(signed_in, "Ended at the longest length that was allowed.").wait_for()
    upstream.tokens = ["and ", "so ", "on."]
    signed_in.locator("input[name=max_tokens]").evaluate("cap => cap.value = ''")
    act(signed_in, "Continue")
    shown(signed_in, "10 in / 3 out").wait_for()
    assert texts(signed_in)[-1] == "and so on."
    signed_in.reload()
    assert len(texts(signed_in)) == 3
    signed_in.locator(".turn__acts").last.evaluate("acts => acts.querySelector('details').open = true")
    signed_in.locator(".turn__acts").last.get_by_role("button", name="Delete").click()
    signed_in.get_by_text("What it cost stays in the usage.").first.wait_for()
    assert len(texts(signed_in)) == 2
    assert len(workspace.settled(lines=2)) == 2


def test_an_answer_again_that_fails_leaves_the_first_one_there_and_the_card_asks_for_it_once_more(signed_in, upstream):
    ask(signed_in, "Who are you?")
    shown(signed_in, "10 in / 4 out").wait_for()
    upstream.status = 503
    act(signed_in, "Try again")
    signed_in.get_by_role("alert").get_by_text("Nothing was charged.").wait_for()
    shown(signed_in, "Hello, world.").wait_for()
    assert texts(signed_in) == ["Who are you?", "Hello, world."]
    assert draft(signed_in) == ""
    assert last(signed_in, "facts").inner_text()
    upstream.status, upstream.tokens = None, ["Once more."]
    # Not what is in the box, which is another message.
    signed_in.locator("textarea[name=prompt]").fill("Later")
    signed_in.get_by_role("alert").get_by_role("button", name="Send again").click()
    shown(signed_in, "Once more.").wait_for()
    assert (texts(signed_in), draft(signed_in)) == (["Who are you?", "Once more."], "Later")
