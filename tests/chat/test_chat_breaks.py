"""The money of a conversation's calls at the edge: the price before, the shorter answer, the title, the stop."""

import json
import threading
from dataclasses import replace

import pytest

from billing.plans import PLANS
from chat import editing
from chat.models import Conversation, Message
from tenants.models import Tenant
from tests.support.cast import events_of
from tests.support.money import assert_books_agree, eventually

pytestmark = pytest.mark.usefixtures("upstream")

PER = 10**6


def knows(settings, **models):
    settings.LLM_PRICES, settings.MODELS = {}, models


def model_of(upstream, *, price=1_000, context=None, **dialect):
    sides = {"input": price * PER, "output": 4 * price * PER}
    return {
        "price": sides,
        "context": context,
        "kinds": ["chat"],
        "dialect": {"base_url": upstream.base_url, **dialect},
    }


def test_a_groups_price_covers_whichever_of_its_models_answers(workspace, upstream, settings):
    knows(
        settings,
        cheap=model_of(upstream, base_url="http://127.0.0.1:9/v1"),
        dear=model_of(upstream, price=5_000),
        both={"fallback": ["cheap", "dear"]},
    )
    api = workspace.api()
    said = api.post("/api/chat/price/", {"prompt": "hello", "model": "both", "max_tokens": 50}).json()
    (_, held), *_ = events_of(api.chat("hello", model="both", max_tokens=50, stream=True))
    workspace.settled()
    assert said["model"] == "cheap"
    assert held["reserved"] <= said["most"]


def test_the_shorter_answer_that_a_refusal_offers_fits_though_it_leaves_room_for_more_history(
    workspace, upstream, settings, monkeypatch
):
    monkeypatch.setitem(PLANS, "trial", replace(PLANS["trial"], fits=False))
    settings.LLM_MODEL = "test-model"
    knows(settings, **{"test-model": model_of(upstream, context=1_500)})
    with workspace.scope():
        talk = Conversation.objects.create(owner=workspace.owner, title="long")
        before = None
        for number in range(10):
            role = "assistant" if number % 2 else "user"
            text = f"{number} ".ljust(400, "x")
            before = Message.objects.create(conversation=talk, parent_id=before, role=role, text=text).pk
        Conversation.objects.filter(pk=talk.pk).update(head_id=before)
    api = workspace.api()
    needed = api.post("/api/chat/price/", {"prompt": "And?", "conversation_id": talk.pk, "max_tokens": 1_000}).json()
    workspace.leave(needed["most"] - 500_000)
    refused = api.chat("And?", conversation_id=talk.pk, max_tokens=1_000)
    fits = refused.json()["budget"]["affordable_max_tokens"]
    assert refused.status_code == 402
    assert 300 < fits < 1_000 - 500_000 // 4_000
    assert api.chat("And?", conversation_id=talk.pk, max_tokens=fits).status_code == 200


def test_who_stops_an_answer_that_is_billed_to_its_end_pays_what_it_used_and_not_all_that_was_held(
    workspace, upstream, settings
):
    settings.LLM_DIALECT = {settings.LLM_MODEL: {"bills_after_cut": True}}
    upstream.tokens, upstream.bills_after_cut = ["word "] * 20, True
    upstream.last_word_after = threading.Event()
    api = workspace.api()
    response = api.chat("hello", stream=True)
    parts = iter(response.streaming_content)
    call = json.loads(next(parts).decode().partition("data: ")[2])["call"]
    next(parts)
    assert api.post(f"/api/chat/calls/{call}/stop/", {}).status_code == 202
    upstream.last_word_after.set()
    facts = json.loads(b"".join(parts).decode().rpartition("event: done\ndata: ")[2])
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.tokens_output) == ("exact", 20)
    assert facts["cost"]["microcents"] == line.cost


@pytest.fixture
def titled(workspace):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(chat_settings={"titles_by_model": True})


@pytest.mark.usefixtures("titled")
def test_a_title_is_none_of_the_requests_that_its_key_may_send(workspace):
    api = workspace.api()
    with workspace.scope():
        workspace.owner.api_keys.update(rates={"requests": 2, "concurrent": 1})
    assert api.chat("one").status_code == 200
    workspace.settled(lines=2)
    assert api.chat("two").status_code == 200
    workspace.settled(lines=4)
    assert_books_agree(workspace)


@pytest.mark.usefixtures("titled")
def test_no_title_is_bought_for_an_answer_that_was_stopped(workspace, upstream):
    upstream.tokens, upstream.last_word_after = ["word "] * 100, threading.Event()
    response = workspace.api().chat("hello", stream=True)
    parts = iter(response.streaming_content)
    next(parts), next(parts)
    response.close()
    workspace.settled(lines=1)
    assert not eventually(lambda: len(upstream.calls) > 1, seconds=0.3)


def test_what_a_call_follows_may_go_before_it_is_held_and_the_rest_of_the_conversation_stays_on_its_branch(
    workspace, upstream, monkeypatch
):
    api = workspace.api()
    first = api.chat("one").json()
    talk = first["conversation_id"]
    second = api.chat("two", conversation_id=talk).json()
    upstream.hang = True
    under_way = api.plane.begin("POST", "/api/chat/", {"prompt": "three", "conversation_id": talk, "stream": True})
    assert upstream.wait_until(lambda up: len(up.calls) == 3)
    # As if the hold were not there yet.
    monkeypatch.setattr(editing, "busy_key", lambda *_: "none")
    with workspace.scope():
        editing.delete_turn(workspace.tenant.schema_name, workspace.owner.pk, talk, second["question_id"])
    under_way.leave()
    workspace.settled(lines=3)
    with workspace.scope():
        question = Message.objects.get(text="three")
        answer = Message.objects.get(parent_id=question.pk)
        assert question.parent_id == first["answer_id"]
        assert Conversation.objects.get(pk=talk).head_id == answer.pk


def test_a_first_message_too_long_for_a_summary_is_cut_to_its_room_whatever_its_letters(workspace, upstream, settings):
    settings.LLM_MODEL = "test-model"
    knows(settings, **{"test-model": model_of(upstream, context=1_500)})
    with workspace.scope():
        talk = Conversation.objects.create(owner=workspace.owner, title="long")
        first = Message.objects.create(conversation=talk, role="user", text="文" * 5_000)
        last = Message.objects.create(conversation=talk, parent_id=first.pk, role="assistant", text="x" * 3_000)
        Conversation.objects.filter(pk=talk.pk).update(head_id=last.pk)
    answer = workspace.api().post("/api/chat/summary/", {"conversation_id": talk.pk})
    assert (answer.status_code, answer.json()["messages"]) == (200, 1)
    sent = upstream.calls[-1]["messages"][-1]["content"]
    assert "文" in sent
    assert len(sent.encode()) * 0.27 < 1_500 - 256
