"""The tree of a conversation: asked again, asked otherwise, gone on with, and cut down; each paid once."""

import importlib
import re
from dataclasses import dataclass

import pytest
from django.db import connection

from chat import tasks
from chat.branches import Tree, in_line
from chat.models import Conversation, Message
from tests.support.cast import events_of
from tests.support.factories import ConversationFactory, said

pytestmark = pytest.mark.usefixtures("upstream")


def shape_of(workspace, conversation):
    """Each message's role, and the place of the one that it follows."""
    with workspace.scope():
        rows = list(Message.objects.filter(conversation_id=conversation).order_by("pk"))
    places = {row.pk: place for place, row in enumerate(rows)}
    return [(row.role, places.get(row.parent_id)) for row in rows]


def head_of(workspace, conversation):
    with workspace.scope():
        return Conversation.objects.get(pk=conversation).head_id


def prompts(upstream):
    return [[message["content"] for message in request["messages"]] for request in upstream.calls]


def test_a_question_asked_again_has_two_answers_and_each_is_paid(workspace, upstream):
    api = workspace.api()
    first = api.chat("hello").json()
    second = api.post(
        "/api/chat/again/", {k: first[k] for k in ("conversation_id",)} | {"message_id": first["answer_id"]}
    )
    assert second.status_code == 200, second.content
    second = second.json()
    assert second["question_id"] is None
    assert shape_of(workspace, first["conversation_id"]) == [("user", None), ("assistant", 0), ("assistant", 0)]
    assert head_of(workspace, first["conversation_id"]) == second["answer_id"]
    assert prompts(upstream) == [["hello"], ["hello"]]
    assert len(workspace.settled(lines=2)) == 2
    # By the question's own number it is the same.
    third = api.post(
        "/api/chat/again/", {"conversation_id": first["conversation_id"], "message_id": first["question_id"]}
    )
    assert shape_of(workspace, first["conversation_id"])[-1] == ("assistant", 0)
    assert third.json()["answer_id"] > second["answer_id"]


def test_a_question_that_follows_an_earlier_message_is_a_branch_and_both_are_kept(workspace, upstream):
    api = workspace.api()
    first = api.chat("one").json()
    conversation = first["conversation_id"]
    api.chat("two", conversation_id=conversation)
    api.chat("other", conversation_id=conversation, parent_id=first["answer_id"])
    api.chat("begun anew", conversation_id=conversation, parent_id=0)
    assert prompts(upstream)[2:] == [["one", "Hello, world.", "other"], ["begun anew"]]
    assert shape_of(workspace, conversation) == [
        ("user", None), ("assistant", 0), ("user", 1), ("assistant", 2), ("user", 1), ("assistant", 4),
        ("user", None), ("assistant", 6),
    ]  # fmt: skip
    # What is asked next follows what is shown.
    api.chat("next", conversation_id=conversation)
    assert prompts(upstream)[-1] == ["begun anew", "Hello, world.", "next"]


def test_an_answer_that_was_cut_goes_on_in_an_answer_of_its_own(workspace, upstream):
    api = workspace.api()
    first = api.chat("hello").json()
    asked = {"conversation_id": first["conversation_id"], "message_id": first["answer_id"], "stream": True}
    name, facts = events_of(api.post("/api/chat/continue/", asked))[-1]
    assert name == "done"
    assert prompts(upstream)[-1][:2] == ["hello", "Hello, world."]
    assert "Continue" in prompts(upstream)[-1][2]
    assert shape_of(workspace, first["conversation_id"]) == [("user", None), ("assistant", 0), ("assistant", 1)]
    assert head_of(workspace, first["conversation_id"]) == facts["answer_id"]


def test_a_long_answer_goes_along_whole_where_the_rest_of_it_is_asked_for(workspace, upstream):
    with workspace.scope():
        conversation = ConversationFactory(owner=workspace.owner)
        answer = said(conversation, "question", text="long " * 2_000, finish_reason="length")
    asked = {"conversation_id": conversation.pk, "message_id": answer.pk}
    assert workspace.api().post("/api/chat/continue/", asked).status_code == 200
    # A history begins with the user, for strict models: the question comes along with its answer, or neither.
    assert any("long long" in words for words in prompts(upstream)[-1])


def test_the_rest_of_an_answer_is_asked_for_again_in_its_place(workspace, upstream):
    api = workspace.api()
    first = api.chat("hello").json()
    asked = {"conversation_id": first["conversation_id"], "message_id": first["answer_id"]}
    rest = api.post("/api/chat/continue/", asked).json()
    again = api.post("/api/chat/again/", {**asked, "message_id": rest["answer_id"]})
    assert again.status_code == 200, again.content
    assert prompts(upstream)[2] == prompts(upstream)[1]
    assert shape_of(workspace, first["conversation_id"]) == [
        ("user", None), ("assistant", 0), ("assistant", 1), ("assistant", 1),
    ]  # fmt: skip


def test_however_often_a_long_answer_goes_on_its_question_goes_along(workspace, upstream):
    with workspace.scope():
        conversation = ConversationFactory(owner=workspace.owner)
        last = said(conversation, "question", text="long " * 1_000, finish_reason="length")
        for _ in range(2):
            last = conversation.messages.create(role="assistant", text="long " * 1_000, parent_id=last.pk)
    asked = {"conversation_id": conversation.pk, "message_id": last.pk}
    assert workspace.api().post("/api/chat/continue/", asked).status_code == 200
    question, answers, go_on = prompts(upstream)[-1]
    assert (question, answers.count("long")) == ("question", 3_000)
    assert "Continue" in go_on


@pytest.mark.parametrize("path", ["again", "continue"])
def test_another_s_message_is_not_found_and_buys_nothing(workspace, globex, path, upstream):
    theirs = globex.api().chat("secret").json()
    mine = workspace.api().chat("hello").json()
    upstream.reset()
    for conversation, message in [
        (theirs["conversation_id"] + 50, theirs["answer_id"]),
        (mine["conversation_id"], mine["answer_id"] + 50),
    ]:
        asked = {"conversation_id": conversation, "message_id": message}
        response = workspace.api().post(f"/api/chat/{path}/", asked)
        assert (response.status_code, response.json()["error"]) == (404, "not_found")
    with workspace.scope():
        other = ConversationFactory(owner=workspace.member("bob@x.example"))
        answer = said(other, "his own")
    for conversation in (other.pk, mine["conversation_id"]):
        asked = {"conversation_id": conversation, "message_id": answer.pk}
        assert workspace.api().post(f"/api/chat/{path}/", asked).status_code == 404
    assert workspace.api().chat("x", conversation_id=mine["conversation_id"], parent_id=answer.pk).status_code == 404
    assert upstream.calls == []


def test_a_question_has_no_rest(workspace):
    mine = workspace.api().chat("hello").json()
    asked = {"conversation_id": mine["conversation_id"], "message_id": mine["question_id"]}
    response = workspace.api().post("/api/chat/continue/", asked)
    assert (response.status_code, response.json()["error"]) == (400, "invalid")


def test_a_parent_in_no_conversation_is_not_found(workspace, upstream):
    assert workspace.api().chat("x", parent_id=5).status_code == 404
    assert workspace.api().chat("x", parent_id=0).status_code == 200


def test_a_repeat_of_an_answer_once_more_is_bought_once(workspace, upstream):
    mine = workspace.api().chat("hello").json()
    asked = {"conversation_id": mine["conversation_id"], "message_id": mine["answer_id"]}
    key = {"headers": {"Idempotency-Key": "once-more"}}
    first = workspace.api().post("/api/chat/again/", asked, **key)
    second = workspace.api().post("/api/chat/again/", asked, **key)
    assert second["Idempotent-Replayed"] == "true"
    assert first.json()["response"] == second.json()["response"]
    assert len(upstream.calls) == 2


def test_messages_that_moved_no_head_are_shown_and_go_along(workspace, upstream):
    """A release before wrote them, or a builder's own code."""
    with workspace.scope():
        conversation = ConversationFactory(owner=workspace.owner)
        conversation.messages.create(role="user", text="of before")
    browser = workspace.client(workspace.owner)
    assert turns_of(browser.get(f"/c/{conversation.pk}/").content.decode()) == ["of before"]
    workspace.api().chat("and now", conversation_id=conversation.pk)
    assert "of before" in prompts(upstream)[-1][0]
    assert turns_of(browser.get(f"/c/{conversation.pk}/").content.decode())[0] == "of before"


def test_what_the_release_before_writes_beside_this_one_follows_what_stood_there(workspace, upstream):
    """It serves on while an upgrade has migrated, and knows of no parents."""
    mine = workspace.api().chat("one").json()
    place = f"/c/{mine['conversation_id']}/"
    with workspace.scope():
        begun = ConversationFactory(owner=workspace.owner)
        for pk in (mine["conversation_id"], begun.pk):
            for n in range(2):
                Message.objects.create(conversation_id=pk, role="user", text=f"old {n}")
                Message.objects.create(conversation_id=pk, role="assistant", text=f"then {n}", outcome="exact", cost=1)
    browser = workspace.client(workspace.owner)
    of_before = ["old 0", "then 0", "old 1", "then 1"]
    page = browser.get(place).content.decode()
    assert turns_of(page) == ["one", "Hello, world.", *of_before]
    assert " of 2" not in page
    workspace.api().chat("two", conversation_id=mine["conversation_id"])
    assert prompts(upstream)[-1] == ["one", "Hello, world.", *of_before, "two"]
    assert turns_of(browser.get(place).content.decode())[-2:] == ["two", "Hello, world."]
    # One that nobody opens.
    with workspace.scope():
        tasks.tidy_chats()
    workspace.api().chat("two", conversation_id=begun.pk)
    assert prompts(upstream)[-1] == [*of_before, "two"]
    # What this release writes is left as it is, also a question that begins anew.
    again = workspace.api().chat("anew", conversation_id=mine["conversation_id"], parent_id=0).json()
    assert turns_of(browser.get(place).content.decode()) == ["anew", "Hello, world."]
    with workspace.scope():
        assert in_line(Message.objects.filter(conversation_id=mine["conversation_id"])) == {}
        assert Message.objects.get(pk=again["question_id"]).parent_id is None


def test_the_migration_makes_one_branch_of_what_was_one_line(workspace):
    migration = importlib.import_module("chat.migrations.0003_tree")
    with workspace.scope():
        talks = ConversationFactory.create_batch(2, owner=workspace.owner)
        empty = ConversationFactory(owner=workspace.owner)
        rows = [talk.messages.create(role="user", text=str(n)) for n in range(3) for talk in talks]
        with connection.cursor() as cursor:
            cursor.execute(migration.PARENTS)
            cursor.execute(migration.HEADS)
        for number, talk in enumerate(talks):
            first, second, third = rows[number::2]
            talk.refresh_from_db()
            assert (talk.head_id, talk.active_at) == (third.pk, third.created_at)
            parents = talk.messages.order_by("pk").values_list("parent_id", flat=True)
            assert list(parents) == [None, first.pk, second.pk]
        empty.refresh_from_db()
        assert empty.head_id is None


# --- pages without script -------------------------------------------------------------------------------------------


def turns_of(page):
    words = re.findall(r'<div class="turn__text[^>]*>(.*?)</div>', page, re.DOTALL)
    return [re.sub(r"<[^>]+>", "", text).strip() for text in words if text.strip()]


def test_the_page_asks_again_and_shows_either_answer(workspace, upstream):
    mine = workspace.api().chat("hello").json()
    browser = workspace.client(workspace.owner)
    place = f"/c/{mine['conversation_id']}/"
    upstream.tokens = ["Another."]
    assert browser.post(place + "again/", {"message_id": mine["answer_id"]})["Location"] == place
    page = browser.get(place).content.decode()
    assert turns_of(page) == ["hello", "Another."]
    assert "2 of 2" in page
    before = browser.get(place, {"at": mine["answer_id"]}).content.decode()
    assert turns_of(before) == ["hello", "Hello, world."]
    assert f'name="parent_id" value="{mine["answer_id"]}"' in before


def test_an_edited_question_is_in_the_box_and_follows_what_it_followed(workspace, upstream):
    api = workspace.api()
    first = api.chat("one").json()
    second = api.chat("two", conversation_id=first["conversation_id"]).json()
    browser = workspace.client(workspace.owner)
    place = f"/c/{first['conversation_id']}/"
    page = browser.get(place, {"edit": second["question_id"]}).content.decode()
    assert turns_of(page) == ["one", "Hello, world."]
    assert ">two</textarea>" in page
    sent = {"prompt": "two, but better", "conversation_id": first["conversation_id"], "parent_id": first["answer_id"]}
    assert f'name="parent_id" value="{first["answer_id"]}"' in page
    assert browser.post("/", sent)["Location"] == place
    assert turns_of(browser.get(place).content.decode())[2] == "two, but better"
    assert prompts(upstream)[-1] == ["one", "Hello, world.", "two, but better"]


def test_a_deleted_turn_is_gone_with_its_answers_and_what_follows_stays(workspace, upstream):
    api = workspace.api()
    first = api.chat("one").json()
    conversation = first["conversation_id"]
    second = api.chat("two", conversation_id=conversation).json()
    api.chat("three", conversation_id=conversation)
    api.post("/api/chat/again/", {"conversation_id": conversation, "message_id": second["answer_id"]})
    browser = workspace.client(workspace.owner)
    place = f"/c/{conversation}/"
    assert browser.post(place + "delete-turn/", {"message_id": second["question_id"]})["Location"] == place
    assert shape_of(workspace, conversation) == [("user", None), ("assistant", 0), ("user", 1), ("assistant", 2)]
    assert turns_of(browser.get(place).content.decode()) == ["one", "Hello, world.", "three", "Hello, world."]
    api.chat("four", conversation_id=conversation)
    assert prompts(upstream)[-1] == ["one", "Hello, world.", "three", "Hello, world.", "four"]
    assert len(workspace.settled(lines=5)) == 5, "what was paid stays in the books"
    again = browser.post(place + "delete-turn/", {"message_id": second["question_id"]})
    assert (again.status_code, len(turns_of(again.content.decode()))) == (404, 6), "its conversation, and no dead end"
    assert "not in the conversation any more" in again.content.decode()


def test_a_turn_of_another_s_is_not_deleted(workspace, globex):
    mine = workspace.api().chat("hello").json()
    bob = workspace.client(workspace.member("bob@x.example"))
    turn = f"/c/{mine['conversation_id']}/delete-turn/", {"message_id": mine["answer_id"]}
    assert bob.post(*turn).status_code == 404
    globex.client(globex.owner).post(*turn)  # in that workspace the same numbers are its own
    viewer = workspace.client(workspace.member("eve@x.example", "viewer"))
    assert viewer.post(f"/c/{mine['conversation_id']}/again/", {"message_id": mine["answer_id"]}).status_code == 403
    assert len(shape_of(workspace, mine["conversation_id"])) == 2


# --- the tree -------------------------------------------------------------------------------------------------------


@dataclass
class Node:
    pk: int
    parent_id: int | None


def test_a_tree_finds_its_branches_and_survives_rows_that_make_no_tree():
    tree = Tree([Node(1, None), Node(2, 1), Node(3, 1), Node(4, 2), Node(6, 99), Node(8, 9), Node(9, 8), Node(7, 7)])
    assert [shown.message.pk for shown in tree.branch(4)] == [1, 2, 4]
    assert [(shown.place, shown.count) for shown in tree.branch(3)] == [(1, 2), (2, 2)]
    assert tree.branch(3)[1].before_id == 2
    assert tree.newest_under(1) == 4
    assert tree.newest_under(None) == 6
    assert tree.newest_under(8) == 9
    assert [shown.message.pk for shown in tree.branch(9)] == [8, 9]
    assert [shown.message.pk for shown in tree.branch(7)] == [7]
    assert tree.branch(None) == tree.branch(5) == []
    assert Tree([]).newest_under(None) is None
