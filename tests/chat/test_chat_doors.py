"""The doors of the chat: whatever a colleague, a neighbour or a stranger names of somebody else's is not there."""

import re
import time
from dataclasses import replace

import pytest
from django.db import connection

from chat import async_api, listing, searching
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


# --- the search -----------------------------------------------------------------------------------------------------


def test_the_time_of_a_search_tells_nothing_of_what_others_write(workspace, carol):
    """For a phrase, the index finds what has its words; whose that is comes first, and then what is read of it."""
    with workspace.scope():
        hers = ConversationFactory(owner=carol)
        for _ in range(3):
            said(hers, "falcon is not what the project is called")
        mine = ConversationFactory(owner=workspace.owner, title="mine")
        said(mine, "one falcon project, and a falcon")
        for query, hits in PHRASES.items():
            found = searching.search(workspace.owner.pk, query, most=9)
            assert [one.pk for one in found] == [mine.pk] * hits, query
        with connection.cursor() as cursor:
            cursor.execute("SET enable_seqscan = off")
            params = {"query": '"project falcon"', "is_beginning": False, "member": workspace.owner.pk, "most": 9}
            cursor.execute("EXPLAIN (ANALYZE, TIMING OFF) " + searching.SEARCH, params)
            plan = "\n".join(line for (line,) in cursor.fetchall())
            cursor.execute("RESET ALL")
    assert "Bitmap Index Scan on message_words" in plan
    assert "Rows Removed by Index Recheck" not in plan
    read = [float(rows) for rows in re.findall(r"chat_message_pkey on chat_message.*loops=(\d+)", plan)]
    assert max(read) == 1, plan  # her three are not read


# What is found of "one falcon project, and a falcon" and of its answer, "An answer."
PHRASES = {
    '"falcon project"': 1,
    '"project falcon"': 0,
    "falcon-project": 0,
    '"project falcon" or "falcon project"': 1,
    'one -"project falcon"': 1,
    'one -"falcon project"': 0,
    '-"falcon project"': 1,  # by its answer, and by its title
    '"falcon project" -answer': 1,
    '("falcon" or "eagle") "one falcon"': 1,
}


def test_who_searches_or_asks_for_prices_without_end_is_told_to_wait_and_nobody_else(
    workspace, carol, globex, monkeypatch
):
    monkeypatch.setattr(listing, "SEARCHES", replace(listing.SEARCHES, name=f"searches of {workspace.slug}", burst=2))
    monkeypatch.setattr(async_api, "PRICES", replace(async_api.PRICES, name=f"prices of {workspace.slug}", burst=2))
    browser, key = workspace.client(workspace.owner), workspace.key()
    pages = [browser.get("/", {"q": "harbour"}) for _ in range(3)]
    assert [page.status_code for page in pages] == [200] * 3
    assert ["a great many times" in page.content.decode() for page in pages] == [False, False, True]
    assert "a great many times" not in browser.get("/").content.decode()
    assert "a great many times" not in workspace.client(carol).get("/", {"q": "harbour"}).content.decode()
    # Of a member, and not of each of their keys.
    prices = [api.post("/api/chat/price/", {"prompt": "x"}) for api in (workspace.api(key), workspace.api()) * 2]
    assert [price.status_code for price in prices] == [200, 200, 429, 429]
    assert prices[-1].json()["error"] == "rate_limited"
    assert int(prices[-1]["Retry-After"]) >= 1
    for other in (workspace.api(workspace.key(carol)), globex.api()):
        assert other.post("/api/chat/price/", {"prompt": "x"}).status_code == 200
