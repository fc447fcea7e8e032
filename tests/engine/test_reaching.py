"""What only a report tells of is held once the answer has come: whatever happens then, it is paid for once."""

import json

import psycopg
import pytest

from billing.engine.loop import here
from tenants.connections import own_connection_params
from tests.support.money import AT_FIRST, INPUT, OUTPUT, assert_books_agree, on_loop, reports, trust


@pytest.fixture
def reaching(lossy):
    """`reaching(act)`: `act()` is called before the second reservation is passed on to the authority."""

    def call(act):
        lossy.after["/reservations"] = lambda: lossy.before.update({"/reservations": act})

    return call


@pytest.mark.parametrize("how", ["refuse", "lose"])
def test_thoughts_are_asked_for_again_where_nobody_could_be_asked(workspace, upstream, trusted, lossy, reaching, how):
    """One answer of the authority that went wrong was 330 tokens that nobody paid for."""
    upstream.tokens, upstream.usage = ["word "], reports(400)
    reaching(lambda: getattr(lossy, how).update({"/reservations": 2}))
    assert workspace.api().chat("hello", max_tokens=512).json()["outcome"] == "exact"
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.overrun) == (10 * INPUT + 400 * OUTPUT, 0)
    assert_books_agree(workspace)


def test_an_answer_that_came_whole_in_one_read_is_not_cut_where_nobody_could_be_asked(
    workspace, upstream, trusted, lossy, reaching
):
    """All its words were there, and its reader was told that they were not."""
    frame = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":"stop"}]}\n\n' % (b"word " * 300)
    upstream.raw = frame + b"data: %s\n\n" % json.dumps({"choices": [], "usage": reports(300)}).encode()
    upstream.raw += b"data: [DONE]\n\n"
    reaching(lambda: lossy.refuse.update({"/reservations": 2}))
    answer = workspace.api().chat("hello", max_tokens=512).json()
    assert (answer["finish_reason"], answer["outcome"]) == ("stop", "exact")
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.overrun) == (10 * INPUT + 300 * OUTPUT, 0)
    assert_books_agree(workspace)


@pytest.mark.parametrize("what", ["the process", "the reader"])
def test_an_answer_that_came_whole_is_not_said_to_be_stopped_while_its_thoughts_are_held(
    workspace, upstream, trusted, reaching, what
):
    """Its client was told of a failure after the last word, asked again, and paid twice."""
    upstream.tokens, upstream.usage = ["word "], reports(400)
    trust(trusted, app="api")
    key, stops, asked = workspace.key(), [], {"max_tokens": 512}
    api = workspace.api(key)

    def stop():
        if what == "the process":
            on_loop(lambda: here().cut_all())
        else:
            with psycopg.connect(**own_connection_params()) as own:
                its = "SELECT id FROM public.billing_hold WHERE account_id = %s"
                (hold,) = own.execute(its, [workspace.account.pk]).fetchone()
            stops.append(workspace.api(key).plane.post(f"/api/chat/calls/{hold}/stop/").status_code)

    reaching(stop)
    assert api.chat("hello", **asked).json()["finish_reason"] == "stop"
    assert stops == ([202] if what == "the reader" else [])
    if what == "the process":
        reaching(stop)
        asked |= {"model": trusted, "messages": [{"role": "user", "content": "hello"}], "stream": True}
        assert b'"error"' not in api.post("/v1/chat/completions", asked).content
    assert {line.cost for line in workspace.settled()} == {10 * INPUT + 400 * OUTPUT}
    assert_books_agree(workspace)


@pytest.mark.parametrize(("tokens_output", "is_believed"), [(306, True), (307, False)])
def test_each_of_several_answers_may_have_an_end_that_its_report_counts(
    workspace, upstream, trusted, tokens_output, is_believed
):
    """Three that were thought to their limits, with an end each, were charged for the first slice of one."""
    trust(trusted, app="api")
    upstream.tokens, upstream.usage = ["word "], reports(tokens_output)
    asked = {"model": trusted, "messages": [{"role": "user", "content": "hello"}], "stream": True}
    assert workspace.api(alone=True).post("/v1/chat/completions", {**asked, "n": 3, "max_tokens": 100}).content
    (line,) = workspace.settled(lines=1)
    assert line.cost == (10 * INPUT + 306 * OUTPUT if is_believed else AT_FIRST)
    assert_books_agree(workspace)
