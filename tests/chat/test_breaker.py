"""The circuit breaker: what is down is asked by one at a time, holds no money, and is closed only to who met it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from chat import breaker
from chat.breaker import FAILURES, MOST_SECONDS, PROBE_SECONDS, Upstream
from chat.errors import Fault, ModelBusy
from tests.support.money import eventually
from tests.support.upstream import FakeUpstream


@pytest.fixture
def clock(monkeypatch):
    """The breaker's own, which stands still."""
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr(breaker, "time", SimpleNamespace(monotonic=lambda: clock.now))
    breaker.forget()
    yield clock
    breaker.forget()


def upstream_of(tenant, model="m"):
    return Upstream("http://models.example/v1", model, tenant)


def fail(tenant, times=1, fault=Fault.FAILED):
    for _ in range(times):
        upstream_of(tenant).failed(fault)


def refused_for(tenant):
    """Milliseconds; None where it may be asked."""
    try:
        upstream_of(tenant).refuse_if_down()
    except ModelBusy as refusal:
        return refusal.retry_after_ms
    return None


# --- its rules ------------------------------------------------------------------------------------------------------


def test_it_opens_after_failures_in_a_row_and_an_answer_begins_anew(clock):
    fail("acme", FAILURES - 1, Fault.UNREACHABLE)
    upstream_of("acme").answered()
    fail("acme", FAILURES - 1, Fault.UNREACHABLE)
    assert refused_for("acme") is None
    fail("acme", 1, Fault.UNREACHABLE)
    assert refused_for("acme") == refused_for("globex") == 2_000
    # Another model at the same address is another upstream.
    upstream_of("acme", "n").refuse_if_down()


def test_one_call_is_let_through_and_what_becomes_of_it_decides(clock):
    fail("acme", FAILURES, Fault.UNREACHABLE)
    clock.now += 2
    assert refused_for("acme") is None
    assert refused_for("globex") == PROBE_SECONDS * 1_000
    fail("acme", 1, Fault.UNREACHABLE)
    assert refused_for("acme") == refused_for("globex") == 4_000
    clock.now += 4
    assert refused_for("globex") is None
    upstream_of("globex").answered()
    assert refused_for("acme") is refused_for("globex") is None


def test_a_call_that_was_let_through_and_says_nothing_is_not_waited_for(clock):
    fail("acme", FAILURES, Fault.UNREACHABLE)
    clock.now += 2
    assert refused_for("acme") is None
    clock.now += PROBE_SECONDS
    assert refused_for("globex") is None


def test_it_stays_open_longer_each_time_and_never_longer_than_a_minute(clock):
    fail("acme", FAILURES, Fault.UNREACHABLE)
    waits = []
    for _ in range(8):
        waits.append(refused_for("acme"))
        clock.now += waits[-1] / 1_000
        assert refused_for("acme") is None
        fail("acme", 1, Fault.UNREACHABLE)
    assert waits == [2_000, 4_000, 8_000, 16_000, 32_000, *[int(MOST_SECONDS * 1_000)] * 3]


def test_what_fails_for_one_tenant_alone_is_closed_to_that_one_alone(clock):
    fail("acme", 10 * FAILURES)
    assert refused_for("acme") is not None
    assert refused_for("globex") is None
    # One failure of a neighbour's may be its own fault, too.
    fail("globex")
    assert refused_for("globex") is refused_for("initech") is None
    fail("globex")
    assert refused_for("initech") is not None


def test_failures_spread_over_many_tenants_are_an_outage(clock):
    for tenant in range(FAILURES):
        assert refused_for("initech") is None
        fail(f"tenant-{tenant}")
    assert refused_for("initech") == 2_000


# --- in a call ------------------------------------------------------------------------------------------------------


def test_while_it_is_open_nothing_is_sent_and_no_money_is_held(workspace, globex, upstream, clock):
    upstream.status = 503
    api = workspace.api()
    assert [api.chat("hello").status_code for _ in range(FAILURES)] == [503] * FAILURES
    before = len(workspace.settled(lines=FAILURES))
    refused = api.chat("hello")
    body = refused.json()
    assert (refused.status_code, body["error"], body["retry_after_ms"]) == (503, "model_busy", 2_000)
    assert refused["Retry-After"] == "2"
    assert (len(upstream.calls), len(workspace.lines())) == (FAILURES, before)
    # The neighbour has done nothing, and asks.
    upstream.status = None
    assert globex.api().chat("hello").status_code == 200
    assert api.chat("hello").status_code == 200


@pytest.mark.parametrize("status", [400, 401, 404, 429])
def test_what_is_the_callers_or_the_operators_own_never_opens_it(workspace, upstream, clock, status):
    upstream.status = status
    for _ in range(FAILURES + 1):
        workspace.api().chat("hello")
    assert len(upstream.calls) == FAILURES + 1


def test_an_answer_that_was_cut_after_a_word_never_opens_it(workspace, upstream, clock):
    upstream.tokens, upstream.cut_after = ["one", "two"], 1
    for _ in range(FAILURES + 1):
        assert workspace.api().chat("hello").status_code == 502
    assert len(upstream.calls) == FAILURES + 1


def test_a_group_passes_over_what_is_down_and_one_call_finds_that_it_is_back(workspace, upstream, settings, clock):
    price = {"input": 1_000_000_000, "output": 1_000_000_000}
    with FakeUpstream(tokens=["second"]) as second:
        settings.MODELS = {
            name: {"price": price, "context": None, "kinds": ["chat"], "dialect": {"base_url": url, "model": name}}
            for name, url in (("fast", upstream.base_url), ("big", second.base_url))
        }
        settings.MODELS["smart"] = {"fallback": ["fast", "big"]}
        upstream.status = 500
        api = workspace.api()
        models = [api.chat("hello", model="smart").json()["model"] for _ in range(FAILURES + 3)]
        assert (set(models), len(upstream.calls)) == ({"big"}, FAILURES)
        # Passed over, it leaves no line of its own: nothing was held for it.
        assert eventually(lambda: len(workspace.lines()) == FAILURES + len(models))
        second.status, upstream.status = 500, None
        clock.now += 2
        assert api.chat("hello", model="smart").json()["model"] == "fast"
