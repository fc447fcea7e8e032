"""The chat page as the server writes it, which is all that a reader without script has."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from django.utils import timezone

from billing.outcomes import Outcome
from chat import plainly
from chat.models import Message
from chat.templatetags.answers import ENDS, page_words
from tenants.limits import key_of
from tenants.models import Limit
from tenants.users.access import ACTS
from tests.support.factories import ConversationFactory, said
from tests.support.upstream import FakeUpstream

pytestmark = pytest.mark.usefixtures("upstream")


def kept(workspace, **answer):
    """A conversation of the owner's with one question and this answer."""
    with workspace.scope():
        conversation = ConversationFactory(owner=workspace.owner, title="q")
        fields = {"text": "", "cost": 10_000, "outcome": "exact", "finish_reason": "stop"} | answer
        said(conversation, "What is a ledger?", **fields)
        return conversation.pk


def page_of(workspace, pk):
    return workspace.client(workspace.owner).get(f"/c/{pk}/").content.decode()


def turn_of(page):
    """The text under the last question, markup left out."""
    article = re.findall(r'<article class="turn turn--assistant" id.*?</article>', page, re.DOTALL)[-1]
    return " ".join(re.sub(r"<[^>]+>", " ", article).split())


@pytest.mark.parametrize(
    ("finish_reason", "said"),
    [
        ("stop", "without a word"),
        ("length", "all its tokens on thinking"),
        ("budget", "budget ended before a word"),
        ("cancelled", "stopped before a word"),
        ("content_filter", "filtered this answer out"),
        ("tool_calls", "asked for a tool"),
    ],
)
def test_an_answer_without_words_says_why_after_a_reload(workspace, finish_reason, said):
    assert said in turn_of(page_of(workspace, kept(workspace, finish_reason=finish_reason)))


def test_an_answer_that_never_came_says_so_and_that_its_input_is_estimated(workspace):
    turn = turn_of(page_of(workspace, kept(workspace, outcome="unknown")))
    assert "No answer came." in turn
    assert "no answer came, input estimated" in turn


@pytest.mark.parametrize("finish_reason", ENDS)
def test_an_answer_that_ended_early_says_why_under_its_words(workspace, finish_reason):
    turn = turn_of(page_of(workspace, kept(workspace, text="Half an ans", finish_reason=finish_reason)))
    assert f"Half an ans {ENDS[finish_reason]}" in turn


def test_an_answer_that_the_model_ended_says_nothing_of_its_end(workspace):
    assert "Whole. $0.0001" in turn_of(page_of(workspace, kept(workspace, text="Whole.")))


def test_what_the_model_says_is_never_markup(workspace):
    assert "<b>bold</b>" not in page_of(workspace, kept(workspace, text="<b>bold</b>"))


def test_of_hundreds_of_odd_answers_a_page_renders_the_newest_and_shows_the_others_as_they_came(workspace, monkeypatch):
    monkeypatch.setattr(plainly, "PAGE_WORK", 100)
    with workspace.scope():
        talk = ConversationFactory(owner=workspace.owner, shared_at=timezone.now())
        last = None
        for text in ["*oldest*", "* a\n" * 25, "*newest*"]:
            last = said(talk, "hello", parent_id=last, text=text).pk
    for address in (f"/c/{talk.pk}/", f"/shared/{talk.pk}/"):
        page = workspace.client(workspace.owner).get(address).content.decode()
        assert "<em>newest</em>" in page
        assert '<p class="words__plain" dir="auto">*oldest*</p>' in page


def test_the_script_finds_every_sentence_on_the_page(workspace):
    page = workspace.client(workspace.owner).get("/").content.decode()
    for name in page_words():
        assert f'data-word="{name}"' in page
    assert {f"outcome.{outcome}" for outcome in Outcome.values} <= page_words().keys()


@pytest.mark.on_standin
def test_without_script_an_answer_is_paid_and_shown(workspace):
    response = workspace.client(workspace.owner).post("/", {"prompt": "hello", "max_tokens": ""}, follow=True)
    assert "Hello, world. $0.00026 · 10 in / 4 out" in turn_of(response.content.decode())
    assert workspace.ledger()["spent"] == 26_000


def test_without_script_what_is_bought_is_not_counted_as_an_act_and_a_viewer_buys_nothing(workspace):
    owner, viewer = workspace.owner, workspace.member("viewer@x.example", "viewer")
    assert workspace.client(owner).post("/", {"prompt": "hello"}).status_code == 302
    assert workspace.client(viewer).post("/", {"prompt": "hello"}).status_code == 403
    acts = [key_of(ACTS.name, (workspace.tenant.pk, who.pk)) for who in (owner, viewer)]
    assert not Limit.objects.filter(key__in=acts).exists()


def test_without_script_a_shortened_answer_says_so(workspace, upstream):
    upstream.tokens = ["word "] * 200
    workspace.leave(700_000)
    response = workspace.client(workspace.owner).post("/", {"prompt": "hello"}, follow=True)
    assert ENDS["budget"] in turn_of(response.content.decode())


@pytest.mark.parametrize(
    ("status", "answered", "again"), [(500, 502, False), (401, 502, False), (429, 503, True), (503, 503, True)]
)
def test_without_script_a_refused_message_stays_in_the_box(workspace, upstream, status, answered, again):
    upstream.status = status
    response = workspace.client(workspace.owner).post("/", {"prompt": "will you?"})
    page = response.content.decode()
    assert response.status_code == answered
    assert ">will you?</textarea>" in page
    assert "Nothing was charged." in page
    assert bool(re.search(r'data-chat="again">', page)) is again
    assert workspace.ledger()["spent"] == 0


def test_without_script_a_used_up_budget_says_so_and_keeps_the_message(workspace, upstream):
    workspace.leave(0)
    response = workspace.client(workspace.owner).post("/", {"prompt": "will you?"})
    page = response.content.decode()
    assert response.status_code == 402
    assert "used up" in page
    assert ">will you?</textarea>" in page
    assert upstream.calls == []


def test_the_page_of_an_answer_that_is_still_being_settled_looks_again(workspace, upstream):
    upstream.delay_first = 60.0
    exchange = workspace.api().plane.begin("POST", "/api/chat/", {"prompt": "slow"})
    assert upstream.wait_until(lambda it: len(it.calls) == 1)
    browser = workspace.client(workspace.owner)
    response = browser.get("/c/123456/")
    assert response.status_code == 200
    assert '<meta http-equiv="refresh"' in response.content.decode()
    exchange.leave()
    workspace_is_settled(upstream, workspace)
    assert browser.get("/c/123456/").status_code == 404


def workspace_is_settled(upstream: FakeUpstream, workspace):
    assert upstream.wait_until(lambda _: workspace.holds() == 0)


def test_a_neighbours_conversation_is_not_settling_but_absent(workspace, globex, upstream):
    upstream.delay_first = 60.0
    exchange = globex.api().plane.begin("POST", "/api/chat/", {"prompt": "slow"})
    assert upstream.wait_until(lambda it: len(it.calls) == 1)
    assert workspace.client(workspace.owner).get("/c/123456/").status_code == 404
    exchange.leave()
    workspace_is_settled(upstream, globex)


def test_only_an_answer_has_words_about_its_end(workspace):
    with workspace.scope():
        question = Message(role="user", text="hello", finish_reason="length")
    from chat.templatetags.answers import wordless

    assert wordless(question) == ""
    assert wordless(None) == ""


def test_without_script_what_is_sent_twice_from_one_page_is_bought_once(workspace, upstream):
    """Nothing on the page moves while the answer is written, so people press Send again: both were paid."""
    browser = workspace.client(workspace.owner)
    upstream.last_word_after = threading.Event()

    def token():
        return re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', browser.get("/").content.decode())[1]

    def send(words, page):
        try:
            return browser.post("/", {"prompt": words, "csrfmiddlewaretoken": page})
        finally:
            connection.close()

    page = token()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, "once", page)
        assert upstream.wait_until(lambda up: len(up.calls) == 1)
        second = pool.submit(send, "once", page)
        time.sleep(0.5)
        upstream.last_word_after.set()
        ways = {one.result()["Location"] for one in (first, second)}
    assert len(ways) == len(upstream.calls) == len(workspace.settled(lines=1)) == 1
    # From the next page it is asked anew, and so is something else from the same one.
    assert send("once", token()).status_code == send("another", page).status_code == 302
    assert (len(upstream.calls), len(workspace.settled(lines=3))) == (3, 3)


def test_without_script_what_failed_for_nothing_is_tried_anew_from_the_same_page(workspace, upstream):
    browser = workspace.client(workspace.owner)
    form = {"prompt": "once", "csrfmiddlewaretoken": "a" * 64}
    upstream.status = 500
    assert browser.post("/", form).status_code == 502
    upstream.status = None
    upstream.tokens, upstream.cut_after = ["one ", "two ", "three"], 2
    broken = [browser.post("/", form) for _ in range(2)]
    assert [answer.status_code for answer in broken] == [502, 502]
    assert b"Only what had come so far is charged" in broken[1].content
    assert (len(upstream.calls), [line.cost > 0 for line in workspace.settled(lines=2)]) == (2, [False, True])
