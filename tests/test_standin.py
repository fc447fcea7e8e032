"""The stand-in for the real servers is as slow and as different as they are, by their recordings where there are."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.protocol.player import RECORDED, Play, load
from tests.support.authority import UNIT, AuthorityProbe, RuntimeCaller
from tests.support.standin import StandIn

pytestmark = pytest.mark.embedded("This tests the stand-in for such servers, before the embedded authority.")


@pytest.fixture(scope="module")
def quick(authority):
    """Its differences without its slownesses."""
    with StandIn(authority, check_seconds=0, list_seconds=0) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def slow(authority):
    with StandIn(authority, cold_seconds=1.0, check_seconds=0.4, list_seconds=0.8) as stand_in:
        yield stand_in


@pytest.fixture
def new_caller(slow):
    """Makes a fresh tenant's app. Its key has never been used."""
    probe = AuthorityProbe(slow)

    def make():
        tenant = f"cold-{uuid.uuid4().hex[:10]}"
        probe.create_tenant(tenant)
        probe.create_budget(tenant, 1_000)
        return RuntimeCaller(slow.runtime_url, tenant, probe.create_key(tenant)["key_secret"])

    yield make
    probe.close()


@pytest.fixture
def caller(new_caller):
    return new_caller()


def taken(act):
    began = time.monotonic()
    act()
    return time.monotonic() - began


def is_quick(act, seconds, *, before=lambda: None):
    """Whether it takes less: at the best of a few tries, for a machine may stand still in any of them."""
    for _ in range(5):
        before()
        if taken(act) < seconds:
            return True
    return False


@pytest.mark.parametrize(
    ("name", "otherwise"),
    # Below /v1/admin/budgets/ they ask for a tenant's key first, 401, before they know no such address.
    [("fund_idempotency_shared", set()), ("closed", set()), ("paths", {75, 76})],
)
def test_it_answers_as_the_real_servers_do_their_quirks_included(quick, name, otherwise):
    planes = {"runtime": quick.runtime_url, "admin": quick.admin_url}
    report = Play(load(RECORDED / f"{name}.json"), planes, quick.admin_key, pytest.fail, lambda plane, answer: []).run()
    wrong = {step: fault for step, fault in report.differing.items() if step not in otherwise}
    assert wrong == {}
    assert report.fitted


def test_each_request_that_meets_a_cold_key_pays_for_itself_on_two_cores(caller, new_caller):
    def hold_four(app):
        with ThreadPoolExecutor(4) as pool:
            return taken(lambda: list(pool.map(lambda _: app.hold(1), range(4))))

    # 4 checks on 2 cores: twice 0.4 s. Shared, it would be 0.4 s; one after the other, 1.6 s. What a machine adds that
    # stands still is in one of a few tries, and not in each.
    tries = [hold_four(caller)]
    while tries[-1] >= 1.5 and len(tries) < 5:
        tries.append(hold_four(new_caller()))
    assert 0.75 < min(tries) < 1.5, tries
    assert is_quick(lambda: caller.hold(1), 0.35)
    time.sleep(1.1)
    assert taken(lambda: caller.hold(1)) > 0.4


def test_a_dead_key_is_refused_without_being_compared_and_costs_nothing(caller):
    caller.http.headers["X-Cycles-API-Key"] = f"cyc_live_{uuid.uuid4().hex}"
    assert caller.reserve(1).status_code == 401
    assert is_quick(lambda: caller.reserve(1), 0.35, before=lambda: time.sleep(1.1))


def test_lists_are_slow_and_the_look_up_is_not(caller, slow):
    caller.hold(1)
    for path in ("/v1/balances", "/v1/reservations"):
        assert taken(lambda path=path: caller.http.get(path, params={"tenant": caller.tenant_id})) > 0.8
    probe = AuthorityProbe(slow)
    assert is_quick(lambda: probe.figures(f"tenant:{caller.tenant_id}"), 0.4)
    probe.close()


def test_there_is_no_caps_extension(quick):
    answer = httpx.put(
        f"{quick.admin_url}/v1/x-embedded/budgets/caps",
        params={"scope": "tenant:nobody", "unit": UNIT},
        json={"max_tokens": 1},
        headers={"X-Admin-API-Key": quick.admin_key},
    )
    assert (answer.status_code, answer.json()["error"]) == (500, "INTERNAL_ERROR")
