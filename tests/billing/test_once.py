"""A builder's own route under an Idempotency-Key: whatever its code does, no call stays unsettled, no key stuck."""

import datetime

import pytest

from billing import repeats
from billing.errors import IdempotencyConflict, IdempotencyLost
from billing.guard import guarded
from billing.repeats import Claim, Told, once, request_of
from chat.calls import complete
from tenants.http import Invalid
from tenants.resolve import Asker
from tests.support.money import eventually

pytestmark = pytest.mark.usefixtures("patient")

HELLO = [{"role": "user", "content": "hello"}]


def request(workspace, *, route="haiku", key="k-1", body=None):
    return request_of(Asker(workspace.tenant, workspace.owner), route, key, body or {"topic": "rain"})


@guarded(estimate=100, actual=70, app="haiku", claim=lambda claim, tell: claim)
def buy(claim, tell):
    claim.tell = tell
    return "rain"


def test_a_repeat_is_told_what_the_route_said_and_another_body_is_a_conflict(workspace):
    with workspace.scope():
        with once(request(workspace)) as claim:
            buy(claim, lambda settled: Told(200, {"haiku": "rain", "microcents": settled.final.cost}))
        with once(request(workspace)) as found:
            assert found == Told(200, {"haiku": "rain", "microcents": 70})
        with pytest.raises(IdempotencyConflict), once(request(workspace, body={"topic": "snow"})):
            pass
    assert [line.cost for line in workspace.lines()] == [70]


@pytest.mark.parametrize(
    "tell",
    [
        lambda settled: Told(200, {"at": datetime.datetime.now(datetime.UTC)}),
        lambda settled: {"haiku": "rain"},
        lambda settled: Told(200_000, {}),
    ],
    ids=["no JSON", "no Told", "no status of HTTP"],
)
def test_an_answer_that_cannot_be_kept_leaves_no_call_unsettled(workspace, tell):
    with workspace.scope():
        with once(request(workspace)) as claim:
            assert buy(claim, tell) == "rain"
        assert eventually(lambda: workspace.ledger()["spent"] == 70)
        assert workspace.ledger()["reserved"] == 0
        with pytest.raises(IdempotencyLost) as lost, once(request(workspace)):
            pass
    assert lost.value.extra["cost"]["microcents"] == 70
    assert [line.cost for line in workspace.lines()] == [70]


def test_a_block_that_bought_nothing_leaves_its_key_free(workspace, monkeypatch):
    monkeypatch.setattr(repeats, "WAIT_SECONDS", 20.0)
    with workspace.scope():
        for _ in range(2):
            with once(request(workspace)) as found:
                assert isinstance(found, Claim)
    assert workspace.lines() == []


def test_a_claim_inside_guarded_is_refused_where_it_would_be_forgotten(workspace, upstream):
    write = guarded(estimate=5_000_000)(lambda claim: complete(HELLO, claim=claim))
    refused = pytest.raises(ValueError, match=r"^claim: .*guarded")
    with workspace.scope(), once(request(workspace)) as claim, refused:
        write(claim)
    assert upstream.calls == []
    assert workspace.ledger()["spent"] == 0


def test_a_key_that_is_none_is_the_clients_to_mend(acme):
    for key in ["", "x" * 256, "é", "a\0b", "a,b"]:
        with pytest.raises(Invalid) as refused:
            request(acme, key=key)
        assert "255" in refused.value.extra["fields"]["Idempotency-Key"][0]


def test_a_route_that_is_none_is_the_builders_to_mend(acme):
    for route in ["", "r" * 41, "a\0b", None]:
        with pytest.raises(ValueError, match=r"^route .*40"):
            request(acme, route=route)
