"""Answers that nobody reads just now: whether they go on, how they are found again and stopped, and by whom."""

import json
import threading

import httpx
import pytest

from chat.models import Message
from tenants.models import Tenant
from tests.support.cast import events_of
from tests.support.plane import PlaneProcess

pytestmark = pytest.mark.usefixtures("upstream")


PRICES = json.dumps({"test-model": {"input": 10, "output": 40}})


def allow(workspace, value):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(chat_settings={"goes_on": value})


class Browser:
    """The owner's, at the plane; `goes_on`: as the workspace has it set."""

    def __init__(self, workspace, *, goes_on=True):
        allow(workspace, goes_on)
        self.pages = pages = workspace.client(workspace.owner)
        pages.get("/")
        self.plane = workspace.plane(pages)
        self.headers = {"x-csrftoken": pages.cookies["csrftoken"].value}

    def ask(self, **fields):
        return self.plane.post(
            "/api/chat/", json.dumps({"prompt": "hello", "stream": True, **fields}), headers=self.headers
        )

    def left(self, upstream, tokens=20, **fields):
        """The number of a call whose reader left after its first event; and that is under way until `write_on`."""
        upstream.tokens, upstream.last_word_after = ["word "] * tokens, threading.Event()
        response = self.ask(**fields)
        held = next(iter(response.streaming_content)).decode()
        response.close()
        return json.loads(held.partition("data: ")[2])["call"]

    def write_on(self, upstream):
        """The model says its last word."""
        upstream.last_word_after.set()

    def get(self, call, **headers):
        return self.plane.get(f"/api/chat/calls/{call}/", headers={**self.headers, **headers})

    def follow(self, call):
        return self.get(call, accept="text/event-stream")

    def stop(self, call):
        return self.plane.post(f"/api/chat/calls/{call}/stop/", headers=self.headers)


def test_an_answer_goes_on_without_its_reader_where_the_workspace_allows_it(workspace, upstream):
    browser = Browser(workspace)
    call = browser.left(upstream)
    under_way = browser.get(call)
    assert (under_way.status_code, under_way.json()["state"]) == (202, "answering")
    browser.write_on(upstream)
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.tokens_output) == ("exact", 20)
    kept = browser.get(call)
    body = kept.json()
    assert (kept.status_code, body["response"], body["finish_reason"]) == (200, "word " * 20, "stop")
    assert body["cost"]["microcents"] == line.cost == workspace.ledger()["spent"]
    with workspace.scope():
        answer = Message.objects.get(role="assistant")
    assert (body["answer_id"], body["question_id"]) == (answer.pk, answer.parent_id)


def test_without_leave_it_stops_with_its_reader_and_so_does_a_programs_always(workspace, upstream):
    browser = Browser(workspace, goes_on=False)
    call = browser.left(upstream, tokens=200)
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "estimated"
    assert browser.get(call).json()["finish_reason"] == "cancelled"
    allow(workspace, True)
    response = workspace.api().chat("hello", stream=True)
    next(iter(response.streaming_content))
    response.close()
    assert workspace.settled(lines=2)[1].outcome == "estimated"


def test_who_comes_back_gets_the_words_from_the_first_on_and_those_that_follow(workspace, upstream):
    browser = Browser(workspace)
    call = browser.left(upstream)
    both = [browser.follow(call), browser.follow(call)]
    begun = [next(iter(response.streaming_content)).decode() for response in both]
    browser.write_on(upstream)
    for first, response in zip(begun, both, strict=True):
        *tokens, (last, facts) = events_of(response)
        tokens.insert(0, ("token", json.loads(first.partition("event: token\ndata: ")[2])))
        assert "".join(data["text"] for name, data in tokens) == "word " * 20
        assert 1 < len(tokens) <= 20
        assert (last, facts["finish_reason"], facts["usage"]["output_tokens"]) == ("done", "stop", 20)
        assert response["X-Conversation-ID"] == str(facts["conversation_id"])
    # And once it is kept.
    (name, token), (last, facts) = events_of(browser.follow(call))
    assert (name, token["text"], last) == ("token", "word " * 20, "done")
    assert len(workspace.settled()) == 1


def test_who_follows_and_leaves_changes_nothing(workspace, upstream):
    browser = Browser(workspace)
    call = browser.left(upstream)
    response = browser.follow(call)
    next(iter(response.streaming_content))
    response.close()
    browser.write_on(upstream)
    (line,) = workspace.settled(lines=1)
    assert line.tokens_output == 20


def test_stop_ends_it_and_its_reader_gets_the_settled_facts(workspace, upstream):
    browser = Browser(workspace)
    upstream.tokens, upstream.last_word_after = ["word "] * 200, threading.Event()
    response = browser.ask()
    parts = iter(response.streaming_content)
    call = json.loads(next(parts).decode().partition("data: ")[2])["call"]
    next(parts)
    assert browser.stop(call).status_code == 202
    rest = b"".join(parts).decode()
    facts = json.loads(rest.rpartition("event: done\ndata: ")[2])
    (line,) = workspace.settled(lines=1)
    assert (facts["finish_reason"], facts["cost"]["microcents"]) == ("cancelled", line.cost)
    assert line.outcome == "estimated"
    again = browser.stop(call)
    assert (again.status_code, again.json()["finish_reason"]) == (200, "cancelled")


def test_a_call_that_came_to_nothing_is_none(workspace, upstream):
    browser = Browser(workspace)
    upstream.status, upstream.delay_first = 500, 0
    assert browser.ask().status_code == 502
    assert browser.get("01a22196-788d-7179-b1c6-92e0c484bf92").status_code == 404
    assert browser.stop("01a22196-788d-7179-b1c6-92e0c484bf92").status_code == 404


def test_nobody_else_finds_follows_or_stops_a_call(workspace, globex, bob, upstream):
    """Bob has the same number in globex as the owner has here; and a colleague is somebody else, too."""
    browser = Browser(workspace)
    call = browser.left(upstream, tokens=60)
    colleague = workspace.member("colleague@example.com")
    for api in (workspace.api(workspace.key(colleague)), globex.api(globex.key(bob)), globex.api()):
        for stranger in (
            api.plane.get(f"/api/chat/calls/{call}/"),
            api.plane.get(f"/api/chat/calls/{call}/", headers={"accept": "text/event-stream"}),
            api.plane.post(f"/api/chat/calls/{call}/stop/"),
        ):
            assert (stranger.status_code, stranger.json()["error"]) == (404, "not_found")
    assert browser.get(call).status_code == 202
    browser.write_on(upstream)
    (line,) = workspace.settled(lines=1)
    assert line.tokens_output == 60
    assert globex.api().plane.get(f"/api/chat/calls/{call}/").status_code == 404
    assert workspace.api(workspace.key(colleague)).plane.get(f"/api/chat/calls/{call}/").status_code == 404
    # Their own key is theirs.
    assert workspace.api().plane.get(f"/api/chat/calls/{call}/").status_code == 200


def test_another_process_follows_and_stops_it(workspace, upstream, upstream_server, database_url, authority, settings):
    browser = Browser(workspace)
    key = workspace.key()
    variables = {"LLM_BASE_URL": upstream_server.base_url, "LLM_MODEL": "test-model", "LLM_PRICES": PRICES}
    with PlaneProcess(database_url=database_url, authority=authority, **variables) as plane:
        headers = {"Host": f"{workspace.host}:{plane.port}", "Authorization": f"Bearer {key}"}
        call = browser.left(upstream, tokens=400)
        # Until two of its words are there to be told.
        with_words = browser.follow(call).streaming_content
        while b"word word" not in next(with_words):
            pass
        with httpx.Client(base_url=f"http://127.0.0.1:{plane.port}", timeout=30, trust_env=False) as client:
            path = f"/api/chat/calls/{call}/"
            assert client.get(path, headers=headers).status_code == 202
            with client.stream("GET", path, headers={**headers, "Accept": "text/event-stream"}) as response:
                lines = response.iter_lines()
                assert next(lines) == ": waiting"
                assert client.post(path + "stop/", headers=headers).status_code == 202
                rest = "\n".join(lines)
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "estimated"
    assert json.loads(rest.partition("event: token\ndata: ")[2].partition("\n")[0])["text"].startswith("word word")
    facts = json.loads(rest.rpartition("event: done\ndata: ")[2])
    assert (facts["finish_reason"], facts["cost"]["microcents"]) == ("cancelled", line.cost)


def test_the_page_knows_of_an_answer_under_way_and_names_its_call(workspace, upstream):
    browser = Browser(workspace)
    conversation = workspace.api().chat("first").json()["conversation_id"]
    call = browser.left(upstream, conversation_id=conversation)
    page = workspace.client(workspace.owner).get(f"/c/{conversation}/").content.decode()
    assert f'data-call="{call}"' in page
    assert 'data-chat="under-way"' in page
    browser.write_on(upstream)
    workspace.settled(lines=2)
    page = workspace.client(workspace.owner).get(f"/c/{conversation}/").content.decode()
    assert 'data-chat="under-way"' not in page


def test_a_new_conversation_that_is_under_way_is_found_from_the_empty_page(workspace, upstream):
    browser = Browser(workspace)
    call = browser.left(upstream)
    owner, other = browser.pages, workspace.client(workspace.member("other@example.com"))
    conversation = browser.get(call).json()["conversation_id"]
    assert f'in <a href="/c/{conversation}/">' in owner.get("/").content.decode()
    assert f'data-call="{call}"' in owner.get(f"/c/{conversation}/").content.decode()
    assert call not in other.get("/").content.decode()
    browser.write_on(upstream)
    workspace.settled(lines=1)
    assert call not in owner.get("/").content.decode()


def test_without_script_a_button_of_the_page_stops_it_and_leads_to_what_it_cost(workspace, globex, upstream):
    browser = Browser(workspace)
    call = browser.left(upstream, tokens=400)
    pk = browser.get(call).json()["conversation_id"]
    page = browser.pages.get(f"/c/{pk}/").content.decode()
    form = page.partition(f'<form class="notice" action="/c/{pk}/stop/"')[2].partition("</form>")[0]
    assert f'name="call" value="{call}"' in form
    assert ">Stop</button>" in form
    colleague = workspace.client(workspace.member("colleague@example.com"))
    for stranger in (colleague, globex.client(globex.owner)):
        assert stranger.post(f"/c/{pk}/stop/", {"call": call}).status_code == 404
    assert browser.pages.post(f"/c/{pk}/stop/", {"call": "none"}).status_code == 404
    assert browser.get(call).status_code == 202
    stopped = browser.pages.post(f"/c/{pk}/stop/", {"call": call})
    (line,) = workspace.settled(lines=1)
    assert line.outcome == "estimated"
    assert (stopped.status_code, stopped["Location"]) == (302, f"/c/{pk}/")
    page = browser.pages.get(f"/c/{pk}/").content.decode()
    assert "Stopped before its end." in page
    assert f"{line.tokens_input} in / {line.tokens_output} out" in page
    assert 'data-chat="under-way"' not in page
    # Pressed once more, it leads there, too; but not to another conversation.
    assert browser.pages.post(f"/c/{pk}/stop/", {"call": call})["Location"] == f"/c/{pk}/"
    assert browser.pages.post(f"/c/{pk + 1}/stop/", {"call": call}).status_code == 404


def test_who_may_change_the_workspace_switches_it_and_the_trail_says_so(workspace):
    from tenants.audit.models import AuditEvent

    owner = workspace.client(workspace.owner)
    member = workspace.client(workspace.member("member@example.com"))
    assert member.post("/settings/workspace/answers/", {"goes_on": "on"}).status_code == 403
    assert "also where nobody comes back" in owner.get("/settings/workspace/answers/").content.decode()
    assert owner.post("/settings/workspace/answers/", {"goes_on": "on"}).status_code == 302
    workspace.tenant.refresh_from_db()
    assert workspace.tenant.chat_settings == {"goes_on": True}
    assert "checked" in owner.get("/settings/workspace/answers/").content.decode()
    assert owner.post("/settings/workspace/answers/", {}).status_code == 302
    workspace.tenant.refresh_from_db()
    assert workspace.tenant.chat_settings == {}
    with workspace.scope():
        written = list(AuditEvent.objects.filter(event__startswith="settings.answers").values_list("event", flat=True))
    assert sorted(written) == ["settings.answers_go_on", "settings.answers_stop"]
