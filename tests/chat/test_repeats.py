"""Idempotency-Key on chat and summarize: however often a request is sent, one call is made and one is paid for."""

import threading
import time
import uuid
from datetime import timedelta

import psycopg
import pytest
from django.core.management import call_command
from django.utils import timezone

from billing import repeats as in_web
from billing import tasks
from billing.engine import repeats
from billing.engine.loop import here
from billing.engine.statements import in_schema
from billing.usage.models import Repeat
from chat import streams
from chat.models import Conversation
from tenants.connections import own_connection_params
from tests.support import jobs
from tests.support.cast import events_of
from tests.support.money import eventually, on_loop
from tests.support.plane import PlaneResponse

pytestmark = pytest.mark.usefixtures("upstream")

COST = 10 * 1_000 + 4 * 4_000
CHAT, SUMMARIZE = ("/api/chat/", {"prompt": "hello"}), ("/api/summarize/", {"text": "hello"})


def under(key="k-1"):
    return {"idempotency-key": key}


def ask(api, *, key="k-1", prompt="hello", **fields):
    return api.post("/api/chat/", {"prompt": prompt, **fields}, headers=under(key))


def begin(api, *, key="k-1", **fields):
    return api.plane.begin("POST", "/api/chat/", {"prompt": "hello", **fields}, headers=under(key))


def is_replay(response):
    return response.has_header("Idempotent-Replayed") and response["Idempotent-Replayed"] == "true"


def words(events):
    return "".join(data["text"] for name, data in events if name == "token")


def rows(workspace, **changed):
    """The workspace's requests under keys, changed as if something had happened to them."""
    with workspace.scope():
        if changed:
            Repeat.objects.update(**changed)
        return list(Repeat.objects.order_by("pk"))


def waiting():
    """How many wait in this process, for each request that somebody waits for."""
    return on_loop(lambda: [watch.waiting for watch in here().watches.values()])


def left_by_nobody(workspace, **row):
    """A request under k-1 that another process has claimed, and does nothing for."""
    given = {"user_id": workspace.owner.pk, "route": "chat", "key": "k-1", "created_at": timezone.now()}
    given |= {"fingerprint": _fingerprint(workspace), "attempt": uuid.uuid4(), "process": on_loop(here).process_id}
    with workspace.scope():
        return Repeat.objects.create(**{**given, **row})


def _fingerprint(workspace):
    """Of the body that `ask` sends, as the product takes it."""
    ask(workspace.api(), key="like k-1")
    with workspace.scope():
        return Repeat.objects.get(key="like k-1").fingerprint


# --- again ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), [CHAT, SUMMARIZE], ids=["chat", "summarize"])
def test_a_repeat_is_the_same_answer_and_charged_once(workspace, upstream, path, body):
    api = workspace.api()
    first, *again = [api.post(path, body, headers=under()) for _ in range(3)]
    assert first.status_code == 200
    assert first.json()["cost"]["microcents"] == workspace.ledger()["spent"] == COST
    assert not is_replay(first)
    for response in again:
        assert (response.status_code, response.content) == (200, first.content)
        assert is_replay(response)
        for name in ("Content-Type", "Cache-Control", "Vary"):
            assert response[name] == first[name]
    assert (len(upstream.calls), len(workspace.lines())) == (1, 1)
    # A header of nobody's business elsewhere.
    assert api.get("/api/budget/", headers=under(",")).status_code == 200


def test_a_repeat_may_ask_for_the_other_form(workspace, upstream):
    api = workspace.api()
    whole, streamed = ask(api, key="a").json(), events_of(ask(api, key="b", stream=True))
    again = ask(api, key="a", stream=True)
    assert is_replay(again)
    assert again["X-Conversation-ID"] == str(whole["conversation_id"])
    assert (again["Content-Type"], again["Cache-Control"]) == ("text/event-stream", "no-cache")
    (first, held), *tokens, (last, facts) = events_of(again)
    assert (first, held.keys(), last) == ("held", streamed[0][1].keys(), "done")
    assert {"response": words(tokens), **facts} == whole
    assert events_of(ask(api, key="b", stream=True)) == [
        streamed[0],
        ("token", {"text": "Hello, world."}),
        streamed[-1],
    ]
    assert ask(api, key="b").json() == {"response": "Hello, world.", **streamed[-1][1]}
    assert len(upstream.calls) == 2


@pytest.mark.on_standin
def test_of_ten_at_once_one_calls_and_nine_wait_for_its_answer(workspace, upstream, settings):
    settings.TENANT_STREAMS_MAX = 1  # who waits takes no place
    upstream.delay_between = 0.1
    api = workspace.api()
    answers = [PlaneResponse(exchange) for exchange in [begin(api) for _ in range(10)]]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert sorted(map(is_replay, answers)) == [False] + [True] * 9
    assert (len(upstream.calls), len(workspace.settled())) == (1, 1)


def test_of_two_summaries_at_once_one_waits(workspace, upstream):
    upstream.delay_between = 0.1
    api, answers = workspace.api(), []
    path, body = SUMMARIZE
    threads = [threading.Thread(target=lambda: answers.append(api.post(path, body, headers=under()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    one, other = answers
    assert one.content == other.content
    assert is_replay(one) != is_replay(other)
    assert (len(upstream.calls), len(workspace.lines())) == (1, 1)


def test_a_reader_who_left_after_the_first_byte_gets_the_whole_answer_again(workspace, upstream):
    upstream.tokens, upstream.last_word_after = ["word "] * 20, threading.Event()
    api = workspace.api()
    first = ask(api, stream=True)
    next(iter(first.streaming_content))
    first.close()
    again = begin(api)  # while the answer goes on
    assert eventually(lambda: waiting() == [1])
    upstream.last_word_after.set()
    response = PlaneResponse(again)
    assert is_replay(response)
    assert response.json()["response"] == "word " * 20
    (line,) = workspace.settled()
    assert (line.outcome, line.tokens_output, len(upstream.calls)) == ("exact", 20, 1)
    # Without a key the reader's going ends it, as ever.
    upstream.last_word_after = threading.Event()
    api.chat("hello", stream=True).close()
    assert workspace.settled(lines=2)[1].outcome == "estimated"


@pytest.mark.on_standin
def test_a_client_that_timed_out_and_sent_three_times_pays_once(workspace, upstream):
    upstream.last_word_after = threading.Event()
    api = workspace.api()
    first = begin(api)
    assert upstream.wait_until(lambda up: up.calls)
    first.leave()
    for stream in (False, True):
        again = begin(api, stream=stream)
        assert eventually(lambda: waiting() == [1])
        again.leave()
    assert waiting() == []
    upstream.last_word_after.set()
    response = ask(api)
    assert (response.status_code, response.json()["cost"]["microcents"]) == (200, COST)
    assert is_replay(response)
    assert (len(upstream.calls), len(workspace.settled())) == (1, 1)
    assert workspace.ledger()["spent"] == COST


def test_an_answer_that_the_end_of_its_process_cut_is_told_again(workspace, upstream):
    upstream.tokens, upstream.delay_between = ["word "] * 400, 0.02
    api = workspace.api()
    first = ask(api, stream=True)
    parts = iter(first.streaming_content)
    while b"token" not in next(parts):
        pass
    on_loop(lambda: here().cut_all())
    list(parts)
    body = ask(api).json()
    assert (body["finish_reason"], body["outcome"]) == ("cancelled", "estimated")
    assert body["response"].startswith("word")
    assert len(upstream.calls) == 1


# --- whose, which and how long --------------------------------------------------------------------------------------


def test_a_seat_shares_its_keys_and_nobody_else_does(workspace, globex, upstream):
    mine = ask(workspace.api(workspace.key())).json()
    plane = workspace.plane(workspace.client(workspace.owner))
    token = {"x-csrftoken": plane.cookies["csrftoken"].value}
    for again in (
        ask(workspace.api(workspace.key())),
        plane.post("/api/chat/", {"prompt": "hello"}, headers={**under(), **token}),
    ):
        assert is_replay(again)
        assert again.json() == mine
    assert plane.post("/api/chat/", {"prompt": "hello"}, headers=under()).status_code == 403, "CSRF is checked first"
    other = workspace.key(workspace.member("other@example.com"))
    neighbour = globex.key(globex.member(f"{uuid.uuid4().hex}@globex.example"))
    for api in (workspace.api(other), globex.api(neighbour)):
        response = ask(api)
        assert response.status_code == 200
        assert not is_replay(response)
    # The same key on another route is another request.
    assert not is_replay(workspace.api().post(*SUMMARIZE, headers=under()))
    assert len(upstream.calls) == 4


def test_another_body_under_a_key_is_a_conflict_also_while_the_first_is_under_way(workspace, upstream):
    upstream.delay_between = 0.2
    api = workspace.api()
    under_way = begin(api)
    assert upstream.wait_until(lambda up: up.calls)
    others = ({"prompt": "hello!"}, {"max_tokens": 5}, {"model": "test-model"})
    answers = [ask(api, **fields) for fields in others]
    assert PlaneResponse(under_way).status_code == 200
    answers += [ask(api, **fields) for fields in others]
    assert {(answer.status_code, answer.json()["error"]) for answer in answers} == {(409, "idempotency_conflict")}
    assert ask(api, max_tokens=None, stream=False).status_code == 200, "what is left out and what is null are one body"
    assert api.post("/api/summarize/", {"text": "a"}, headers=under()).status_code == 200
    assert api.post("/api/summarize/", {"text": "b"}, headers=under()).json()["error"] == "idempotency_conflict"
    assert len(upstream.calls) == 2


def test_after_a_day_a_key_is_new_and_its_words_are_forgotten(workspace, upstream):
    api = workspace.api()
    ask(api)
    rows(workspace, created_at=timezone.now() - timedelta(hours=23, minutes=59))
    assert is_replay(ask(api))
    rows(workspace, created_at=timezone.now() - timedelta(hours=24, minutes=1))
    assert not is_replay(ask(api, prompt="something else"))
    assert len(upstream.calls) == 2
    for age, left in ((23, 1), (25, 0)):
        rows(workspace, created_at=timezone.now() - timedelta(hours=age))
        with workspace.scope():
            tasks.forget_repeats.func()
        assert len(rows(workspace)) == left


def test_each_workspace_has_a_job_that_forgets(workspace):
    jobs.rows("DELETE FROM public.procrastinate_jobs")
    tasks.forget_repeats_everywhere.func(timestamp=0)
    enqueued = jobs.rows("DELETE FROM public.procrastinate_jobs RETURNING task_name, args->>'tenant_id'")
    assert ("billing.tasks.forget_repeats", str(workspace.tenant.pk)) in enqueued


@pytest.mark.parametrize(("path", "body"), [CHAT, SUMMARIZE], ids=["chat", "summarize"])
def test_a_key_that_is_none_is_400_and_says_what_one_is(acme, upstream, path, body):
    api = acme.api()
    # Two headers of one name reach a view as one, with a comma.
    for key in ["", "  ", "x" * 256, "é", "a\tb", "a,b", "\x7f"]:
        response = api.post(path, body, headers=under(key))
        assert (response.status_code, response.json()["error"]) == (400, "invalid")
        assert "255" in response.json()["fields"]["Idempotency-Key"][0]
    assert upstream.calls == []
    longest = f"a b{uuid.uuid4().hex}".ljust(255, "x")
    for key in (longest, f" {longest} "):
        assert api.post(path, body, headers=under(key)).status_code == 200
    assert len(upstream.calls) == 1


def test_the_documentation_shows_the_header(acme):
    paths = acme.client().get("/api/openapi.json").json()["paths"]
    for path in ("/api/chat/", "/api/summarize/"):
        named = {one["name"]: one["in"] for one in paths[path]["post"]["parameters"]}
        assert named == {"Idempotency-Key": "header"}
        assert "409" in paths[path]["post"]["responses"]


# --- what failed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "body"), [CHAT, SUMMARIZE], ids=["chat", "summarize"])
def test_a_request_that_cost_nothing_is_tried_anew(workspace, upstream, settings, path, body):
    api = workspace.api()

    def answer():
        response = api.post(path, body, headers=under())
        assert not is_replay(response)
        return response.status_code

    workspace.leave(0)
    assert answer() == 402
    call_command("top_up", workspace.slug, "0.50", "--key", "invoice-1")
    upstream.status = 503
    assert answer() == 503
    upstream.status = None
    prices, settings.LLM_PRICES = settings.LLM_PRICES, {}
    assert answer() == 422
    settings.LLM_PRICES = prices
    assert answer() == 200
    # Paid for, it is told again to somebody who has no money left.
    workspace.leave(0)
    assert is_replay(api.post(path, body, headers=under()))
    assert workspace.ledger()["reserved"] == 0


@pytest.mark.parametrize(("path", "body"), [CHAT, SUMMARIZE], ids=["chat", "summarize"])
def test_a_failure_that_was_charged_is_the_answer(workspace, upstream, path, body):
    upstream.drop = True
    api = workspace.api()
    first = api.post(path, body, headers=under())
    upstream.reset()
    again = api.post(path, body, headers=under())
    assert (first.status_code, first.json()["error"]) == (502, "model_failed")
    assert (again.status_code, again.content) == (502, first.content)
    assert is_replay(again)
    (line,) = workspace.settled()
    assert (line.outcome, upstream.calls) == ("unknown", [])


def test_a_stream_that_broke_off_is_told_again_up_to_there(workspace, upstream):
    upstream.cut_after, upstream.delay_between = 2, 0.05
    api = workspace.api()
    first = events_of(ask(api, stream=True))
    again = events_of(ask(api, stream=True))
    assert [name for name, _ in again] == ["held", "token", "error"]
    assert (again[0], words(again), again[-1]) == (first[0], words(first), first[-1])
    assert ask(api).json() == first[-1][1]
    assert len(upstream.calls) == 1


def test_a_deleted_conversation_keeps_no_paid_answer_from_being_told(workspace, upstream):
    api = workspace.api()
    conversation = api.chat("first").json()["conversation_id"]

    def delete(body):
        with workspace.scope():
            Conversation.objects.all().delete()
        return {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}

    upstream.usage = delete  # the answer's own rows can then not be kept
    first = ask(api, conversation_id=conversation)
    again = ask(api, conversation_id=conversation)
    assert (first.status_code, is_replay(again)) == (200, True)
    assert again.content == first.content
    assert ask(api, key="k-2", conversation_id=conversation).status_code == 404


# --- waiting --------------------------------------------------------------------------------------------------------


def test_a_streamed_repeat_that_waits_long_begins_with_comment_lines(workspace, upstream, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.2)
    upstream.last_word_after = threading.Event()
    api = workspace.api()
    first = begin(api)
    assert upstream.wait_until(lambda up: up.calls)
    parts = iter(ask(api, stream=True).streaming_content)
    body = next(parts)
    upstream.last_word_after.set()
    body += b"".join(parts)
    assert body.startswith(b": waiting\n\n")
    assert body.index(b": waiting") < body.index(b"event: held") < body.index(b"event: done")
    assert PlaneResponse(first).status_code == 200
    assert len(upstream.calls) == 1


def test_who_waits_for_a_request_that_is_given_back_makes_it(workspace, upstream, monkeypatch):
    monkeypatch.setattr(streams, "KEEP_ALIVE_SECONDS", 0.2)
    row = left_by_nobody(workspace)
    parts = iter(ask(workspace.api(), stream=True).streaming_content)
    assert next(parts) == b": waiting\n\n"
    with workspace.scope():
        row.delete()
    assert b"event: done" in b"".join(parts)
    assert len(upstream.calls) == 2
    # And it ends with an error, if it must.
    left_by_nobody(workspace, key="k-2")
    parts = iter(ask(workspace.api(), key="k-2", stream=True).streaming_content)
    assert next(parts) == b": waiting\n\n"
    rows(workspace, hold=workspace.lines()[0].hold)
    assert b"event: error" in (rest := b"".join(parts))
    assert b"idempotency_lost" in rest


def test_so_many_wait_for_one_answer_and_no_more(workspace):
    row = left_by_nobody(workspace)
    api = workspace.api()
    first, *others = [begin(api) for _ in range(repeats.MOST_WAITING)]
    assert eventually(lambda: waiting() == [repeats.MOST_WAITING])
    response = ask(api)
    assert (response.status_code, response.json()["error"]) == (429, "rate_limited")
    assert int(response["Retry-After"]) > 0
    first.leave()
    with workspace.scope():
        row.delete()
    assert {PlaneResponse(exchange).status_code for exchange in others} == {200}
    assert waiting() == []


def test_a_process_that_ends_says_so_to_whoever_waits_in_it_for_another_s_answer(workspace):
    row = left_by_nobody(workspace)
    whole, streamed = (begin(workspace.api(), stream=stream) for stream in (False, True))
    assert eventually(lambda: waiting() == [2])
    on_loop(lambda: here().cut_all())
    for exchange in (whole, streamed):
        response = PlaneResponse(exchange)
        assert (response.status_code, response.json()["error"]) == (503, "unavailable")
    assert (rows(workspace)[-1].pk, waiting()) == (row.pk, [])


def test_a_claim_that_its_owner_does_not_know_of_is_taken_over(workspace, upstream):
    left_by_nobody(workspace, created_at=timezone.now() - timedelta(minutes=5))
    assert ask(workspace.api()).status_code == 200
    assert (len(upstream.calls), len(workspace.settled())) == (2, 2)


def test_a_summary_waits_in_web_for_so_long(workspace, monkeypatch):
    monkeypatch.setattr(in_web, "WAIT_SECONDS", 0.2)
    path, body = SUMMARIZE
    workspace.api().post(path, body, headers=under())
    rows(workspace, status=None, hold=None, process=on_loop(here).process_id)
    response = workspace.api().post(path, body, headers=under())
    assert (response.status_code, response.json()["error"]) == (503, "unavailable")
    assert int(response["Retry-After"]) > 0


def test_one_workspace_waits_with_few_of_webs_threads_by_however_many_keys(workspace, upstream):
    api, answers = workspace.api(), []
    path, body = SUMMARIZE
    keys = [f"w-{number}" for number in range(in_web.MOST_WAITING + 1)]
    for key in keys:
        api.post(path, body, headers=under(key))
    rows(workspace, status=None, hold=None, process=on_loop(here).process_id)
    threads = [
        threading.Thread(target=lambda key=key: answers.append(api.post(path, body, headers=under(key))))
        for key in keys[1:]
    ]
    for thread in threads:
        thread.start()
    assert eventually(lambda: sum(waiting()) == in_web.MOST_WAITING)
    response = api.post(path, body, headers=under(keys[0]))
    assert (response.status_code, response.json()["error"]) == (429, "rate_limited")
    with workspace.scope():
        Repeat.objects.all().delete()
    for thread in threads:
        thread.join(20)
    assert [answer.status_code for answer in answers] == [200] * in_web.MOST_WAITING


def test_an_answer_is_told_again_though_the_authority_has_not_taken_its_commit(workspace, upstream, lossy):
    lossy.refuse["/commit"] = 1_000
    api = workspace.api()
    first = ask(api)
    assert (first.status_code, first.json()["budget"]) == (200, None)
    again = ask(api)
    assert (workspace.holds(), is_replay(again)) == (1, True)
    assert again.json() == first.json()
    lossy.refuse.clear()
    assert len(workspace.settled()) == 1
    assert ask(api).content == again.content
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(("path", "body"), [CHAT, SUMMARIZE], ids=["chat", "summarize"])
def test_a_failure_that_cost_nothing_frees_its_key_though_the_authority_cannot_be_told(
    workspace, upstream, lossy, path, body
):
    lossy.refuse["/release"] = 1_000
    upstream.status = 503
    api = workspace.api()
    assert api.post(path, body, headers=under()).status_code == 503
    upstream.reset()
    response = api.post(path, body, headers=under())
    assert (response.status_code, is_replay(response), workspace.holds()) == (200, False, 1)
    lossy.refuse.clear()
    assert [line.cost for line in workspace.settled(lines=2) if line.cost] == [COST]
    assert is_replay(api.post(path, body, headers=under()))


def test_a_reader_who_leaves_before_anything_is_bought_leaves_the_key_free(workspace, upstream, lossy):
    has_left = threading.Event()
    lossy.before["/v1/reservations"] = lambda: has_left.wait(20)
    api = workspace.api()
    exchange = begin(api)
    assert eventually(lambda: rows(workspace))
    exchange.leave()
    has_left.set()
    assert eventually(lambda: not rows(workspace))
    assert not is_replay(ask(api))
    assert len(upstream.calls) == 1


def test_a_key_is_free_again_soon_after_a_migration_has_kept_it_from_being_given_back(workspace, upstream, lossy):
    """Its claim stayed behind after some seconds: for a minute more a repeat waited for nobody."""
    api = workspace.api()
    workspace.leave(0)
    is_locked = threading.Event()  # the claim is made, and its refusal comes under the lock
    lossy.before["/v1/reservations"] = lambda: is_locked.wait(20)
    exchange = begin(api)
    assert eventually(lambda: rows(workspace))
    with psycopg.connect(**own_connection_params()) as migrating:
        locked = in_schema("LOCK TABLE {schema}.usage_repeat IN ACCESS EXCLUSIVE MODE", workspace.tenant.schema_name)
        migrating.execute(locked)
        is_locked.set()
        assert PlaneResponse(exchange).status_code == 402
        time.sleep(9)
    workspace.leave(50_000_000)
    began = time.monotonic()
    again = ask(api)
    assert (again.status_code, is_replay(again)) == (200, False)
    assert time.monotonic() - began < 25
