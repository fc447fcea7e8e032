"""What goes along of a long conversation: as much as the model takes, and a summary of the rest once it is bought."""

import pytest

from chat.models import Conversation, Message
from chat.trimming import Room, fitting, room_for
from tests.support.cast import events_of

pytestmark = pytest.mark.usefixtures("upstream")

PRICE = {"input": 1_000 * 10**6, "output": 4_000 * 10**6}


def counted(body):
    """As a real model counts: about four bytes a token, with markers around each message."""
    tokens = sum(round((24 + len(message["content"])) * 0.27) for message in body["messages"])
    return {"prompt_tokens": tokens, "completion_tokens": 4, "total_tokens": tokens + 4}


@pytest.fixture
def talk(workspace, upstream):
    """A conversation of ten messages of 400 bytes, about 115 tokens each."""
    upstream.usage = counted
    with workspace.scope():
        # A number that no conversation of a neighbour has, for one is asked for it there.
        talk = Conversation.objects.create(pk=700_000, owner=workspace.owner, title="long")
        before = None
        for number in range(10):
            role = "assistant" if number % 2 else "user"
            text = f"{number} ".ljust(400, "x")
            before = Message.objects.create(conversation=talk, parent_id=before, role=role, text=text).pk
        Conversation.objects.filter(pk=talk.pk).update(head_id=before)
    return talk.pk


def ask(workspace, upstream, conversation, **fields):
    """How many messages were left out, and the first letters of those that were sent."""
    (_, held), *_ = events_of(workspace.api().chat("And?", conversation_id=conversation, stream=True, **fields))
    workspace.settled()
    return held["left_out"], [message["content"][:1] for message in upstream.calls[-1]["messages"]]


def has_context(settings, tokens):
    settings.LLM_PRICES = {}
    settings.MODELS = {"test-model": {"context": tokens, "price": PRICE, "kinds": ["chat"], "dialect": {}}}
    settings.LLM_MODEL = "test-model"


def test_as_much_goes_along_as_fits_beside_the_answer(workspace, upstream, settings, talk):
    has_context(settings, 1_000)
    left_out, sent = ask(workspace, upstream, talk, max_tokens=100)
    # 900 tokens, less 100 of the answer, are room for six of 115: a history begins with a question.
    assert (left_out, sent) == (4, [*"456789", "A"])
    has_context(settings, 100_000)
    left_out, sent = ask(workspace, upstream, talk, max_tokens=100)
    assert (left_out, len(sent)) == (0, 13)
    assert sent[:2] == ["0", "1"]


def test_of_a_model_whose_context_nobody_has_said_a_setting_says_how_much(workspace, upstream, settings, talk):
    settings.CHAT_HISTORY_TOKENS = 300
    assert ask(workspace, upstream, talk) == (8, ["8", "9", "A"])


def test_an_answer_too_long_for_the_context_leaves_the_question_alone(workspace, upstream, settings, talk):
    has_context(settings, 400)
    assert ask(workspace, upstream, talk) == (10, ["A"])


def test_a_message_of_megabytes_is_not_read(workspace, upstream, settings, talk):
    has_context(settings, 100_000)
    with workspace.scope():
        Message.objects.filter(conversation_id=talk, text__startswith="4").update(text="y" * 2_000_000)
    left_out, sent = ask(workspace, upstream, talk)
    # What is older than what was left out does not go along either; 5 is an answer to it.
    assert (left_out, sent) == (5, [*"6789", "A"])


def test_a_summary_is_bought_and_goes_along_in_the_place_of_what_it_covers(workspace, globex, upstream, settings, talk):
    has_context(settings, 1_000)
    upstream.tokens = ["All", " of", " it."]
    api = workspace.api()
    # Not Bob, who may have a conversation of the same number from another test.
    nobody = globex.member("no-talks@globex.example")
    stranger = globex.api(globex.key(nobody)).post("/api/chat/summary/", {"conversation_id": talk})
    assert (stranger.status_code, upstream.calls) == (404, [])
    before = workspace.ledger()["spent"]
    # Beside an answer of 512 tokens there is room for three.
    answer = api.post("/api/chat/summary/", {"conversation_id": talk})
    body = answer.json()
    assert (answer.status_code, body["summary"]) == (200, "All of it.")
    assert body["cost"]["microcents"] == workspace.ledger()["spent"] - before > 0
    assert "User: 0 x" in upstream.calls[-1]["messages"][-1]["content"]
    (line,) = workspace.settled(lines=1)
    assert line.app == "chat"
    with workspace.scope():
        upto = Conversation.objects.get(pk=talk).summary_upto
        covered = list(Message.objects.filter(conversation_id=talk, pk__lte=upto))
    assert len(covered) == body["messages"]
    upstream.tokens = ["Yes."]
    has_context(settings, 100_000)
    left_out, sent = ask(workspace, upstream, talk)
    first = upstream.calls[-1]["messages"][0]
    assert (left_out, first["role"]) == (0, "user")
    assert "All of it." in first["content"]
    assert sent[-1] == "A"
    assert len(sent) < 12
    # What it says may have been deleted: then it is gone with it.
    page = workspace.client(workspace.owner)
    assert page.post(f"/c/{talk}/delete-turn/", {"message_id": covered[0].pk}).status_code == 302
    with workspace.scope():
        assert Conversation.objects.get(pk=talk).summary == ""


def test_where_all_of_it_goes_along_no_summary_is_bought(workspace, upstream, settings, talk):
    has_context(settings, 100_000)
    answer = workspace.api().post("/api/chat/summary/", {"conversation_id": talk})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid")
    assert upstream.calls == []


def test_the_page_says_what_no_longer_fits_and_its_form_buys_the_summary(workspace, upstream, settings, talk):
    has_context(settings, 1_000)
    client = workspace.client(workspace.owner)
    assert "messages were left out: they no longer fit." in client.get(f"/c/{talk}/").content.decode()
    answer = client.post(f"/c/{talk}/summary/", follow=True).content.decode()
    assert "messages are summarized, for $0.0" in answer
    assert "The first 7 messages were left out" not in answer


def test_a_room_counts_what_is_likely():
    room = Room(100, ratio=0.25)
    assert room.needed_for("x" * 76) == 25  # with the markers around it
    assert room.left_beside("x" * 76).tokens == 75
    assert fitting(["x" * 76] * 5, room, lambda text: text) == 4
    assert fitting(["x" * 76, None, ""], room, lambda text: text) == 1
    assert fitting(["x" * 1_000, "x"], room, lambda text: text, needed=1) == 1


def test_the_embedded_model_has_a_slots_share_of_its_servers_context(settings):
    from chat.local_model import NAME

    settings.LLM_MODEL, settings.MODELS, settings.LLM_PRICES = NAME, {}, {}
    assert room_for(NAME, max_tokens=512).tokens == 2_048 * 90 // 100 - 512


@pytest.mark.parametrize(
    ("reason", "tokens"), [("content_filter", ["A"]), ("stop", ["a" * 900_000]), ("stop", [" ", "\0"])]
)
def test_a_summary_that_is_none_is_not_kept_and_says_so(workspace, upstream, settings, talk, reason, tokens):
    has_context(settings, 1_000)
    upstream.finish_reason, upstream.tokens = reason, tokens
    response = workspace.api().post("/api/chat/summary/", {"conversation_id": talk})
    assert (response.status_code, response.json()["error"]) == (502, "model_failed")
    assert "not kept" in response.json()["message"]
    with workspace.scope():
        assert Conversation.objects.get(pk=talk).summary == ""
