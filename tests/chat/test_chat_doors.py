"""The doors of the chat: whatever a colleague, a neighbour or a stranger names of somebody else's is not there."""

import re
import threading
from dataclasses import replace
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from chat import async_api, listing, searching
from chat.models import Attachment, Conversation, Message, SavedPrompt
from tests.support.factories import ConversationFactory, said

pytestmark = pytest.mark.usefixtures("upstream")


SECRET = "osprey"


class Private:
    """What somebody has that is nobody else's: each of its words has SECRET in it."""

    def __init__(self, workspace, owner):
        now, words = timezone.now(), f"the {SECRET} of {owner.email}"
        with workspace.scope():
            self.talk = ConversationFactory(owner=owner, title=words, system=words)
            self.answer = said(self.talk, words, text=words, hold=uuid4(), tokens_input=1, tokens_output=1)
            self.gone = ConversationFactory(owner=owner, title=words, shared_at=now, deleted_at=now)
            said(self.gone, words, text=words)
            self.prompt = SavedPrompt.objects.create(owner=owner, title=words, text=words)
            facts = {"owner": owner, "name": words, "kind": "text", "bytes": 1, "text": words, "tokens": 1}
            sent = {"conversation": self.talk, "message_id": self.answer.parent_id}
            self.files = [
                Attachment.objects.create(**facts),
                Attachment.objects.create(**facts, **sent),
            ]

    def pages(self):
        """(method, address, form) of all that may be done with them."""
        message = {"message_id": self.answer.pk}
        for talk in (self.talk.pk, self.gone.pk):
            yield from (("GET", f"/{place}/{talk}/", {}) for place in ("c", "shared"))
            yield from (("GET", f"/c/{talk}/{what}/", {}) for what in ("settings", "export"))
            for what, form in {
                "settings": {"system": "x"}, "rename": {"title": "x"}, "pin": {"pinned": "yes"}, "delete": {},
                "restore": {}, "share": {}, "unshare": {}, "summary": {}, "again": message, "continue": message,
                "delete-turn": message,
            }.items():  # fmt: skip
                yield "POST", f"/c/{talk}/{what}/", form
            yield "POST", "/", {"prompt": "x", "conversation_id": talk}
        yield "POST", "/", {"prompt": "x", "files": [self.files[0].pk]}
        for file in self.files:
            yield "GET", f"/c/files/{file.pk}/", {}
            yield "POST", f"/c/files/{file.pk}/remove/", {}
        yield "GET", f"/prompts/{self.prompt.pk}/", {}
        yield "GET", f"/prompts/{self.prompt.pk}/text/", {}
        yield "POST", f"/prompts/{self.prompt.pk}/", {"title": "x", "text": "x"}
        yield "POST", f"/prompts/{self.prompt.pk}/delete/", {}

    def calls(self, own):
        """(path, body) for programs; `own` is a conversation of who asks, in which a message of these is named."""
        for talk in (self.talk.pk, self.gone.pk):
            named = {"conversation_id": talk, "message_id": self.answer.pk}
            yield from ((f"/api/chat/{what}", {"prompt": "x", "conversation_id": talk}) for what in ("", "price/"))
            yield from ((f"/api/chat/{what}/", named) for what in ("again", "continue"))
            yield "/api/chat/summary/", {"conversation_id": talk}
        beside = {"conversation_id": own, "message_id": self.answer.pk}
        yield from ((f"/api/chat/{what}/", beside) for what in ("again", "continue"))
        for what in ("", "price/"):
            yield f"/api/chat/{what}", {"prompt": "x", "conversation_id": own, "parent_id": self.answer.pk}
            yield from ((f"/api/chat/{what}", {"prompt": "x", "files": [file.pk]}) for file in self.files)
        yield f"/api/chat/calls/{self.answer.hold}/stop/", {}

    def queries(self):
        """What is added to a page of who asks."""
        yield from (f"?prompt_id={self.prompt.pk}", f"?deleted={self.gone.pk}", f"?q={SECRET}", "?q=osp&before=9-9")
        yield from (f"?at={self.answer.pk}", f"?edit={self.answer.parent_id}")


def rows(workspace):
    with workspace.scope():
        models = (Conversation, Message, SavedPrompt, Attachment)
        return [list(model.objects.order_by("pk").values()) for model in models]


def test_nothing_of_a_colleagues_is_there_for_an_admin_by_whatever_address_it_is_named(workspace, upstream):
    """With a neighbour's numbers, tests/isolation/crawler asks all of them."""
    person, private = workspace.member("admin@x.example", "admin"), Private(workspace, workspace.owner)
    with workspace.scope():
        own = ConversationFactory(owner=person)
        said(own, "mine")
    before, browser, api = rows(workspace), workspace.client(person), workspace.api(workspace.key(person))
    for method, address, form in private.pages():
        answer = browser.generic(method, address, urlencode(form, doseq=True), "application/x-www-form-urlencoded")
        assert answer.status_code == 404, (method, address, form)
        assert SECRET not in answer.content.decode(), address
    for path, body in private.calls(own.pk):
        answer = api.post(path, body)
        assert answer.status_code == 404, (path, body)
        assert SECRET not in answer.content.decode(), path
    answer = api.plane.get(f"/api/chat/calls/{private.answer.hold}/")
    assert answer.status_code == 404
    for query in private.queries():
        page = browser.get(f"/c/{own.pk}/{query}").content.decode()
        assert SECRET not in page.replace(f"“{SECRET}”", "").replace(f'value="{SECRET}"', ""), query
    assert rows(workspace) == before
    assert upstream.calls == []
    # Whose it is reads it there: else this would prove nothing.
    browser, plane = workspace.client(workspace.owner), workspace.api().plane
    reads = [address for method, address, _ in private.pages() if method == "GET"]
    found = [address for address in reads if SECRET in browser.get(address).content.decode()]
    assert {address for address in reads if address not in found} == {
        f"/shared/{private.talk.pk}/", *(f"/{place}/{private.gone.pk}/" for place in ("c", "shared")),
        *(f"/c/{private.gone.pk}/{what}/" for what in ("settings", "export")),
    }  # fmt: skip
    answer = plane.get(f"/api/chat/calls/{private.answer.hold}/", headers={"accept": "text/event-stream"})
    assert answer["Cache-Control"] == "private, no-store"
    assert SECRET in answer.content.decode()


@pytest.fixture
def carol(workspace):
    return workspace.member("carol@x.example")


def test_nobody_learns_that_anothers_conversation_is_answering_nor_waits_for_it(workspace, carol, upstream, settings):
    settings.BUDGET_WAIT_SECONDS = 600  # longer than this test has patience
    api, hers = workspace.api(), workspace.api(workspace.key(carol))
    pk = api.chat("one").json()["conversation_id"]
    workspace.settled(lines=1)
    upstream.last_word_after = threading.Event()
    stream = api.chat("two", conversation_id=pk, stream=True)
    next(iter(stream.streaming_content))
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
    "falcon-project": 1,  # its words, wherever they stand
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
    few = {"burst": 2, "every": 600.0}  # none comes back while this test looks, however slow it is
    monkeypatch.setattr(listing, "SEARCHES", replace(listing.SEARCHES, name=f"searches of {workspace.slug}", **few))
    monkeypatch.setattr(async_api, "PRICES", replace(async_api.PRICES, name=f"prices of {workspace.slug}", **few))
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


# --- what a browser keeps and where it is led -----------------------------------------------------------------------


def test_the_address_of_a_form_alone_leads_to_the_page_that_it_is_on(workspace):
    browser = workspace.client(workspace.owner)
    for form, page in {
        "/c/7/rename/": "/c/7/", "/c/7/again/": "/c/7/", "/prompts/7/delete/": "/prompts/",
        "/settings/workspace/titles/": "/settings/workspace/", "/c/files/": "/", "/c/files/7/remove/": "/",
    }.items():  # fmt: skip
        assert browser.get(form)["Location"] == page
        assert browser.put(form).status_code == 405
    assert browser.get("/logout/").status_code == 405
