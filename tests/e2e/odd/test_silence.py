"""A network, or a server, that says nothing any more and does not say so either: no button waits for it for ever."""

import json
import re
import signal
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import expect

from chat.models import SavedPrompt
from tests.e2e.steps import ask, draft, last, shown
from tests.support.money import eventually

pytestmark = pytest.mark.browser
LOST = "The connection is lost. What came of this answer is shown once it is back."


@contextmanager
def without_answer(page, address):
    """What is asked there reaches nobody, and nothing comes back."""
    asked = []
    page.route(address, lambda route: asked.append(route))
    yield asked
    page.unroute(address)


def at_loopback(route):
    """The address, and the headers, by which a program asks what the page asked: it looks no name up."""
    asked = urlsplit(route.request.url)
    headers = {**route.request.all_headers(), "host": asked.netloc}
    return asked._replace(netloc=f"127.0.0.1:{asked.port}").geturl(), headers


@contextmanager
def silent(process):
    """It takes connections as ever, and does nothing about them."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.fixture
def in_time(signed_in):
    """The owner's browser, whose clock the test can put forward."""
    signed_in.clock.install()
    signed_in.reload()
    return signed_in


def under_way(page, upstream):
    upstream.tokens, upstream.last_word_after = ["a word "] * 20, threading.Event()
    ask(page, "hello")
    shown(page, "a word a word").wait_for()
    return upstream.last_word_after


def test_an_answer_whose_server_fell_silent_is_said_to_be_lost_and_is_found_again(in_time, upstream, odd, workspace):
    """It stood there with half of its words, and Stop did nothing, until the browser gave its connection up."""
    last_word = under_way(in_time, upstream)
    with silent(odd.plane.process):
        in_time.clock.run_for(31_000)
        expect(last(in_time, "end")).to_have_text(LOST)
    last_word.set()
    for _ in range(20):
        in_time.clock.run_for(1_000)
        in_time.wait_for_timeout(100)
    in_time.locator(".composer__send").wait_for()
    expect(last(in_time, "facts")).to_contain_text(" in / ")
    assert in_time.locator(".turn--user .turn__text").inner_text() == "hello"
    assert (len(upstream.calls), len(workspace.settled(lines=1))) == (1, 1)


def test_a_stop_that_reaches_nobody_ends_with_what_came(in_time, upstream):
    under_way(in_time, upstream)
    with without_answer(in_time, "**/stop/"):
        in_time.get_by_role("button", name="Stop").click()
        in_time.clock.run_for(10_500)
        shown(in_time, "Stopped before its end.").wait_for()
        for _ in range(20):
            in_time.clock.run_for(500)
            in_time.wait_for_timeout(100)
        in_time.locator(".composer__send").wait_for()


def test_after_an_answer_whose_page_cannot_be_read_the_next_message_can_be_sent(in_time, upstream):
    upstream.tokens, upstream.cut_after = ["one ", "two ", "three"], 2
    with without_answer(in_time, "**/c/*/") as asked:
        ask(in_time, "count")
        shown(in_time, "What was used is being settled.").wait_for()
        for _ in range(60):
            in_time.clock.run_for(500)
            in_time.wait_for_timeout(20)
        in_time.locator(".composer__send").wait_for()
        assert asked
    expect(last(in_time, "facts")).to_have_text("What was used will be settled soon. Reload the page to see it.")


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_message_that_nobody_answers_comes_back_into_the_box(in_time, upstream, workspace, goes_on):
    from tenants.models import Tenant

    Tenant.objects.filter(pk=workspace.tenant.pk).update(chat_settings={"goes_on": goes_on})
    in_time.reload()
    with without_answer(in_time, "**/api/chat/"):
        ask(in_time, "hello")
        in_time.locator(".turn[aria-busy]").wait_for()
        in_time.clock.run_for(10_500)
        shown(in_time, "The server has not answered yet. Stop puts the message back into the box.").wait_for()
        in_time.get_by_role("button", name="Stop").click()
        for _ in range(24):
            in_time.clock.run_for(500)
            in_time.wait_for_timeout(20)
        in_time.locator(".composer__send").wait_for()
    assert (draft(in_time), in_time.locator(".turn").count()) == ("hello", 0)
    in_time.locator("textarea[name=prompt]").press("Enter")
    shown(in_time, "Hello, world.").wait_for()


@pytest.fixture
def here_goes_on(signed_in, workspace):
    """The owner's browser in a workspace whose answers go on without a reader."""
    from tenants.models import Tenant

    Tenant.objects.filter(pk=workspace.tenant.pk).update(chat_settings={"goes_on": True})
    signed_in.reload()
    return signed_in


def test_a_message_whose_answer_was_lost_on_its_way_is_bought_once_where_answers_go_on(
    here_goes_on, upstream, workspace
):
    """It came back into the box, and who sent it once more paid twice."""
    signed_in = here_goes_on

    def lose(route):
        address, headers = at_loopback(route)
        route.fetch(url=address, headers=headers)
        route.abort("connectionreset")

    signed_in.route("**/api/chat/", lose)
    ask(signed_in, "hello")
    signed_in.get_by_role("alert").wait_for()
    signed_in.locator(".composer__send").wait_for()
    assert (draft(signed_in), len(upstream.calls)) == ("hello", 1)
    signed_in.unroute("**/api/chat/")
    signed_in.locator("textarea[name=prompt]").press("Enter")
    shown(signed_in, "10 in / 4 out").wait_for()
    assert signed_in.locator(".turn__text").all_inner_texts() == ["hello", "Hello, world."]
    assert (len(upstream.calls), len(workspace.settled(lines=1))) == (1, 1)
    # The same words once more are another message.
    signed_in.locator(".composer__send").wait_for()
    ask(signed_in, "hello")
    assert upstream.wait_until(lambda up: len(up.calls) == 2)
    signed_in.locator(".composer__send").wait_for()
    assert len(workspace.settled(lines=2)) == 2


def test_a_message_that_is_sent_once_more_while_its_answer_is_under_way_waits_for_that_one(
    here_goes_on, upstream, workspace
):
    """Its stream begins before it is known which conversation the answer stands in."""
    page = here_goes_on
    upstream.last_word_after = threading.Event()

    def lose(route):
        address, headers = at_loopback(route)
        with httpx.stream("POST", address, headers=headers, content=route.request.post_data_buffer) as begun:
            next(begun.iter_raw())
        route.abort("connectionreset")

    page.route("**/api/chat/", lose)
    ask(page, "hello")
    page.get_by_role("alert").wait_for()
    page.locator(".composer__send").wait_for()
    page.unroute("**/api/chat/")
    page.locator("textarea[name=prompt]").press("Enter")
    shown(page, "The server has not answered yet.").wait_for()
    page.wait_for_timeout(1_000)  # the server begins to say that it waits
    upstream.last_word_after.set()
    shown(page, "10 in / 4 out").wait_for()
    page.wait_for_url(re.compile(r"/c/\d+/$"))
    assert page.locator(".turn__text").all_inner_texts() == ["hello", "Hello, world."]
    assert (len(upstream.calls), len(workspace.settled(lines=1))) == (1, 1)


def test_a_file_that_does_not_arrive_says_so_and_can_be_left_out(signed_in, upstream):
    """Send did nothing that could be seen, for as long as its request took."""
    with without_answer(signed_in, "**/c/files/"):
        note = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello"}
        signed_in.locator("input[type=file]").set_input_files([note])
        ask(signed_in, "without it")
        expect(signed_in.get_by_text("A file is on its way; the message can be sent once it is here.")).to_be_visible()
        assert (draft(signed_in), len(upstream.calls)) == ("without it", 0)
        signed_in.get_by_role("button", name="Leave it out").click()
        expect(signed_in.get_by_role("button", name="Leave it out")).to_be_hidden()
    signed_in.locator("textarea[name=prompt]").press("Enter")
    shown(signed_in, "Hello, world.").wait_for()


def test_a_browser_that_believes_to_be_offline_sends_all_the_same(signed_in, upstream):
    """Without any network a workspace on the same machine is there, and so is its model: `make run` on a train."""
    signed_in.add_init_script("Object.defineProperty(Navigator.prototype, 'onLine', {get: () => false})")
    signed_in.reload()
    ask(signed_in, "hello")
    shown(signed_in, "Hello, world.").wait_for()
    expect(signed_in.get_by_role("alert")).to_be_hidden()


def test_who_asks_once_more_and_is_offline_keeps_the_answer_that_is_there(signed_in, upstream):
    """It was gone from the page until that was loaded anew."""
    ask(signed_in, "hello")
    shown(signed_in, "Hello, world.").wait_for()
    signed_in.locator(".composer__send").wait_for()
    signed_in.context.set_offline(True)
    signed_in.get_by_role("button", name="Try again").click()
    expect(signed_in.get_by_role("alert")).to_contain_text("You are offline.")
    signed_in.locator(".composer__send").wait_for()
    expect(signed_in.locator(".turn__text")).to_have_text(["hello", re.compile("Hello, world.")])
    # The message box is empty, and must be filled only for a message.
    signed_in.context.set_offline(False)
    signed_in.get_by_role("alert").get_by_role("button", name="Send again").click()
    assert upstream.wait_until(lambda up: len(up.calls) == 2)
    signed_in.locator(".composer__send").wait_for()


# The first answer from an address begins as ever and breaks off: once its request is given up, if it can be.
BREAKING_OFF = """
    const whole = window.fetch;
    window.brokenOff = 0;
    window.fetch = async (asked, given) => {
      const answer = await whole(asked, given);
      if (window.brokenOff || !new URL(asked, location).pathname.match(ADDRESS)) return answer;
      window.brokenOff += 1;
      const start = (line) => {
        line.enqueue(new TextEncoder().encode("{"));
        if (!given?.signal) line.error(new TypeError("network error"));
        else given.signal.addEventListener("abort", () => line.error(given.signal.reason));
      };
      return new Response(new ReadableStream({ start }), answer);
    };
"""


def breaking_off(page, address):
    page.add_init_script(BREAKING_OFF.replace("ADDRESS", json.dumps(address)))
    page.reload()


def test_who_types_on_while_a_price_is_being_told_is_told_the_next_one(signed_in):
    breaking_off(signed_in, "^/api/chat/price/$")
    box, price = signed_in.locator("textarea[name=prompt]"), signed_in.locator("[data-chat=price-message]")
    box.fill("hello")
    assert eventually(lambda: signed_in.evaluate("window.brokenOff"), seconds=20)
    expect(price).to_be_hidden()
    box.fill("hello there")
    expect(price).to_contain_text("at most $")


def test_a_kept_prompt_whose_text_breaks_off_is_put_in_by_the_page_that_its_link_leads_to(signed_in, workspace):
    with workspace.scope():
        SavedPrompt.objects.create(owner=workspace.owner, title="Sum up", text="Summarize this:")
    breaking_off(signed_in, "^/prompts/")
    signed_in.locator("[data-prompts] summary").click()
    signed_in.get_by_role("link", name="Sum up").click()
    signed_in.wait_for_url(re.compile("prompt_id="))
    assert draft(signed_in) == "Summarize this:"


def test_a_menu_whose_new_page_breaks_off_is_shown_by_that_page(signed_in, upstream):
    ask(signed_in, "hello")
    shown(signed_in, "10 in / 4 out").wait_for()
    breaking_off(signed_in, "^/c/[0-9]+/pin/$")
    upstream.tokens, upstream.last_word_after = ["a word "] * 20, threading.Event()
    ask(signed_in, "and?")
    shown(signed_in, "a word a word").wait_for()
    signed_in.locator("[data-chat=menu] > summary").click()
    signed_in.get_by_role("button", name="Pin to the top").click()
    expect(signed_in.get_by_role("button", name="Unpin", include_hidden=True)).to_have_count(1)
    upstream.last_word_after.set()
