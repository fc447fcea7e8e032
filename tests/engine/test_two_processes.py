"""A workspace short of money that several processes serve: who has waited longest is served, whichever serves it."""

import asyncio
import time

import pytest

from billing.engine import opening
from billing.engine.engine import Engine
from billing.engine.opening import open_call
from billing.engine.order import Order
from billing.engine.payers import payer_for
from billing.engine.settling import Final
from billing.errors import BudgetDenied
from billing.outcomes import Outcome
from tests.support.plane import run

AMOUNT = 100_000
SECONDS = 0.3  # of a call


@pytest.fixture
def busy_and_quiet(app):
    """Two engines, each of which knows of the other by the database alone."""

    async def made():
        return [Engine("test"), Engine("test")]

    async def closed():
        for engine in engines:
            await engine.drain(2.0)

    engines = run(made())
    yield engines
    run(closed())


async def _call(engine, workspace):
    """How long a call waited for its money, and None where it was refused."""
    tenant = workspace.tenant
    payer = await payer_for(engine, tenant_id=tenant.pk, slug=tenant.slug, schema=tenant.schema_name)
    order = Order(payer, {"tenant": payer.subject_tenant}, "test.call", "unit", AMOUNT)
    began = time.monotonic()
    try:
        call = await open_call(engine, order)
    except BudgetDenied:
        return None
    waited = time.monotonic() - began
    await call.dispatch()
    await asyncio.sleep(SECONDS)
    await call.settle(Final(0, Outcome.EXACT))
    return waited


@pytest.mark.parametrize("callers", [2, 6])
def test_who_waits_on_one_process_is_not_passed_by_all_who_come_later_on_another(
    workspace, busy_and_quiet, callers, settings
):
    """The process whose call ends hears of it first. It took what came free for its own, however long others waited."""
    settings.BUDGET_WAIT_SECONDS = 40
    workspace.leave(2 * AMOUNT)
    busy, quiet = busy_and_quiet

    async def story():
        served, waited = [], []

        async def go_on():
            while len(waited) < 4:
                served.append(await _call(busy, workspace))

        async def now_and_then():
            await asyncio.sleep(1.0)
            for _ in range(4):
                waited.append(await _call(quiet, workspace))
                await asyncio.sleep(0.6)

        await asyncio.gather(now_and_then(), *(go_on() for _ in range(callers)))
        return served, waited

    served, waited = run(story())
    assert None not in waited, waited
    assert max(waited) < 20, waited
    assert None not in served
    # What nobody waits for any more is given way to no longer than it takes to say so.
    assert len(served) > 2 * sum(waited), "the other process stood still meanwhile"


def test_nothing_is_said_to_other_processes_where_the_money_comes_soon(
    workspace, busy_and_quiet, monkeypatch, settings
):
    # Of a machine's own slowness nobody is to be told here.
    monkeypatch.setattr(opening, "LONG_SECONDS", 30.0)
    settings.BUDGET_WAIT_SECONDS = 60
    workspace.leave(AMOUNT)
    told = []
    monkeypatch.setattr(Engine, "tell_of_waiting", lambda *what: told.append(what))

    async def story():
        return await asyncio.gather(*(_call(busy_and_quiet[0], workspace) for _ in range(3)))

    assert max(run(story())) < opening.LONG_SECONDS
    assert told == []
