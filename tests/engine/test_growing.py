"""Slices: little is held at first, more before it is used up, and never is more used than is held."""

import json
import threading
import time
from contextlib import ExitStack, contextmanager

import psycopg
import pytest

from billing.engine.store import LOCKED_SECONDS
from billing.models import Hold
from chat import growing
from tenants.connections import own_connection_params
from tests.support.money import (
    AT_FIRST,
    INPUT,
    OUTPUT,
    assert_books_agree,
    eventually,
    first_hold,
    reports,
    reservations_of,
    side_by_side,
    true_cost,
    trust,
)
from tests.support.plane import PlaneResponse


class Words:
    """So many, and `act()` before the first of them: by then the first slice is held, and no other."""

    def __init__(self, many, act):
        self.many, self.act = many, act

    def __iter__(self):
        self.act()
        return iter(["word "] * self.many)


@pytest.mark.on_standin
def test_an_answer_longer_than_its_first_slice_is_whole_and_exact(workspace, upstream, trusted):
    upstream.tokens, upstream.delay_between = ["word "] * 300, 0.002
    answer = workspace.api().chat("hello", max_tokens=512).json()
    assert (answer["usage"]["output_tokens"], answer["finish_reason"], answer["outcome"]) == (300, "stop", "exact")
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.overrun) == (10 * INPUT + 300 * OUTPUT, 0)
    assert_books_agree(workspace)


def test_an_answer_that_comes_in_one_burst_is_held_in_full(workspace, upstream, trusted):
    upstream.tokens = ["word "] * 300
    answer = workspace.api().chat("hello", max_tokens=512).json()
    assert (answer["usage"]["output_tokens"], answer["outcome"]) == (300, "exact")
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.overrun) == (10 * INPUT + 300 * OUTPUT, 0)
    assert_books_agree(workspace)


def test_an_answer_in_one_piece_is_held_in_full(workspace, upstream, trusted):
    frame = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":"stop"}]}\n\n' % (b"word " * 300)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":300,"total_tokens":310}}\n\n'
    upstream.raw = frame + usage + b"data: [DONE]\n\n"
    assert workspace.api().chat("hello", max_tokens=512).json()["outcome"] == "exact"
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.overrun) == (10 * INPUT + 300 * OUTPUT, 0)


def test_slices_are_named_after_the_hold_and_settled_in_order(workspace, upstream, trusted):
    upstream.tokens, upstream.delay_between, upstream.last_word_after = ["word "] * 200, 0.005, threading.Event()
    exchange = workspace.api().plane.begin("POST", "/api/chat/", {"prompt": "hello", "max_tokens": 512})
    assert eventually(lambda: (row := Hold.objects.filter(account=workspace.account).first()) and len(row.slices) >= 2)
    row = Hold.objects.get(account=workspace.account)
    assert [part["n"] for part in row.slices] == list(range(2, 2 + len(row.slices)))
    upstream.last_word_after.set()
    assert PlaneResponse(exchange).json()["outcome"] == "exact"
    assert_books_agree(workspace)
    slices = reservations_of(workspace)
    assert [one["idempotency_key"] for one in slices] == [str(row.pk), *(f"{row.pk}:{n}" for n in (2, 3, 4))]
    charged = [(one.get("committed") or {"amount": 0})["amount"] for one in slices]
    full = [one["reserved"]["amount"] for one in slices]
    used = [amount for amount in charged if amount]
    assert used[:-1] == full[: len(used) - 1]
    assert sum(charged) == 10 * INPUT + 200 * OUTPUT
    assert {one["status"] for one in slices} <= {"COMMITTED", "RELEASED"}


def test_a_slice_whose_answer_was_lost_is_not_taken_for_held(workspace, upstream, trusted, lossy):
    upstream.tokens, upstream.delay_between = Words(300, lambda: lossy.lose.update({"/reservations": 1})), 0.01
    answer = workspace.api().chat("hello", max_tokens=512).json()
    assert lossy.lose["/reservations"] == 0
    (line,) = workspace.settled(lines=1)
    assert (answer["outcome"], line.outcome, line.overrun) == ("exact", "exact", 0)
    assert line.cost == true_cost(upstream.spent)
    assert_books_agree(workspace)


def test_where_no_slice_is_to_be_had_the_answer_ends_paid_for_what_came(workspace, upstream, trusted):
    upstream.tokens, upstream.delay_between = ["word "] * 400, 0.005
    api = workspace.api()
    workspace.leave(first_hold() + 20 * OUTPUT)
    before = workspace.ledger()["spent"]
    answer = api.chat("hello", max_tokens=512).json()
    assert answer["finish_reason"] == "budget"
    (line,) = workspace.settled(lines=1)
    assert (line.outcome, line.overrun) == ("estimated", 0)
    assert line.cost <= line.estimate
    came = answer["response"].count("word")
    assert 0.8 <= line.cost / true_cost([(10, came)]) <= 1.25
    assert_books_agree(workspace, before=before)


@pytest.fixture
def unhurried(monkeypatch):
    """However slow the machine is, shorter slices are asked for until there are none."""
    monkeypatch.setattr(growing, "SHORTEN_SECONDS", 30.0)


@pytest.mark.usefixtures("unhurried")
def test_an_answer_that_the_budget_pays_for_is_whole_though_a_longer_slice_is_refused(workspace, upstream, trusted):
    """Money for 964 tokens was there, and an answer of 420 was cut at 326: each slice was as long as all before it."""
    upstream.tokens, upstream.delay_between = ["word "] * 420, 0.002
    api = workspace.api()
    workspace.leave(AT_FIRST + 900 * OUTPUT)
    before = workspace.ledger()["spent"]
    answer = api.chat("hello", max_tokens=1_000).json()
    assert (answer["usage"]["output_tokens"], answer["finish_reason"], answer["outcome"]) == (420, "stop", "exact")
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.overrun) == (10 * INPUT + 420 * OUTPUT, 0)
    assert_books_agree(workspace, before=before)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("more", [0, 7, 150])
def test_a_budget_is_used_up_to_a_few_tokens_before_an_answer_ends_for_it(workspace, upstream, trusted, more):
    upstream.tokens, upstream.last_word_after = ["word "] * 400, threading.Event()
    api = workspace.api()
    workspace.leave(AT_FIRST + more * OUTPUT)
    assert api.chat("hello", max_tokens=1_000).json()["finish_reason"] == "budget"
    (line,) = workspace.settled(lines=1)
    held = sum(one["reserved"]["amount"] for one in reservations_of(workspace))
    assert held == line.estimate
    assert AT_FIRST + more * OUTPUT - held < 8 * OUTPUT


def test_a_slow_answer_is_held_no_slices_of_next_to_nothing(workspace, upstream, trusted, monkeypatch):
    """Halved again and again before the answer waits for it, a slice came to no token, which is granted each time."""
    monkeypatch.setattr(growing, "GROW_AGAIN_SECONDS", 0.01)
    upstream.tokens, upstream.delay_between = ["word "] * 100, 0.03
    api = workspace.api()
    workspace.leave(AT_FIRST + 3 * OUTPUT)
    assert api.chat("hello", max_tokens=1_000).json()["finish_reason"] == "budget"
    workspace.settled(lines=1)
    assert [one["reserved"]["amount"] for one in reservations_of(workspace)] == [AT_FIRST]


@pytest.fixture
def away(lossy):
    """`with away("database"):` it answers nobody for that time."""

    @contextmanager
    def block(what):
        with ExitStack() as stack:
            if what == "authority":
                lossy.refuse["/reservations"] = 1_000
                stack.callback(lossy.refuse.clear)
            else:
                locking = stack.enter_context(psycopg.connect(**own_connection_params()))
                locking.execute("LOCK TABLE public.billing_hold IN SHARE ROW EXCLUSIVE MODE")
            yield

    return block


@pytest.mark.parametrize("what", ["authority", "database"])
def test_an_answer_that_nobody_could_be_asked_for_more_for_is_not_said_to_have_used_its_budget_up(
    workspace, upstream, trusted, away, what
):
    """An authority that was restarted ended all long answers with the word that their budget was at its end."""
    upstream.delay_between = 0.01
    trust(trusted, app="api")
    api = workspace.api(alone=True)

    def ask(path, **asked):
        with ExitStack() as stack:
            upstream.tokens = Words(400, lambda: stack.enter_context(away(what)))
            return api.post(path, {"max_tokens": 512, **asked}).content.decode()

    assert json.loads(ask("/api/chat/", prompt="hello"))["finish_reason"] == "cancelled"
    assert workspace.settled(lines=1)
    time.sleep(LOCKED_SECONDS)
    told = ask("/v1/chat/completions", model=trusted, messages=[{"role": "user", "content": "hello"}], stream=True)
    assert '"code":"unavailable"' in told
    assert '"finish_reason":"length"' not in told
    assert {line.outcome for line in workspace.settled(lines=2)} == {"estimated"}
    assert_books_agree(workspace)


# --- what only a report tells of ---


def test_thoughts_that_only_the_reports_tell_of_are_held_before_they_are_charged(workspace, upstream, trusted):
    """After twenty easy questions eight hard ones at once were held for 64 tokens each, and billed at 400."""
    upstream.tokens, upstream.usage = ["word "], reports(400)
    answers = side_by_side(workspace.api(), 8, max_tokens=512)
    assert [answer.json()["outcome"] for answer in answers] == ["exact"] * 8
    assert {(line.cost, line.overrun) for line in workspace.settled(lines=8)} == {(10 * INPUT + 400 * OUTPUT, 0)}
    assert_books_agree(workspace)
    # From then on all is held at first.
    assert workspace.api().chat("hello", max_tokens=512).json()["outcome"] == "exact"
    assert workspace.settled(lines=9)
    assert reservations_of(workspace)[-1]["reserved"]["amount"] > 512 * OUTPUT


def test_a_report_of_more_than_the_budget_has_is_charged_up_to_what_was_held(workspace, upstream, trusted):
    upstream.tokens, upstream.usage = ["word "], reports(400)
    workspace.leave(AT_FIRST + 20 * OUTPUT)
    before = workspace.ledger()["spent"]
    assert workspace.api().chat("hello", max_tokens=512).json()["outcome"] == "overrun"
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.cost + line.overrun) == (AT_FIRST, 10 * INPUT + 400 * OUTPUT)
    assert_books_agree(workspace, before=before)


def test_what_a_report_counts_is_asked_for_though_a_longer_slice_was_refused(workspace, upstream, trusted):
    """The slice that was under way as the answer ended was of 64 tokens more, and sixteen were missing."""
    frame = b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":"stop"}]}\n\n' % (b"word " * 33)
    upstream.raw = frame + b"data: %s\n\n" % json.dumps({"choices": [], "usage": reports(80)}).encode()
    upstream.raw += b"data: [DONE]\n\n"
    workspace.leave(AT_FIRST + 20 * OUTPUT)
    before = workspace.ledger()["spent"]
    assert workspace.api().chat("hello", max_tokens=512).json()["outcome"] == "exact"
    (line,) = workspace.settled(lines=1)
    assert (line.cost, line.overrun) == (10 * INPUT + 80 * OUTPUT, 0)
    assert_books_agree(workspace, before=before)


def test_a_report_of_more_than_was_asked_for_is_false_and_nothing_is_held_for_it(workspace, upstream, trusted):
    upstream.tokens, upstream.usage = ["word "], reports(100_000)
    assert workspace.api().chat("hello", max_tokens=512).json()["outcome"] == "overrun"
    (line,) = workspace.settled(lines=1)
    assert (line.cost, len(reservations_of(workspace))) == (AT_FIRST, 1)
    assert_books_agree(workspace)


@pytest.mark.parametrize(("seen", "is_whole"), [({}, True), ({"reasoning_content": "hm"}, False)])
def test_a_model_whose_report_names_thoughts_that_its_stream_did_not_show_is_held_for_whole(
    workspace, upstream, trusted, seen, is_whole
):
    """An easy question takes so few that the report is about what was seen; a hard one takes thousands."""
    words = [{"choices": [{"index": 0, "delta": {"content": "word ", **seen}, "finish_reason": None}]}] * 5
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    report = {"choices": [], "usage": reports(6, completion_tokens_details={"reasoning_tokens": 1})}
    upstream.raw = b"".join(b"data: %s\n\n" % json.dumps(frame).encode() for frame in (*words, end, report))
    upstream.raw += b"data: [DONE]\n\n"
    for _ in range(2):
        assert workspace.api().chat("hello", max_tokens=512).json()["outcome"] == "exact"
    first, second = (one["reserved"]["amount"] for one in reservations_of(workspace))
    assert first == AT_FIRST
    assert (second > 512 * OUTPUT) is is_whole
