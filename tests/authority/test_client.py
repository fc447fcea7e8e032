"""The client's own habits against this server: what it repeats, what it falls back on, what it takes for an answer."""

from __future__ import annotations

import time

import pytest
from runcycles import Action, Amount, CyclesClient, CyclesConfig, Subject, Unit, cycles
from runcycles.exceptions import BudgetExceededError, ReservationExpiredError

from tests.support.lossy import LossyProxy
from tests.support.receiver import eventually


@pytest.fixture
def proxy(authority):
    with LossyProxy(authority.runtime_url) as proxy:
        yield proxy


@pytest.fixture
def account(open_account):
    return open_account("client", 10_000)


@pytest.fixture
def client(proxy, account, tmp_path):
    config = CyclesConfig(
        base_url=proxy.url,
        api_key=account.app.key,
        tenant=account.tenant_id,
        read_timeout=5.0,
        retry_initial_delay=0.1,
        journal_dir=str(tmp_path),
    )
    with CyclesClient(config) as client:
        yield client


def hold(client, account, amount=1_000, **more):
    return client.stream_reservation(
        subject=Subject(tenant=account.tenant_id),
        action=Action(kind="test", name="client"),
        estimate=Amount(unit=Unit.USD_MICROCENTS, amount=amount),
        **more,
    )


def wait_for(account, **figures):
    deadline = time.monotonic() + 15
    while (now := account.figures()) | figures != now and time.monotonic() < deadline:
        time.sleep(0.1)
    assert account.figures() | figures == account.figures()


def test_a_create_whose_answer_was_lost_is_repeated_and_holds_once(client, account, proxy):
    proxy.lose["/reservations"] = 1
    with hold(client, account) as paid:
        assert account.figures()["reserved"] == 1_000
        paid.usage.actual_cost = 300
    assert [path for _, path in proxy.seen].count("/v1/reservations") == 2
    assert (account.figures()["spent"], account.figures()["reserved"]) == (300, 0)


def test_a_commit_whose_answer_was_lost_is_repeated_and_charges_once(client, account, proxy):
    with hold(client, account) as paid:
        paid.usage.actual_cost = 300
        proxy.lose["/commit"] = 2
    wait_for(account, spent=300, reserved=0)
    time.sleep(1)
    assert account.figures()["spent"] == 300


def test_a_commit_that_came_too_late_is_booked_as_an_event_once(client, account, proxy):
    proxy.refuse["/extend"] = 1_000
    proxy.lose["/events"] = 1
    with hold(client, account, ttl_ms=1_000, grace_period_ms=0) as paid:
        time.sleep(1.3)
        paid.usage.actual_cost = 300
    assert isinstance(paid.settlement_error, ReservationExpiredError)
    wait_for(account, spent=300, reserved=0)
    assert any(path == "/v1/events" for _, path in proxy.seen)


def test_a_short_hold_is_extended_while_it_is_needed(client, account):
    with hold(client, account, ttl_ms=10_000) as paid:

        def is_extended() -> bool:
            row = client.get_reservation(paid.reservation_id).body
            return bool(row["expires_at_ms"] - row["created_at_ms"] >= 20_000)

        assert eventually(is_extended)  # the proxy has seen the request before the authority has worked on it
        paid.usage.actual_cost = 1
    assert account.figures()["spent"] == 1


def test_a_long_hold_is_not_extended_for_nothing(client, account, proxy):
    with hold(client, account, ttl_ms=60_000) as paid:
        time.sleep(0.3)
        paid.usage.actual_cost = 1
    assert not any(path.endswith("/extend") for _, path in proxy.seen)
    assert len(proxy.seen) == 2  # the create and the commit: its strict reading took both answers


def test_a_refusal_has_its_own_class_and_runs_nothing(client, account):
    ran = []
    with pytest.raises(BudgetExceededError):
        cycles(estimate=10_001, client=client)(lambda: ran.append(1))()
    assert ran == []


def test_a_function_that_raises_gives_its_hold_back(client, account):
    @cycles(estimate=1_000, client=client)
    def call():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        call()
    assert (account.figures()["spent"], account.figures()["reserved"]) == (0, 0)


def test_a_dry_run_answers_without_a_hold(client, account):
    ran = []
    result = cycles(estimate=1_000, client=client, dry_run=True)(lambda: ran.append(1))()
    assert result.decision == "ALLOW"
    assert ran == []
    assert account.figures()["reserved"] == 0
