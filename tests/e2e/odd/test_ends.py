"""How an answer can end, as the person who asked sees it: what is said of it and its money; no message is lost."""

import re
import threading

import pytest
from playwright.sync_api import expect

from tests.e2e.steps import ask, draft, last, shown

pytestmark = pytest.mark.browser


def test_an_answer_that_the_budget_shortens_says_so_and_so_does_the_page_after_a_reload(signed_in, upstream, workspace):
    upstream.tokens = ["word "] * 200
    workspace.leave(700_000)
    ask(signed_in, "a long story")
    shown(signed_in, "the budget had no more for this answer").wait_for()
    signed_in.reload()
    assert last(signed_in, "end").inner_text() == "Ended early: the budget had no more for this answer."
    assert signed_in.locator(".turn--user .turn__text").inner_text() == "a long story"


def test_an_answer_at_its_longest_says_so(signed_in, upstream):
    upstream.tokens = ["word "] * 20
    ask(signed_in, "a story", max_tokens=5)
    shown(signed_in, "Ended at the longest length that was allowed.").wait_for()
    signed_in.reload()
    assert last(signed_in, "end").inner_text() == "Ended at the longest length that was allowed."


def test_an_answer_without_words_has_words_that_say_why(signed_in, upstream):
    upstream.tokens, upstream.finish_reason = [], "content_filter"
    ask(signed_in, "say nothing")
    shown(signed_in, "filtered this answer out").wait_for()
    signed_in.locator(".turn__facts:not(:empty)").wait_for()
    signed_in.reload()
    assert "filtered this answer out" in last(signed_in, "text").inner_text()


def test_the_second_click_of_a_double_click_neither_stops_an_answer_nor_sends_what_is_still_being_written(
    signed_in, upstream
):
    buttons = signed_in.locator(".composer__buttons")
    signed_in.locator("textarea[name=prompt]").fill("once")
    buttons.get_by_role("button", name="Send").dblclick()
    shown(signed_in, "Hello, world.").wait_for()
    expect(last(signed_in, "end")).to_be_empty()
    # A double click on Stop, between whose clicks the answer has ended.
    signed_in.locator("textarea[name=prompt]").fill("half a sente")
    buttons.get_by_role("button", name="Send").dispatch_event("click", {"detail": 2})
    assert draft(signed_in) == "half a sente"
    assert len(upstream.calls) == 1


def test_who_is_signed_out_under_way_and_stops_keeps_the_conversation_on_the_page(signed_in, upstream):
    """The page that the server would lead to has no conversation, and was taken for an empty one."""
    ask(signed_in, "hello")
    shown(signed_in, "Hello, world.").wait_for()
    upstream.tokens, upstream.last_word_after = ["a word "] * 20, threading.Event()
    signed_in.get_by_role("button", name="Try again").click()
    shown(signed_in, "a word a word").wait_for()
    signed_in.context.clear_cookies()
    signed_in.get_by_role("button", name="Stop").click()
    signed_in.get_by_role("button", name="Send").wait_for()
    expect(signed_in.locator(".turn--user")).to_have_text(re.compile("hello"))
    expect(last(signed_in, "end")).to_have_text("Stopped before its end.")


def test_a_message_is_sent_also_where_the_browser_has_no_room_to_keep_it(signed_in, upstream):
    """Such as a log of megabytes that was put into the box, to be refused: the page never came to ask."""
    signed_in.evaluate("""() => {
        for (let size = 2 ** 22; size; size >>= 1)
            try { for (let n = 0; ; n += 1) sessionStorage.setItem(`${size}-${n}`, "x".repeat(size)); } catch {}
    }""")
    ask(signed_in, "hello")
    shown(signed_in, "Hello, world.").wait_for()
    signed_in.locator(".composer__send").wait_for()


def test_a_text_that_is_too_long_is_said_to_be_and_a_log_does_not_freeze_the_tab(signed_in, upstream):
    """It did for half a minute when it was put in, and for a minute when it was selected to be taken out again."""
    box, alert = signed_in.locator("textarea[name=prompt]"), signed_in.get_by_role("alert")
    signed_in.context.grant_permissions(["clipboard-read", "clipboard-write"])
    box.fill("See: ")
    signed_in.evaluate("text => navigator.clipboard.writeText(text)", "a line of a log\n" * 20_000)
    box.press("Control+v")
    expect(alert).to_contain_text("at most 20,000 characters, that text 320,000. Put in a part")
    assert draft(signed_in) == "See: "
    # What can be shortened in the box is put in, and not sent: "fields" were to be corrected, and none was named.
    box.fill("x" * 20_001)
    box.press("Enter")
    expect(alert).to_contain_text("at most 20,000 characters, this one 20,001. Send a part")
    assert (len(draft(signed_in)), signed_in.locator(".turn").count()) == (20_001, 0)
    # As the server counts.
    box.fill("😀" * 100 + "x" * 19_900)
    box.press("Enter")
    shown(signed_in, "Hello, world.").wait_for()
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(
    ("status", "said"), [(500, "Nothing was charged."), (401, "the operator must mend it"), (429, "is busy just now")]
)
def test_a_refused_message_is_in_the_box_again(signed_in, upstream, workspace, status, said):
    upstream.status = status
    ask(signed_in, "will you?")
    alert = signed_in.get_by_role("alert")
    alert.get_by_text(said).wait_for()
    signed_in.locator(".composer__send").wait_for()
    assert draft(signed_in) == "will you?"
    assert signed_in.locator(".turn").count() == 0
    workspace.settled()
    # What may succeed later has a button for it.
    assert alert.get_by_role("button", name="Send again").is_visible() is (status == 429)
    upstream.status = None
    signed_in.locator("textarea[name=prompt]").press("Enter")
    shown(signed_in, "Hello, world.").wait_for()
    expect(alert).to_be_hidden()


def test_an_answer_that_breaks_off_stays_with_what_its_line_says(signed_in, upstream, workspace):
    upstream.tokens, upstream.cut_after = ["one ", "two ", "three"], 2
    ask(signed_in, "count")
    alert = signed_in.get_by_role("alert")
    alert.get_by_text("Only what had come so far is charged, by an estimate.").wait_for()
    shown(signed_in, "not reported, estimated").wait_for()
    assert last(signed_in, "text").inner_text().strip() == "one two"
    assert signed_in.locator(".turn--user .turn__text").inner_text() == "count"
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "estimated"


def test_a_conversation_that_is_busy_in_another_tab_is_waited_for(signed_in, upstream, odd):
    ask(signed_in, "first")
    shown(signed_in, "10 in / 4 out").wait_for()
    other = signed_in.context.new_page()
    other.goto(signed_in.url)
    upstream.tokens, upstream.last_word_after = ["slow "] * 8, threading.Event()
    ask(other, "second")
    shown(other, "slow").wait_for()
    ask(signed_in, "third")
    shown(signed_in, "this conversation is still giving another answer").wait_for()
    upstream.last_word_after.set()
    expect(signed_in.locator(".turn[id]")).to_have_count(6)
    asked = signed_in.locator(".turn--user .turn__text").all_inner_texts()
    assert asked == ["first", "second", "third"]


def test_a_reload_under_an_answer_keeps_the_question_in_view(signed_in, upstream, workspace):
    upstream.tokens, upstream.last_word_after = ["slow "] * 20, threading.Event()
    ask(signed_in, "do not lose me")
    shown(signed_in, "slow slow").wait_for()
    signed_in.reload()
    assert signed_in.locator(".turn--user .turn__text").inner_text() == "do not lose me"
    shown(signed_in, "Stopped before its end.").wait_for()
    assert re.search(r"/c/\d+/$", signed_in.url)
    workspace.settled(lines=1)
    signed_in.reload()
    assert signed_in.locator(".turn--user .turn__text").inner_text() == "do not lose me"


def test_a_reload_before_the_answer_began_gives_the_message_back(signed_in, upstream):
    upstream.delay_first = 60
    ask(signed_in, "nobody answered me")
    signed_in.locator(".turn[aria-busy]").wait_for()
    signed_in.reload()
    expect(signed_in.locator("textarea[name=prompt]")).to_have_value("nobody answered me")
    assert signed_in.locator(".turn").count() == 0


def test_who_is_removed_while_an_answer_runs_reads_it_to_its_end_and_is_signed_out_then(signed_in, upstream, workspace):
    upstream.tokens, upstream.last_word_after = ["one ", "two ", "three"], threading.Event()
    other = workspace.member(f"other@{workspace.slug}.example", "owner")
    ask(signed_in, "count")
    signed_in.locator("[data-chat=held-for]").wait_for()
    answer = workspace.client(other).post(f"/settings/members/{workspace.owner.pk}/remove/")
    assert answer.status_code == 302
    upstream.last_word_after.set()
    shown(signed_in, "10 in / 3 out").wait_for()
    (line,) = workspace.settled(lines=1)
    assert line.cost > 0
    ask(signed_in, "once more")
    signed_in.get_by_role("alert").get_by_text("You are signed out").wait_for()
    assert (draft(signed_in), len(workspace.settled())) == ("once more", 1)


def test_enter_in_the_number_of_tokens_sends_that_number_also_beside_a_shorter_answer(signed_in, upstream, workspace):
    workspace.leave(0)
    ask(signed_in, "hm")
    signed_in.get_by_role("alert").get_by_text("is used up").wait_for()
    signed_in.locator(".composer__send").wait_for()
    workspace.leave(50_000_000)
    signed_in.locator("[data-chat=fits]").evaluate("button => {button.hidden = false; button.value = 180}")
    cap = signed_in.locator("input[name=max_tokens]")
    cap.fill("7")
    cap.press("Enter")
    shown(signed_in, "Hello, world.").wait_for()
    assert [upstream.calls[-1].get(name) for name in ("max_tokens", "max_completion_tokens")].count(7) == 1
