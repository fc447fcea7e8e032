"""What a message would cost, before it is sent; and what refuses one says what helps."""

import json
import re
from threading import Thread
from types import SimpleNamespace

import pytest
from django.db import connection
from django.test import Client

from billing.templatetags.money import usd_short_filter
from chat.dialect import says_too_long
from tests.support.mails import mails_of
from tests.support.money import eventually

pytestmark = pytest.mark.usefixtures("upstream")


def priced(api, prompt="hello", **fields):
    return api.post("/api/chat/price/", {"prompt": prompt, **fields})


def test_a_price_is_what_would_be_held_and_nothing_is(workspace, upstream):
    api = workspace.api()
    said = priced(api, max_tokens=100).json()
    assert said.keys() == {"model", "likely", "most", "input_tokens", "history_tokens", "max_tokens"}
    assert (said["max_tokens"], said["history_tokens"], said["model"]) == (100, 0, "test-model")
    assert 0 < said["likely"] < said["most"]
    assert upstream.calls == []
    assert (workspace.holds(), workspace.ledger()["reserved"], workspace.lines()) == (0, 0, [])
    # The same request with no money is refused for exactly that.
    workspace.leave(0)
    assert api.chat("hello", max_tokens=100).json()["budget"]["needed"] == said["most"]


def test_what_was_said_before_is_part_of_the_price(workspace):
    api = workspace.api()
    first = api.chat("a long question " * 50).json()
    workspace.settled(lines=1)
    alone = priced(api, "and?").json()
    after = priced(api, "and?", conversation_id=first["conversation_id"]).json()
    assert after["history_tokens"] > after["input_tokens"] / 2
    assert after["most"] > alone["most"]
    # On another branch there is nothing before it.
    anew = priced(api, "and?", conversation_id=first["conversation_id"], parent_id=0).json()
    assert anew == alone


def test_a_conversation_that_is_answering_is_priced_all_the_same(workspace, upstream):
    api = workspace.api()
    first = api.chat("one").json()
    upstream.hang = True
    under_way = api.plane.begin("POST", "/api/chat/", {"prompt": "two", "conversation_id": first["conversation_id"]})
    assert eventually(lambda: len(upstream.calls) == 2)
    assert priced(api, "three", conversation_id=first["conversation_id"]).status_code == 200
    under_way.leave()


@pytest.mark.parametrize(
    ("asked", "status", "error"),
    [
        ({"prompt": " "}, 400, "invalid"),
        ({"prompt": " ", "files": []}, 400, "invalid"),
        ({"conversation_id": 999_999}, 404, "not_found"),
        ({"model": "nobody"}, 422, "model_not_priced"),
    ],
)
def test_what_could_not_be_sent_has_no_price(workspace, asked, status, error):
    response = priced(workspace.api(), **asked)
    assert (response.status_code, response.json()["error"]) == (status, error)


def test_nobody_is_told_a_price_of_anothers_conversation(workspace, globex):
    theirs = globex.api().chat("secret").json()["conversation_id"] + 1_000
    assert priced(workspace.api(), conversation_id=theirs).status_code == 404
    viewer = workspace.api(workspace.key(workspace.member("eve@x.example", "viewer")))
    assert priced(viewer).status_code == 403


# --- refusals -------------------------------------------------------------------------------------------------------


def card_of(response):
    page = response.content.decode()
    found = re.search(r'<div class="refused".*?</form>|<div class="refused".*?\n</div>', page, re.DOTALL)
    shown = re.sub(r"<(\w+)[^>]*\shidden>.*?</\1>", "", found[0], flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", shown).split())


def test_the_card_says_what_it_needs_what_is_left_and_sends_a_shorter_answer(workspace, settings):
    settings.TOP_UP_URL = "https://pay.example/"
    browser = workspace.client(workspace.owner)
    workspace.leave(600_000)
    response = browser.post("/", {"prompt": "hello " * 400, "max_tokens": 500})
    assert response.status_code == 402
    card = card_of(response)
    assert "It needs" in card
    assert "Left in this workspace" in card
    assert "Top up" in card
    assert "Ask the owner" not in card, "she is the owner"


def test_a_card_without_a_budget_offers_no_money(workspace, settings, upstream):
    """A model that fails is not mended by topping up; "not in" of what is not there is no condition to a template."""
    settings.TOP_UP_URL = "https://pay.example/"
    upstream.status = 503
    card = card_of(workspace.client(workspace.owner).post("/", {"prompt": "hello"}))
    assert "is busy just now" in card
    assert "Send again" in card
    assert "Top up" not in card


def test_a_member_asks_the_owners_by_a_mail_with_the_facts_and_not_without_end(workspace, globex):
    carol, dave = workspace.member("carol@x.example"), workspace.member("dave@x.example", "owner")
    browser = workspace.client(carol)
    workspace.leave(600_000)
    page = browser.post("/", {"prompt": "hello " * 400, "max_tokens": 500}).content.decode()
    link = re.search(r'href="(/budget/ask/\?needed=\d+)"', page)[1]
    form = browser.get(link).content.decode()
    assert f'href="mailto:{dave.email}"' in form
    sent = {"needed": link.partition("=")[2], "note": "For the <launch>."}
    assert browser.post("/budget/ask/", {**sent, "note": "x" * 501}).status_code == 400
    assert mails_of(workspace) == []
    assert browser.post("/budget/ask/", sent)["Location"] == "/"
    mails = mails_of(workspace)
    assert [mail.to for mail in mails] == sorted([workspace.owner.email, dave.email])
    needed = usd_short_filter(int(sent["needed"]))
    for words in (
        f"{carol.email} asks for more budget",
        f"needed up to {needed}",
        "$0.006000 of $",
        "For the <launch>.",
    ):
        assert words in mails[0].txt, mails[0].txt
    assert "For the &lt;launch&gt;." in mails[0].html
    assert browser.post("/budget/ask/", {"needed": "-1e9"}).status_code == 302
    refused = browser.post("/budget/ask/", {**sent, "note": "For the <launch>!"})
    assert (refused.status_code, "Retry-After" in refused.headers) == (429, True)
    assert "For the &lt;launch&gt;!</textarea>" in refused.content.decode()
    assert "needed up to" not in mails_of(workspace)[-1].txt
    assert (len(mails_of(workspace)), mails_of(globex)) == (4, [])
    assert workspace.client(dave).get("/budget/ask/")["Location"] == "/budget/"
    assert workspace.client(workspace.member("eve@x.example", "viewer")).get("/budget/ask/").status_code == 403


def test_what_is_asked_twice_is_one_mail_also_at_the_same_moment(workspace):
    """As a double click without script sends it, whose second answer alone is shown."""
    browser = workspace.client(workspace.member("carol@x.example"))
    sent, seen = {"needed": "40000", "note": "For the launch."}, []

    def click():
        client = Client(headers={"host": workspace.host})
        client.cookies = browser.cookies
        seen.append(client.post("/budget/ask/", sent)["Location"])
        connection.close()

    clicks = [Thread(target=click) for _ in range(2)]
    for one in clicks:
        one.start()
    for one in clicks:
        one.join()
    assert browser.post("/budget/ask/", sent)["Location"] == "/"
    assert (seen, len(mails_of(workspace))) == (["/", "/"], 1)


def test_the_shorter_answer_is_bought_with_what_the_button_says(workspace, upstream):
    browser = workspace.client(workspace.owner)
    sent = {"prompt": "hello", "max_tokens": 900, "fits": 7}
    assert browser.post("/", sent).status_code == 302
    assert upstream.calls[-1]["max_tokens"] == 7


@pytest.mark.parametrize(
    ("body", "is_too_long"),
    [
        ({"error": {"code": "context_length_exceeded", "message": "x"}}, True),
        ({"error": {"type": "exceed_context_size_error", "message": "x"}}, True),
        ({"error": {"message": "This model's maximum context length is 8192 tokens."}}, True),
        (
            {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 210 tokens"}},
            True,
        ),
        ({"error": {"message": "temperature must be below 2"}}, False),
        ({"error": {"message": "Unknown field: context"}}, False),
    ],
)
def test_a_refusal_for_its_length_is_known(body, is_too_long):
    assert says_too_long(json.dumps(body).encode()) is is_too_long


def test_a_text_that_is_too_long_says_what_its_writer_can_do(workspace, upstream):
    error = {"error": {"message": "context_length_exceeded sk-secret", "code": "context_length_exceeded"}}
    upstream.play(SimpleNamespace(status=400, headers={"Content-Type": "application/json"}, parts=[json.dumps(error)]))
    response = workspace.api().chat("hello")
    assert (response.status_code, response.json()["error"]) == (400, "prompt_too_long")
    assert "new conversation" in response.json()["message"]
    assert "sk-secret" not in response.content.decode()
    assert [line.cost for line in workspace.settled(lines=1)] == [0]
    browser = workspace.client(workspace.owner)
    assert "Begin a new conversation" in card_of(browser.post("/", {"prompt": "hello"}))
