"""The doors of the chat: whatever a colleague, a neighbour or a stranger names of somebody else's is not there."""

import time

import pytest

from tests.support.factories import ConversationFactory, said

pytestmark = pytest.mark.usefixtures("upstream")


@pytest.fixture
def carol(workspace):
    return workspace.member("carol@x.example")


def test_nobody_learns_that_anothers_conversation_is_answering_nor_waits_for_it(workspace, carol, upstream):
    api, hers = workspace.api(), workspace.api(workspace.key(carol))
    pk = api.chat("one").json()["conversation_id"]
    workspace.settled(lines=1)
    upstream.tokens, upstream.delay_between = ["word "] * 200, 0.05
    stream = api.chat("two", conversation_id=pk, stream=True)
    next(iter(stream.streaming_content))
    began = time.monotonic()
    for path, body in {
        "/api/chat/": {"prompt": "x"},
        "/api/chat/again/": {"message_id": 1},
        "/api/chat/continue/": {"message_id": 1},
        "/api/chat/summary/": {},
        "/api/chat/price/": {"prompt": "x"},
    }.items():
        answers = [hers.post(path, {**body, "conversation_id": number}) for number in (pk, pk + 1000)]
        assert [answer.status_code for answer in answers] == [404, 404], path
        assert answers[0].content == answers[1].content
    assert time.monotonic() - began < 2
    stream.close()


def test_a_number_that_no_row_can_have_is_refused_and_nothing_typed_is_lost(workspace, upstream):
    browser = workspace.client(workspace.owner)
    with workspace.scope():
        talk = ConversationFactory(owner=workspace.owner)
        said(talk, "q?")
    for field in ("parent_id", "conversation_id"):
        for number in (2**63, 10**40):
            answer = browser.post("/", {"conversation_id": talk.pk, "prompt": "kept words", field: number})
            assert answer.status_code == 400
            assert ">kept words</textarea>" in answer.content.decode()
    assert upstream.calls == []
