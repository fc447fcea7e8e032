import gc, time, threading, traceback, contextvars, asyncio, os, decimal
from concurrent.futures import ThreadPoolExecutor
import pytest
from django.db import connection, transaction
from billing.guard import *
from billing.guard import guarded, reserve, current_reservation, get_context, Metrics
from billing.models import Hold
from chat.calls import complete, stream
from tests.support.money import eventually

pytestmark = pytest.mark.usefixtures("app")
ASK = {"app": "test", "action_kind": "test.call", "action_name": "unit"}
MSG = [{"role": "user", "content": "hello"}]


def say(w, what, wait=1.0):
    t = time.monotonic()
    while time.monotonic() - t < wait and (w.holds() or w.ledger()["reserved"]):
        time.sleep(0.05)
    l = w.ledger()
    print(
        f"\n## {what}\n   spent={l['spent']} reserved={l['reserved']} holds={w.holds()} lines={[(x.cost, x.outcome, x.overrun, x.app, x.tokens_input, x.tokens_output) for x in w.lines()]}"
    )


def attempt(f):
    try:
        r = f()
        print("   ->", repr(r)[:300])
        return r
    except BaseException as e:
        c = e.__cause__
        print("   !!", type(e).__name__, str(e)[:300], "| cause", type(c).__name__ if c else None)


VALUES = {
    "actual float": dict(actual=0.5),
    "actual decimal": dict(actual=decimal.Decimal(5)),
    "actual None": dict(actual=lambda r: None),
    "actual negative": dict(actual=-1),
    "actual str": dict(actual="5"),
    "actual bool": dict(actual=True),
    "actual huge": dict(actual=2**70),
    "actual above": dict(actual=5000),
    "actual raises": dict(actual=lambda r: r["cost"]),
    "estimate 0": dict(estimate=0),
    "estimate neg": dict(estimate=-1),
    "estimate huge": dict(estimate=2**63),
    "estimate 2^62": dict(estimate=2**62),
    "estimate float": dict(estimate=10.5),
    "estimate None": dict(estimate=lambda: None),
    "estimate str": dict(estimate="5"),
    "estimate decimal": dict(estimate=decimal.Decimal(5)),
    "least above": dict(least=5000),
    "least float": dict(least=0.5),
    "app space": dict(app="my app"),
    "app long": dict(app="x" * 129),
    "app 128": dict(app="x" * 128),
    "app None": dict(app=None),
    "app empty": dict(app=""),
    "app unicode": dict(app="häiku"),
    "app upper": dict(app="Haiku"),
    "app int": dict(app=5),
    "workflow long": dict(workflow="w" * 129),
    "workflow 128": dict(workflow="w" * 128),
    "workflow unicode": dict(workflow="ü"),
    "workflow empty": dict(workflow=""),
    "user str": dict(user_id="abc"),
    "user numstr": dict(user_id="7"),
    "user neg": dict(user_id=-1),
    "user huge": dict(user_id=2**63),
    "user 0": dict(user_id=0),
    "user object": dict(user_id=object()),
    "user bool": dict(user_id=True),
    "key neg": dict(key_id=-1),
    "key str": dict(key_id="abc"),
    "dim nonstr": dict(dimensions={"a": 5}),
    "dim long": dict(dimensions={"a": "x" * 300}),
    "dim unicode": dict(dimensions={"ü": "ü"}),
    "dim many": dict(dimensions={f"k{i}": "v" for i in range(40)}),
    "dim list": dict(dimensions=["a"]),
    "dim nul": dict(dimensions={"a": "\x00"}),
    "dim set": dict(dimensions={"a": {1}}),
    "kind long": dict(action_kind="k" * 65),
    "kind empty": dict(action_kind=""),
    "kind None": dict(action_kind=None),
    "kind space": dict(action_kind="my kind"),
    "name long": dict(action_name="n" * 257),
    "name empty": dict(action_name=""),
    "name None": dict(action_name=None),
    "name nul": dict(action_name="a\x00b"),
    "name unicode": dict(action_name="ü" * 256),
    "tags many": dict(action_tags=["t"] * 20),
    "tags str": dict(action_tags="abc"),
    "tags long": dict(action_tags=["t" * 100]),
    "grace neg": dict(grace_period_ms=-1),
    "grace huge": dict(grace_period_ms=10**9),
    "ttl float": dict(ttl_ms=5000.5),
    "ttl big": dict(ttl_ms=86_400_000),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(workspace, globex, name):
    opts = {"estimate": 1000, **VALUES[name]}
    ran = []

    def f():
        ran.append(1)
        return {"text": "x"}

    print("\n##", name)

    def go():
        with workspace.scope():
            return guarded(**opts)(f)()

    attempt(go)
    print("   ran", ran)
    say(workspace, name)


RECORDS = {
    "cost float": dict(cost=0.5),
    "cost decimal": dict(cost=decimal.Decimal(5)),
    "cost None": dict(cost=None),
    "tokens float": dict(cost=5, tokens_input=1.5),
    "tokens huge": dict(cost=5, tokens_input=2**63),
    "model None": dict(cost=5, model=None),
    "model nul": dict(cost=5, model="a\x00b"),
    "model long": dict(cost=5, model="m" * 1000),
    "model int": dict(cost=5, model=7),
    "outcome bogus": dict(cost=5, outcome="bogus"),
    "outcome none": dict(cost=5, outcome="none"),
    "cost bool": dict(cost=True),
    "model surrogate": dict(cost=5, model="\ud800"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records(workspace, name):
    def f():
        current_reservation().record(**RECORDS[name])
        return "x"

    print("\n## record", name)

    def go():
        with workspace.scope():
            return guarded(1000)(f)()

    attempt(go)
    say(workspace, name)


METRICS = {
    "tokens neg": lambda: Metrics(tokens_input=-1),
    "custom": lambda: Metrics(tokens_input=5, tokens_output=7, model_version="x" * 128, custom={"a": 1}),
    "version None": lambda: Metrics(tokens_input=3),
    "not metrics": lambda: {"tokens_input": 3},
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics(workspace, name):
    def f():
        get_context().metrics = METRICS[name]()
        return "x"

    print("\n## metrics", name)

    def go():
        with workspace.scope():
            return guarded(1000, actual=50)(f)()

    attempt(go)
    say(workspace, name)
