"""Conversations as a whole: the list and the search, and what an owner does with one, beside a neighbour."""

import json
import re
import threading
import time
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from chat import searching, tasks
from chat.listing import MOST_PINNED, SHOWN
from chat.models import Conversation, Message
from chat.titles import title_in
from tenants.audit.models import AuditEvent
from tenants.users.models import ApiKey
from tests.support.cast import events_of
from tests.support.factories import ConversationFactory, MessageFactory, said
from tests.support.jobs import until

pytestmark = pytest.mark.usefixtures("upstream")


def made(workspace, owner=None, **fields):
    with workspace.scope():
        return ConversationFactory(owner=owner or workspace.owner, **fields)


def row(workspace, pk):
    with workspace.scope():
        return Conversation.objects.get(pk=pk)


def listed(page):
    """The titles in each group that is shown."""
    page = page.content.decode()
    groups = re.findall(r'<section class="rail__group" data-group="(\w+)">(.*?)</section>', page, re.DOTALL)
    return {key: re.findall(r'dir="auto">(.*?)</a>', inside) for key, inside in groups}


def found(page):
    rail = page.content.decode().partition('<nav class="rail"')[2].partition("</nav>")[0]
    return [" ".join(re.sub(r"<[^>]+>", " ", item).split()) for item in re.findall(r"<li>(.*?)</li>", rail, re.DOTALL)]


# --- the list -------------------------------------------------------------------------------------------------------


def test_the_list_is_by_the_workspaces_day_with_the_newest_activity_first_and_pinned_ones_above(workspace):
    # 14 hours ahead, or 11 behind: its day is not the day of UTC. Whichever of them is not just about to end.
    zones = [timezone.zoneinfo.ZoneInfo(name) for name in ("Pacific/Kiritimati", "Pacific/Pago_Pago")]
    here = min((timezone.now().astimezone(zone) for zone in zones), key=lambda now: (now.hour, now.minute) > (23, 45))
    workspace.tenant.time_zone = here.tzinfo.key
    workspace.tenant.save()
    browser = workspace.client(workspace.owner)
    midnight = here.replace(hour=0, minute=0, second=0, microsecond=0)
    made(workspace, title="early today", active_at=midnight)
    made(workspace, title="late yesterday", active_at=midnight - timedelta(seconds=1))
    made(workspace, title="before", active_at=midnight - timedelta(days=1, seconds=1))
    made(workspace, title="now", active_at=midnight + timedelta(seconds=1))
    made(workspace, title="old and pinned", active_at=midnight - timedelta(days=90), pinned_at=midnight)
    made(workspace, title="gone", deleted_at=midnight)
    made(workspace, title="another's", owner=workspace.member("carol@x.example"))
    assert listed(browser.get("/")) == {
        "pinned": ["old and pinned"],
        "today": ["now", "early today"],
        "yesterday": ["late yesterday"],
        "earlier": ["before"],
    }


def test_every_conversation_is_reached_by_pages_and_the_open_one_is_on_each(workspace):
    same = timezone.now() - timedelta(days=9)
    with workspace.scope():
        owner = workspace.owner
        # Of one moment, as they are after a migration.
        ConversationFactory.create_batch(2 * SHOWN + 5, owner=owner, active_at=same)
        oldest = ConversationFactory(owner=owner, title="the oldest", active_at=same - timedelta(days=1))
    browser = workspace.client(owner)
    seen, address = [], f"/c/{oldest.pk}/"
    for _ in range(3):
        page = browser.get(address)
        groups = listed(page)
        assert f'href="/c/{oldest.pk}/" aria-current="page"' in page.content.decode()
        seen += groups.get("earlier", [])
        older = re.search(r'href="(\?before=[\d-]+)">Older', page.content.decode())
        address = older and f"/c/{oldest.pk}/{older[1]}"
    assert address is None
    assert len(seen) == len(set(seen)) == 2 * SHOWN + 6
    for nonsense in ("9", "9-", "a-b", "-1-4", "9" * 18 + "-1", "9" * 30 + "-1"):
        assert browser.get(f"/?before={nonsense}").status_code == 200


def test_the_list_goes_by_its_index(workspace):
    with workspace.scope(), connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        cursor.execute("SET enable_sort = off")
        found = Conversation.objects.filter(
            owner=1, deleted_at=None, pinned_at=None, active_at__lte=timezone.now()
        ).order_by("-active_at", "-pk")[:51]
        plan = found.explain()
        cursor.execute("SET enable_bitmapscan = on")
        cursor.execute("EXPLAIN " + searching.SEARCH, {"query": "word", "is_beginning": True, "member": 1, "most": 51})
        search = "\n".join(line for (line,) in cursor.fetchall())
        cursor.execute("RESET ALL")
    assert "conversation_active" in plan
    assert "Index Cond: ((owner_id = 1) AND (active_at <=" in plan
    assert "message_words" in search


# --- the search -----------------------------------------------------------------------------------------------------


@pytest.fixture
def talks(workspace):
    """Two of the owner's own, and of a colleague's one that is shared and one that is not."""
    carol = workspace.member("carol@x.example")
    now = timezone.now()
    with workspace.scope():
        boats = ConversationFactory(owner=workspace.owner, title="Boats", active_at=now)
        said(boats, "Which harbour is the deepest?", text="The <b>harbour</b> of Rotterdam, they say.")
        said(ConversationFactory(owner=workspace.owner, title="Trains to Lisbon", active_at=now), "When?")
        shared = ConversationFactory(owner=carol, title="Hers", active_at=now - timedelta(hours=1), shared_at=now)
        said(shared, "A harbour seal?", text="It is a mammal.")
        secret = ConversationFactory(owner=carol, title="Her secret harbour", active_at=now)
        said(secret, "harbour")
        said(ConversationFactory(owner=workspace.owner, title="harbour", deleted_at=now), "harbour")
    return boats, shared, secret


def test_a_search_finds_words_titles_and_beginnings_in_ones_own_and_in_what_is_shared(workspace, talks, globex, bob):
    browser = workspace.client(workspace.owner)
    with globex.scope():
        said(ConversationFactory(owner=bob, title="harbour of globex", shared_at=timezone.now()), "harbour")

    def titles(query):
        return [line.split(" ")[0] for line in found(browser.get("/", {"q": query}))]

    hits = found(browser.get("/", {"q": "harbour"}))
    assert hits == [
        "Boats The harbour of Rotterdam, they say.",
        "Hers Shared by carol@x.example A harbour seal?",
    ]
    assert titles("harb") == ["Boats", "Hers"]
    assert titles("harb deepest") == []  # only the last word may be the beginning of one
    assert titles("lisb") == ["Trains"]
    assert titles('"deepest harbour"') == []
    assert titles("harbour -seal") == ["Boats"]
    assert titles("mammal or rotterdam") == ["Boats", "Hers"]
    for odd in ("or", "-", '"', "a & !", "'", "x:*", "\\", "(", "\x00", "seal'", "a or", "é" * 500):
        assert browser.get("/", {"q": odd}).status_code == 200


def test_words_are_found_in_addresses_and_compounds_and_a_line_is_shown_as_it_was_written(workspace, talks):
    with workspace.scope():
        said(talks[0], "Where?", text="In docs.py, at https://harbour.example/deep-water, with a_b or a@b.c, 3.14.")
    browser = workspace.client(workspace.owner)
    for query in ("docs.py", "docs", "https://harbour.example/deep-water", '"deep-water with"'):
        (line,) = found(browser.get("/", {"q": query}))
        assert "deep-water, with" in line, query
    for query in ("wat", "a_b", "3.14"):
        assert found(browser.get("/", {"q": query})) == ["Boats water, with a_b or a@b.c, 3.14."], query
    assert found(browser.get("/", {"q": "docs -deep-water"})) == []


def test_no_words_hold_up_who_writes_them_down_or_looks_for_them(workspace):
    talk, texts = (
        made(workspace, title="Odd"),
        ["a_", "~/", "1a-1-", "./", "a-b.", "<!-- a", "&amp;", "a@b.c/", "://a:"],
    )
    begun = time.monotonic()
    with workspace.scope():
        for text in texts:
            said(talk, "harbour", text=f"harbour {text * 25_000}")
    assert len(found(workspace.client(workspace.owner).get("/", {"q": "harbour"}))) == 1
    assert time.monotonic() - begun < 20  # a minute, while Postgres looked for addresses in them


def test_a_search_that_takes_too_long_is_ended_and_says_so(workspace, talks, monkeypatch):
    monkeypatch.setattr(searching, "SEARCH", "SELECT pg_sleep(5), %(query)s")
    monkeypatch.setattr(searching, "SECONDS", 0.05)
    page = workspace.client(workspace.owner).get("/", {"q": "harbour"})
    assert page.status_code == 200
    assert "This search took too long" in page.content.decode()


# --- what an owner does ---------------------------------------------------------------------------------------------


def test_a_conversation_is_renamed_and_a_title_that_cannot_be_taken_is_kept_in_its_field(workspace):
    talk, browser = made(workspace, title="first words"), workspace.client(workspace.owner)
    refused = browser.post(f"/c/{talk.pk}/rename/", {"title": "x" * 81})
    assert refused.status_code == 400
    page = refused.content.decode()
    assert "x" * 81 in page
    assert re.search(r'<input[^>]*name="title"[^>]*autofocus', page)
    assert browser.post(f"/c/{talk.pk}/rename/", {"title": " \u200b"}).status_code == 400
    answer = browser.post(f"/c/{talk.pk}/rename/", {"title": "  My   talk "}, follow=True)
    assert "My talk" in answer.content.decode()
    assert (row(workspace, talk.pk).title, row(workspace, talk.pk).titled_by) == ("My talk", "person")


def test_only_so_many_are_pinned(workspace):
    browser = workspace.client(workspace.owner)
    with workspace.scope():
        now = timezone.now()
        ConversationFactory.create_batch(MOST_PINNED - 1, owner=workspace.owner, pinned_at=now)
    last, more = made(workspace), made(workspace)
    assert "Pinned." in browser.post(f"/c/{last.pk}/pin/", {"pinned": "yes"}, follow=True).content.decode()
    assert "Unpin another" in browser.post(f"/c/{more.pk}/pin/", {"pinned": "yes"}, follow=True).content.decode()
    assert row(workspace, more.pk).pinned_at is None
    browser.post(f"/c/{last.pk}/pin/", {"pinned": "no"})
    browser.post(f"/c/{more.pk}/pin/", {"pinned": "yes"})
    assert [row(workspace, one.pk).pinned_at is None for one in (last, more)] == [True, False]


def test_a_deleted_conversation_is_taken_back_until_it_is_dropped(workspace):
    talk, browser = made(workspace, title="Precious"), workspace.client(workspace.owner)
    with workspace.scope():
        said(talk, "hello")
    page = browser.post(f"/c/{talk.pk}/delete/", follow=True)
    assert "Deleted: " in page.content.decode()
    assert f'action="/c/{talk.pk}/restore/"' in page.content.decode()
    assert listed(page) == {}
    at, again = row(workspace, talk.pk).deleted_at, browser.post(f"/c/{talk.pk}/delete/", follow=True)
    assert f'action="/c/{talk.pk}/restore/"' in again.content.decode(), "a second click leads to the same"
    assert row(workspace, talk.pk).deleted_at == at
    assert browser.get(f"/c/{talk.pk}/").status_code == 404
    assert browser.get(f"/c/{talk.pk}/export/").status_code == 404
    assert "Precious" in browser.post(f"/c/{talk.pk}/restore/", follow=True).content.decode()

    browser.post(f"/c/{talk.pk}/delete/")
    with workspace.scope():
        tasks.drop_deleted()
        assert Conversation.objects.filter(pk=talk.pk).exists()
        Conversation.objects.update(deleted_at=timezone.now() - tasks.KEPT - timedelta(seconds=1))
        kept = ConversationFactory(owner=workspace.owner)
        tasks.drop_deleted()
        assert list(Conversation.objects.all()) == [kept]
        assert not Message.objects.exists()
    assert browser.post(f"/c/{talk.pk}/restore/").status_code == 404


def test_a_conversation_that_is_answering_is_renamed_but_not_deleted(workspace, upstream):
    api, browser = workspace.api(), workspace.client(workspace.owner)
    pk = api.chat("one").json()["conversation_id"]
    workspace.settled(lines=1)
    upstream.last_word_after = threading.Event()
    stream = api.chat("two", conversation_id=pk, stream=True)
    refused = browser.post(f"/c/{pk}/delete/")
    assert refused.status_code == 409
    assert "It can be deleted once the answer has ended." in refused.content.decode()
    assert browser.post(f"/c/{pk}/rename/", {"title": "Meanwhile"}).status_code == 302
    assert browser.post(f"/c/{pk}/pin/", {"pinned": "yes"}).status_code == 302
    upstream.last_word_after.set()
    list(stream.streaming_content)
    workspace.settled(lines=2)
    talk = row(workspace, pk)
    assert (talk.title, talk.deleted_at, talk.pinned_at is None) == ("Meanwhile", None, False)


def test_a_download_has_the_branch_that_is_shown_or_every_version(workspace):
    talk, browser = made(workspace, title="Two ways"), workspace.client(workspace.owner)
    with workspace.scope():
        first = said(talk, "Why?", text="Because.")
        MessageFactory(conversation=talk, role="assistant", parent_id=first.parent_id, text="For a reason.")
    page = browser.get(f"/c/{talk.pk}/export/?as=markdown")
    assert page["Content-Disposition"] == f'attachment; filename="conversation-{talk.pk}.md"'
    assert page.content.decode() == "# Two ways\n\n## Question\n\nWhy?\n\n## Answer\n\nBecause.\n"
    whole = browser.get(f"/c/{talk.pk}/export/?as=markdown&all=yes").content.decode()
    assert "## Answer (version 2 of 2)\n\nFor a reason." in whole
    body = json.loads(browser.get(f"/c/{talk.pk}/export/?as=json&all=yes").content)
    assert [(one["role"], one["text"]) for one in body["messages"]][1:] == [
        ("assistant", "Because."),
        ("assistant", "For a reason."),
    ]
    assert body["shown"] == first.pk
    assert body["messages"][1]["cost"] == 10_000


# --- sharing --------------------------------------------------------------------------------------------------------


def test_a_shared_conversation_is_read_by_the_workspace_and_changed_by_nobody_else(workspace, globex, bob):
    talk, owner = made(workspace, pk=700_000, title="Our plan"), workspace.client(workspace.owner)
    with workspace.scope():
        said(talk, "What is the plan?", text="To **ship**.")
    with globex.scope():
        ConversationFactory(pk=talk.pk, owner=bob, title="Of globex")  # the same number: a 404 there proves something
    viewer = workspace.client(workspace.member("vera@x.example", "viewer"))
    member = workspace.client(workspace.member("carol@x.example"))
    address = f"/shared/{talk.pk}/"
    assert [one.get(address).status_code for one in (owner, viewer, member)] == [404, 404, 404]

    owner.post(f"/c/{talk.pk}/share/")
    owner.post(f"/c/{talk.pk}/share/")
    page = viewer.get(address).content.decode()
    assert workspace.owner.email in page
    assert "<strong>ship</strong>" in page
    assert "<form" not in page.partition("<main")[2]
    assert globex.client(bob).get(address).status_code == 404
    assert workspace.client().get(address).status_code == 302
    assert member.get(f"/c/{talk.pk}/").status_code == 404
    for act, body in (("rename", {"title": "Mine"}), ("pin", {"pinned": "yes"}), ("delete", {}), ("unshare", {})):
        assert member.post(f"/c/{talk.pk}/{act}/", body).status_code == 404, act
    assert member.get(f"/c/{talk.pk}/export/").status_code == 404

    owner.post(f"/c/{talk.pk}/unshare/")
    assert viewer.get(address).status_code == 404
    with workspace.scope():
        events = AuditEvent.objects.filter(event__startswith="conversations.").order_by("pk")
        assert [(one.event, one.target) for one in events] == [
            ("conversations.shared", "Our plan"),
            ("conversations.unshared", "Our plan"),
        ]


def test_what_is_shared_is_listed_by_others_and_by_oneself_in_pages(workspace, globex, bob):
    carol, now = workspace.member("carol@x.example"), timezone.now()
    for of, owner, title in ((workspace, None, "Mine"), (workspace, carol, "Hers"), (globex, bob, "Of globex")):
        made(of, owner=owner, title=title, shared_at=now)
        made(of, owner=owner, title=f"{title}, deleted", shared_at=now, deleted_at=now)
        made(of, owner=owner, title=f"{title}, unshared")
    with workspace.scope():
        ConversationFactory.create_batch(SHOWN + 4, owner=carol, shared_at=now - timedelta(days=1))
    browser = workspace.client(workspace.member("vera@x.example", "viewer"))

    def rows(address, browser=browser):
        page = browser.get(address).content.decode()
        older = re.search(r'href="(\?[^"]*before=[\d-]+)">Older', page)
        titles = re.findall(r'<li class="row">\s*<a href="/shared/(\d+)/" dir="auto">(.*?)</a>', page)
        return titles, older and "/shared/" + older[1].replace("&amp;", "&")

    first, older = rows("/shared/")
    second, none = rows(older)
    titles = [title for _, title in first + second]
    assert {*titles[:2]} == {"Mine", "Hers"}
    assert len({pk for pk, _ in first + second}) == len(titles) == SHOWN + 6
    assert none is None
    assert rows("/shared/?by=me") == ([], None)
    assert [title for _, title in rows("/shared/?by=me", workspace.client(workspace.owner))[0]] == ["Mine"]
    assert "Mine" not in [title for _, title in rows("/shared/", workspace.client(workspace.owner))[0]]
    older = rows("/shared/?by=me", workspace.client(carol))[1]
    assert older.startswith("/shared/?by=me&before=")
    assert len(rows(older, workspace.client(carol))[0]) == 5
    assert f'href="/shared/{first[0][0]}/"' in browser.get("/shared/?before=9-x").content.decode()
    assert 'href="/shared/"' in browser.get("/").content.decode()


def test_what_a_former_member_shared_is_unshared_by_who_may_read_it(workspace):
    former = workspace.member("gone@x.example")
    talk = made(workspace, owner=former, shared_at=timezone.now())
    owner = workspace.client(workspace.owner)
    assert owner.post(f"/c/{talk.pk}/unshare/").status_code == 404
    with workspace.scope():
        type(former).objects.filter(pk=former.pk).update(is_active=False, removed_at=timezone.now())
    member = workspace.client(workspace.member("carol@x.example"))
    assert member.post(f"/c/{talk.pk}/unshare/").status_code == 404
    assert "Stop sharing" in owner.get(f"/shared/{talk.pk}/").content.decode()
    assert owner.post(f"/c/{talk.pk}/unshare/").status_code == 302
    assert row(workspace, talk.pk).shared_at is None


# --- titles ---------------------------------------------------------------------------------------------------------


def switch(workspace, on="yes", user=None):
    return workspace.client(user or workspace.owner).post("/settings/workspace/titles/", {"on": on})


def titles_wait(upstream):
    """Set what this gives, and the model ends the titles that it writes; all else it answers as ever."""
    goes_on = threading.Event()

    def report(body):
        assert body["max_tokens"] != 32 or goes_on.wait(20)
        return {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}

    upstream.usage = report
    return goes_on


def test_a_title_by_the_model_is_bought_once_and_booked_as_titles(workspace, upstream):
    assert switch(workspace, user=workspace.member("carol@x.example")).status_code == 403
    assert switch(workspace).status_code == 302
    api = workspace.api()
    pk = api.chat("what is a ledger, and why would anybody want one").json()["conversation_id"]
    lines = workspace.settled(lines=2)
    assert [line.app for line in lines] == ["chat", "titles"]
    assert lines[0].user_id == lines[1].user_id == workspace.owner.pk
    assert lines[1].cost > 0
    asked = upstream.calls[-1]
    assert asked["max_tokens"] == 32
    assert "what is a ledger" in asked["messages"][0]["content"]
    assert (row(workspace, pk).title, row(workspace, pk).titled_by) == ("Hello, world", "model")
    api.chat("and?", conversation_id=pk)
    assert [line.app for line in workspace.settled(lines=3)] == ["chat", "titles", "chat"]

    switch(workspace, "no")
    api.chat("another one")
    assert len(workspace.settled(lines=4)) == 4
    with workspace.scope():
        events = AuditEvent.objects.filter(event="settings.titles_by_model").order_by("pk")
        assert [one.target for one in events] == ["on", "off"]


def test_a_title_that_a_person_gave_meanwhile_stays(workspace, upstream):
    switch(workspace)
    is_renamed = titles_wait(upstream)
    pk = workspace.api().chat("first question").json()["conversation_id"]
    workspace.client(workspace.owner).post(f"/c/{pk}/rename/", {"title": "Mine"})
    is_renamed.set()
    assert [line.app for line in workspace.settled(lines=2)] == ["chat", "titles"]
    assert (row(workspace, pk).title, row(workspace, pk).titled_by) == ("Mine", "person")


def test_a_page_is_told_the_title_at_the_end_of_its_stream_and_a_program_is_not_kept_waiting(workspace, upstream):
    switch(workspace)
    page = events_of(workspace.api().chat("first question", stream=True, rendered=True))
    assert [name for name, _ in page][-2:] == ["done", "title"]
    assert page[-1][1] == {"title": "Hello, world"} == {"title": row(workspace, page[-2][1]["conversation_id"]).title}
    is_renamed = titles_wait(upstream)
    stream = workspace.api().chat("second question", stream=True, rendered=True)
    with workspace.scope():
        pending, told = iter(stream.streaming_content), b""
        while b"event: done" not in told:
            told += next(pending)
        Conversation.objects.update(title="Mine", titled_by="person")
    is_renamed.set()
    told += b"".join(pending)
    assert b"event: title" not in told, "a person gave it another meanwhile"
    assert [name for name, _ in events_of(workspace.api().chat("third question", stream=True))][-1] == "done"
    workspace.settled(lines=6)


def test_a_title_that_the_askers_limit_does_not_cover_is_not_bought_and_nobody_is_told(workspace, upstream, caplog):
    caplog.set_level("INFO", logger="chat.titles")
    switch(workspace)
    api = workspace.api()
    with workspace.scope():
        key = ApiKey.objects.latest("pk")
    # Of the features that its scopes name; titles are none of them.
    workspace.client(workspace.owner).post(f"/settings/keys/{key.pk}/limit/", {"amount": "0.10"})
    answer = api.chat("first words")
    assert answer.status_code == 200
    until(lambda: "No title was bought: forbidden" in caplog.text, seconds=10)
    assert [line.app for line in workspace.settled()] == ["chat"]
    talk = row(workspace, answer.json()["conversation_id"])
    assert (talk.title, talk.titled_by) == ("first words", "words")


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ('"A Short Title."', "A Short Title"),
        ("**Title: The Ledger**\nand more", "The Ledger"),
        ("\n# Eins zwei drei vier fünf sechs sieben acht neun", "Eins zwei drei vier fünf sechs sieben acht"),
        ("…", "…"),
        (' "" \n', ""),
        ("\u200b\n\x00", ""),
        ("x" * 90, "x" * 59 + "…"),
        ("\u202ex\x1b" * 2_000, "x" * 59 + "…"),
        ("<think>\nA title?\n</think>\n\nBoats", "Boats"),
        ("<think>\nA title", ""),
    ],
)
def test_a_title_is_a_line_without_marks(text, title):
    assert title_in(text) == title
