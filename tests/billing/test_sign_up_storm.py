"""Many sign-ups at once, at the real web and jobs processes: one wins, and the others are told so at once."""

import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import psycopg
import pytest
from django.db import connection

from billing.models import Account
from tenants.context import public_scope
from tests.support.cast import PASSWORD
from tests.support.crash import assert_made_once
from tests.support.jobs import JobsProcess, rows, until
from tests.support.web import WebProcess

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("app")]
THREADS, WORKERS = 16, 2
# Of those who are refused. A machine that runs two sides of tests takes its time; the winner waits for a hash besides.
SECONDS = 20.0
# What is told at once costs little, on a busy machine too: a password's hash for each would be more than twice this.
CPU_SECONDS = 5.0


@pytest.fixture(scope="module")
def web(app, database_url, authority):
    parts = {"database_url": database_url, "authority": authority}
    with (
        JobsProcess(**parts),
        WebProcess(**parts, workers=WORKERS, threads=THREADS, PGAPPNAME="storm") as web,
    ):
        all_at_once(web, [form(f"warm-{uuid.uuid4().hex[:8]}") for _ in range(4)])
        yield web


def form(slug, email="one@storm.example"):
    return {"name": "Storm", "slug": slug, "email": email, "password": PASSWORD}


class Watch(threading.Thread):
    """How many of Postgres' backends web takes at most."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._over = threading.Event()

    def run(self) -> None:
        with public_scope():
            self._watch()
        connection.close()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            those = "FROM pg_stat_activity WHERE application_name = 'storm' AND datname = current_database()"
            ((now,),) = rows(f"SELECT count(*) {those}")
            self.most = max(self.most, now)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self._over.set()
        self.join()


def all_at_once(web, forms, *, tries=1):
    """(status, answer, seconds) of each, in no order. Who is told that web is busy asks again, so many times in all."""
    together = threading.Barrier(len(forms))

    def post(form):
        with httpx.Client(base_url=f"http://127.0.0.1:{web.port}", timeout=60, trust_env=False) as client:
            client.get("/healthz")
            together.wait(30)
            began = time.perf_counter()
            for left in reversed(range(tries)):
                answer = client.post("/api/signup/", json=form, headers={"host": f"localhost:{web.port}"})
                if answer.status_code != 503 or not left:
                    break
                time.sleep(float(answer.headers["Retry-After"]))
            return answer.status_code, json.dumps(answer.json()), time.perf_counter() - began

    with ThreadPoolExecutor(len(forms)) as pool:
        return list(pool.map(post, forms))


def cpu(web):
    """CPU-seconds of web's processes so far."""
    family = [psutil.Process(web.process.pid), *psutil.Process(web.process.pid).children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in family)


@pytest.mark.parametrize(("count", "same"), [(40, True), (50, False)])
def test_of_many_who_want_one_slug_at_once_one_gets_it_and_the_others_are_told_at_once(web, count, same):
    slug = f"storm-{uuid.uuid4().hex[:8]}"
    emails = ["one@storm.example"] * count if same else [f"{number}@storm.example" for number in range(count)]
    before = cpu(web)
    with Watch() as watch:
        # On a busy machine, two seconds may not be enough to come to one's turn.
        answers = all_at_once(web, [form(slug, email) for email in emails], tries=5)
    refused = [(text, seconds) for status, text, seconds in answers if status == 409]
    (won,) = [answer for answer in answers if answer[0] in (201, 202)]
    worked = cpu(web) - before
    print(
        f"{count}: slowest refusal {max(seconds for _, seconds in refused):.2f} s, winner {won[2]:.2f} s, "
        f"{worked:.2f} CPU-s of web, {watch.most} backends"
    )
    assert [answer for answer in answers if answer[0] not in (201, 202, 409)] == []
    assert len(refused) == count - 1
    assert len({text for text, _ in refused}) == 1
    assert max(seconds for _, seconds in refused) < SECONDS
    assert worked < CPU_SECONDS
    assert watch.most <= WORKERS * THREADS
    account = Account.objects.select_related("tenant").get(tenant__slug=slug)
    until(lambda: Account.objects.get(pk=account.pk).status == Account.Status.ACTIVE, seconds=90)
    account.refresh_from_db()
    assert_made_once(account)


def test_a_sign_up_waits_for_one_that_a_busy_machine_holds_up(web, database_url):
    """Longer than web waits for a lock of any other kind."""
    slug = f"waits-{uuid.uuid4().hex[:8]}"
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('billing:trials', 0))")
        asked = pool.submit(all_at_once, web, [form(slug)])
        until(lambda: other.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() != (0,), seconds=20)
        time.sleep(1.5)
        other.rollback()
        ((status, text, _),) = asked.result()
    assert status in (201, 202), text
