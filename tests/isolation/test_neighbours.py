"""acme and globex at once, in twenty threads: each books to its own ledger, however it pays."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from runcycles import cycles

from billing.client import current_subject_tenant
from billing.guard import guarded, reserve
from tests.support.factories import WorkspaceFactory

pytestmark = pytest.mark.usefixtures("upstream")

CALLS, THREADS = 10, 20


@pytest.fixture
def pair(app):
    return WorkspaceFactory(), WorkspaceFactory()


def in_threads(work):
    """`work(number)` in twenty threads at once; half of them are for each of the pair."""
    met = threading.Barrier(THREADS)

    def run(number):
        try:
            met.wait(20)
            for _ in range(CALLS):
                work(number)
        finally:
            connection.close()

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(run, number) for number in range(THREADS)]:
            done.result()


def assert_booked(pair, costs):
    for workspace, cost in zip(pair, costs, strict=True):
        total = cost * CALLS * THREADS // 2
        workspace.settled(seconds=30)
        assert workspace.ledger()["spent"] == total
        yield workspace, total


def test_chats_book_to_their_own_ledger(pair, upstream):
    keys = [workspace.key() for workspace in pair]

    def chat(number):
        workspace = pair[number % 2]
        response = workspace.api(keys[number % 2], bare=number % 4 > 1).chat(f"from {workspace.slug}", max_tokens=8)
        assert response.status_code == 200, response.content

    in_threads(chat)
    for workspace, total in assert_booked(pair, (26_000, 26_000)):
        lines = workspace.lines()
        assert len(lines) == CALLS * THREADS // 2
        assert sum(line.cost for line in lines) == total
        with workspace.scope():
            from chat.models import Message

            said = set(Message.objects.filter(role="user").values_list("text", flat=True))
        assert said == {f"from {workspace.slug}"}


def test_the_guard_books_to_its_own_ledger(pair):
    def pay(number):
        ask = {"app": "test", "action_kind": "test", "action_name": "guard", "estimate": 1_000}
        with reserve(pair[number % 2].tenant, **ask) as paid:
            paid.dispatch(lambda: None)
            paid.record(cost=100 + number % 2)

    in_threads(pay)
    for workspace, _ in assert_booked(pair, (100, 101)):
        assert {line.cost for line in workspace.lines()} <= {100, 101}
        assert len({line.cost for line in workspace.lines()}) == 1


def test_guarded_functions_book_to_their_own_ledger(pair):
    @guarded(1_000, actual=lambda cost: cost)
    def call(cost):
        return cost

    def pay(number):
        with pair[number % 2].scope():
            call(200 + number % 2)

    in_threads(pay)
    list(assert_booked(pair, (200, 201)))


def test_plain_cycles_functions_book_to_their_own_ledger(pair):
    @cycles(estimate=1_000, actual=lambda cost: cost, tenant=current_subject_tenant)
    def call(cost):
        return cost

    def pay(number):
        with pair[number % 2].scope():
            call(300 + number % 2)

    in_threads(pay)
    list(assert_booked(pair, (300, 301)))
