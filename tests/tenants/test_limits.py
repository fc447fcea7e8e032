"""Limits: what is let through, how long the others wait, and that all processes count together."""

from __future__ import annotations

import math
import subprocess
import sys
import uuid
from contextlib import contextmanager, suppress
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.test import RequestFactory

from tenants import limits
from tenants.http import RateLimited
from tenants.limits import Rate, Tries, address_of, give_back, is_known, key_of, masked, remember, reset, take
from tenants.models import Limit
from tenants.tasks import forget_limits
from tenants.threads import TenantExecutor
from tests.support.web import ROOT

# In minutes, so that a slow machine is not seen.
MINUTE = 60.0
RATE = Rate("test-rate", burst=5, every=60 * MINUTE)
TRIES = Tries("test-tries", free=5, first=MINUTE, longest=900 * MINUTE, forget_after=3600 * MINUTE)


@pytest.fixture
def who(database):
    return uuid.uuid4().hex


def later(limit, who, minutes):
    """So many minutes go by for this row."""
    gone = timedelta(minutes=minutes)
    Limit.objects.filter(key=key_of(limit.name, (who,))).update(
        free_at=F("free_at") - gone, kept_until=F("kept_until") - gone
    )


def refused(limit, *who, cost=1):
    """The minutes that are told, or 0 where it is let through."""
    try:
        take(limit, *who, cost=cost)
    except RateLimited as exc:
        return max(1, round(exc.retry_after_ms / 1000 / MINUTE))
    return 0


def test_a_rate_lets_a_burst_through_and_then_one_at_a_time(who):
    assert [refused(RATE, who) for _ in range(7)] == [0, 0, 0, 0, 0, 60, 60]
    later(RATE, who, 59)
    assert refused(RATE, who) == 1
    later(RATE, who, 1)
    assert [refused(RATE, who) for _ in range(2)] == [0, 60]
    later(RATE, who, 3 * 60)
    assert refused(RATE, who, cost=4) == 60
    assert refused(RATE, who, cost=3) == 0
    later(RATE, who, 10_000)
    assert [refused(RATE, who) for _ in range(6)] == [0, 0, 0, 0, 0, 60]


def test_what_is_given_back_can_be_taken_again(who):
    for _ in range(5):
        take(RATE, who)
    give_back(RATE, who)
    assert [refused(RATE, who) for _ in range(2)] == [0, 60]
    reset(RATE, who)
    assert refused(RATE, who, cost=5) == 0


def test_a_neighbour_and_another_limit_count_apart(who):
    assert refused(RATE, who, cost=5) == 0
    assert refused(RATE, who, "x") == refused(RATE, who + "x") == refused(Rate("other", 1, 1.0), who) == 0
    assert key_of("a", ("b", "c")) != key_of("a", ("bc",)) != key_of("ab", ("c",))


def test_the_wait_grows_and_a_refused_try_makes_it_no_longer(who):
    waits = []
    for _ in range(4):
        take(TRIES, who)
    for _ in range(12):
        take(TRIES, who)
        waits.append(refused(TRIES, who))
        assert refused(TRIES, who) == waits[-1]
        later(TRIES, who, waits[-1])
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    # However long somebody tried: the power is of no more than the server can write.
    Limit.objects.filter(key=key_of(TRIES.name, (who,))).update(count=100_000)
    assert (refused(TRIES, who), refused(TRIES, who)) == (0, 900)


def test_tries_are_forgotten_after_an_hour_without_one_or_by_a_reset(who):
    for _ in range(6):
        take(TRIES, who)
        later(TRIES, who, 1)
    later(TRIES, who, 3590)
    assert (refused(TRIES, who), refused(TRIES, who)) == (0, 4)
    later(TRIES, who, 3601)
    assert [refused(TRIES, who) for _ in range(6)] == [0, 0, 0, 0, 0, 1]
    reset(TRIES, who)
    assert [refused(TRIES, who) for _ in range(6)] == [0, 0, 0, 0, 0, 1]
    give_back(TRIES, who)
    assert [refused(TRIES, who) for _ in range(2)] == [0, 1]


def test_threads_and_processes_count_together(who):
    code = (
        "import os, sys, django\n"
        "os.environ['DJANGO_SETTINGS_MODULE'] = 'config.settings_test'\ndjango.setup()\n"
        "from django.db import connection\nconnection.settings_dict['NAME'] = sys.argv[1]\n"
        "from tests.tenants.test_limits import many\nprint('ready', flush=True)\nprint(many(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, connection.settings_dict["NAME"], who]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"ready\n"
        let_through = many(who)
        theirs = int(other.stdout.readline())
    assert let_through + theirs == 5 + 5


def many(who):
    """How many of 20 simultaneous tries are let through, by the two kinds of limit together."""
    rate, tries = Rate("storm", burst=5, every=600.0), Tries("storm-tries", free=5, first=900.0)

    def one(number):
        return sum(refused(limit, who) == 0 for limit in (rate, tries))

    with TenantExecutor(8) as pool:
        return sum(pool.map(one, range(20)))


@contextmanager
def overtaken(*args, **kwargs):
    """Each try inside begins, and another one is counted before it is. What the others were told."""
    others = []

    def overtake(execute, sql, params, many, context):
        # The transaction begins with its first statement, and `now()` stays at that moment.
        execute("SELECT 1", (), False, context)
        with TenantExecutor(1) as pool:
            others.append(pool.submit(refused, *args, **kwargs).result())
        return execute(sql, params, many, context)

    with connection.execute_wrapper(overtake):
        yield others


def test_a_try_that_began_before_another_and_is_counted_after_it_is_no_early_one(who):
    take(TRIES, who)
    with overtaken(TRIES, who) as others:
        assert [refused(TRIES, who) for _ in range(3)] == [0, 0, 1]
    # All five were free, and no more than five.
    assert others == [0, 0, 1]
    with overtaken(RATE, who, cost=4) as others:
        assert [refused(RATE, who) for _ in range(2)] == [0, 60]
    assert others == [0, 240]


def test_a_refused_try_counts_inside_a_workspace_and_never_inside_a_transaction(who, acme):
    with acme.scope():
        assert refused(RATE, who, cost=5) == 0
    assert refused(RATE, who) == 60
    with pytest.raises(RuntimeError), transaction.atomic():
        take(RATE, who)


def test_a_refusal_says_how_long_in_words_and_in_milliseconds():
    for seconds, words in [(0.01, "a second"), (119, "119 seconds"), (120.1, "3 minutes"), (900, "15 minutes")]:
        error = limits.too_soon("Too many tries.", seconds)
        assert error.message == f"Too many tries. Try again in {words}."
        assert (error.status, error.code, error.retry_after_ms) == (429, "rate_limited", math.ceil(seconds) * 1000)


def test_figures_that_let_nobody_in_are_refused():
    for wrong in (
        lambda: Rate("x", burst=0, every=1),
        lambda: Rate("x", burst=1, every=0),
        lambda: Tries("x", free=0),
        lambda: Tries("x", longest=7200),
        lambda: Tries("x", first=0),
        lambda: take(RATE, "somebody", cost=6),
        lambda: take(TRIES, "somebody", cost=2),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_what_says_nothing_any_more_is_deleted_and_nothing_else(who):
    remember("known", who, seconds=60)
    take(RATE, who)
    take(TRIES, who)
    gone = [key_of(RATE.name, (who,)), key_of(TRIES.name, (who,)), key_of("known", (who,))]
    forget_limits(timestamp=0)
    assert Limit.objects.filter(key__in=gone).count() == 3
    later(RATE, who, 61)
    later(Rate("known", 1, 1), who, 2)
    assert not is_known("known", who)
    forget_limits(timestamp=0)
    assert [bytes(row.key) for row in Limit.objects.filter(key__in=gone)] == [key_of(TRIES.name, (who,))]


@pytest.mark.parametrize(
    ("front", "headers", "address"),
    [
        (True, {"X-Real-IP": "192.0.2.7"}, "192.0.2.7"),
        (True, {"X-Real-IP": "2001:db8:1:2:3:4:5:6"}, "2001:db8:1:2::/64"),
        (True, {"X-Real-IP": "::ffff:192.0.2.7"}, "192.0.2.7"),
        (True, {"X-Real-IP": "fe80::1%eth0"}, "fe80::/64"),
        # IPv4 behind a translator, which would be one network of everybody; and one IPv4 client's 65,536 networks.
        (True, {"X-Real-IP": "64:ff9b::192.0.2.7"}, "192.0.2.7"),
        (True, {"X-Real-IP": "2002:c000:207:99::1"}, "192.0.2.7"),
        # The client's own words.
        (True, {"X-Forwarded-For": "198.51.100.1"}, "127.0.0.1"),
        (True, {"X-Real-IP": "nobody"}, "127.0.0.1"),
        (False, {"X-Forwarded-For": "198.51.100.1, 192.0.2.7", "X-Real-IP": "198.51.100.1"}, "192.0.2.7"),
        (False, {"X-Real-IP": "198.51.100.1"}, "127.0.0.1"),
        # Some proxies name the port.
        (False, {"X-Forwarded-For": "198.51.100.1:1, 192.0.2.7:4711"}, "192.0.2.7"),
        (False, {"X-Forwarded-For": "[2001:db8:1:2::7]:4711"}, "2001:db8:1:2::/64"),
    ],
)
def test_an_address_is_what_the_front_says_and_not_what_the_client_says(settings, front, headers, address):
    settings.FRONT = front
    assert address_of(RequestFactory().get("/", headers=headers)) == address


def test_logs_get_a_network_and_not_an_address(settings):
    assert masked("192.0.2.77") == "192.0.2.0/24"
    assert masked("2001:db8:1:2::/64") == "2001:db8:1::/48"
    assert masked("unknown") == "unknown"
    assert address_of(RequestFactory().get("/", REMOTE_ADDR="")) == "unknown"


def test_the_table_names_nobody(who):
    with suppress(RateLimited):
        take(RATE, who, "alice@acme.example", "192.0.2.7")
    with connection.cursor() as cursor:
        cursor.execute("SELECT string_agg(l::text, '') FROM public.tenants_limit l")
        (everything,) = cursor.fetchone()
    assert who.encode().hex() not in everything
    assert b"alice".hex() not in everything
