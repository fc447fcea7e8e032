"""200 answers of /v1 under way at two planes while their key, their workspace or their limit ends.

What was held before is served and paid, once each; what is asked a second later is refused at either plane. globex is
asked beside, and answers on.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack

import httpx
import pytest
from django.utils import timezone

from billing.models import Account
from billing.usage.models import UsageLine
from tenants.models import Tenant
from tenants.users.keys import digest
from tenants.users.models import ApiKey
from tests.support.factories import WorkspaceFactory
from tests.support.plane import PlaneProcess

pytestmark = pytest.mark.slow

STREAMS = 200
WORDS = 30
CHAT = "/v1/chat/completions"
ASK = {"model": "test-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": WORDS}
# What the fake model reports of each: 10 tokens of input, WORDS of output.
COST = 10 * 1_000 + WORDS * 4_000


@pytest.fixture(scope="module")
def planes(database_url, authority, app, upstream_server):
    given = {
        "LLM_BASE_URL": upstream_server.base_url,
        "LLM_MODEL": "test-model",
        "LLM_PRICES": '{"test-model": {"input": 10, "output": 40}}',
        "LOOKUPS_KEPT_SECONDS": "30",
        "BUDGET_WAIT_SECONDS": "0.1",
    }
    with ExitStack() as stack:
        yield [
            stack.enter_context(PlaneProcess(database_url=database_url, authority=authority, **given)) for _ in range(2)
        ]


def revoked(workspace, key):
    with workspace.scope():
        ApiKey.objects.filter(digest=digest(key)).update(revoked_at=timezone.now())


def suspended(workspace, key):
    Tenant.objects.filter(pk=workspace.tenant.pk).update(status=Tenant.Status.SUSPENDED)


def frozen(workspace, key):
    Account.objects.filter(pk=workspace.account.pk).update(status=Account.Status.FROZEN)


def lowered(workspace, key):
    with workspace.scope():
        pk = ApiKey.objects.get(digest=digest(key)).pk
    answer = workspace.client(workspace.owner).post(f"/settings/keys/{pk}/limit/", {"amount": "0.00001"})
    assert answer.status_code == 302, answer.content


async def streamed(client, plane, key):
    """Status, and the whole answer."""
    headers = {"Host": f"localhost:{plane.port}", "Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{plane.port}{CHAT}"
    async with client.stream("POST", url, json={**ASK, "stream": True}, headers=headers) as answer:
        return answer.status_code, await answer.aread()


async def asked_meanwhile(planes, workspace, key, neighbours, change, upstream):
    """The 200 answers, what each plane says a second after the change, and what it says to the neighbour then.

    The answers are under way until both were refused: the model keeps their last words for as long as that takes.
    """
    upstream.last_word_after = asked = threading.Event()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:
        readers = [asyncio.create_task(streamed(client, planes[at % 2], key)) for at in range(STREAMS)]
        while len(upstream.calls) < STREAMS:  # the fake model has no event to wait for
            assert not any(reader.done() for reader in readers), "one of them was refused"
            await asyncio.sleep(0.02)
        await asyncio.to_thread(change, workspace, key)
        await asyncio.sleep(1.0)
        after = [(await streamed(client, plane, key))[0] for plane in planes]
        assert not any(reader.done() for reader in readers)
        asked.set()
        beside = [(await streamed(client, plane, neighbours))[0] for plane in planes]
        return await asyncio.gather(*readers), after, beside


@pytest.mark.parametrize(("change", "status"), [(revoked, 401), (suspended, 403), (frozen, 403), (lowered, 402)])
def test_what_is_under_way_ends_and_is_paid_and_nothing_more_is_bought(planes, globex, upstream, change, status):
    workspace = WorkspaceFactory()
    workspace.leave(500_000_000)
    key, neighbours = workspace.key(), globex.key()
    upstream.tokens = ["word "] * WORDS
    answers, after, beside = asyncio.run(asked_meanwhile(planes, workspace, key, neighbours, change, upstream))
    assert after == [status, status]
    assert beside == [200, 200]
    assert {answer[0] for answer in answers} == {200}
    assert all(answer[1].count(b"word ") == WORDS for answer in answers)
    assert all(answer[1].endswith(b"data: [DONE]\n\n") for answer in answers)
    lines = workspace.settled(lines=STREAMS, seconds=30)
    assert {(line.cost, line.outcome) for line in lines} == {(COST, "exact")}
    assert len(lines) == STREAMS
    assert workspace.ledger()["spent"] == STREAMS * COST
    with globex.scope():
        assert UsageLine.objects.filter(cost=COST).count() >= 2
