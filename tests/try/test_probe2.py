import gc, time, threading, contextvars, asyncio, os, sys
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
import pytest
from django.db import connection, transaction
from django.http import StreamingHttpResponse
from billing.guard import guarded, reserve, current_reservation, get_context
from billing.models import Hold, Process
from chat.calls import complete, stream, acomplete, astream
from chat.models import Conversation
from billing.engine import loop as L
from tenants.context import tenant_scope, current_tenant
from tests.support.money import eventually
from tests.try_.common import *

pytestmark = pytest.mark.usefixtures("app")
BIG = 50_000_000


def in_scope(w, f):
    with w.scope():
        return f()


def test_guarded_complete(workspace, upstream, settings, model):
    ask = guarded(BIG, app="haiku", user_id=1)(lambda **kw: complete(MSG, app="inner", **kw))
    print()
    attempt(lambda: in_scope(workspace, ask))
    say(workspace, "guarded+complete up")
    upstream.status = 500
    attempt(lambda: in_scope(workspace, ask))
    say(workspace, "guarded+complete 500")
    upstream.status = 429
    attempt(lambda: in_scope(workspace, ask))
    say(workspace, "guarded+complete 429")
    upstream.status = None
    upstream.drop = True
    attempt(lambda: in_scope(workspace, ask))
    say(workspace, "guarded+complete reset -> unknown")
    upstream.drop = False
    upstream.cut_after = 2
    attempt(lambda: in_scope(workspace, ask))
    say(workspace, "guarded+complete cut after 2 -> estimated")
    upstream.cut_after = None
    upstream.delay_first = 2.0
    attempt(lambda: in_scope(workspace, ask))
    say(workspace, "guarded+complete slow")
    upstream.delay_first = 0
    settings.LLM_BASE_URL = "http://127.0.0.1:9/v1"
    attempt(lambda: in_scope(workspace, ask))
    say(workspace, "guarded+complete nobody there")


def test_guarded_caught_failure(workspace, upstream, model):
    """The builder catches ModelFailed and answers something else."""
    upstream.status = 500

    @guarded(BIG, app="haiku", actual=lambda r: r.cost if r else 0)
    def ask():
        from chat.errors import ModelFailed

        try:
            return complete(MSG)
        except ModelFailed:
            return None

    print()
    attempt(lambda: in_scope(workspace, ask))
    say(workspace, "guarded catches ModelFailed, 500")


def test_small_estimate(workspace, upstream, model):
    for e in (0, 1, 5_000, 20_000):
        print()
        attempt(lambda: in_scope(workspace, guarded(e, app="haiku")(lambda: complete(MSG))))
        say(workspace, f"guarded estimate {e} with complete")


def test_guarded_returns_stream(workspace, upstream, model):
    upstream.tokens = ["a"] * 40
    upstream.delay_between = 0.02
    words = attempt(lambda: in_scope(workspace, guarded(BIG, app="haiku")(lambda: stream(MSG))))
    say(workspace, "guarded returned a stream (before reading)")
    attempt(lambda: "".join(words))
    say(workspace, "guarded returned a stream, read")
    print(upstream.spent, "aborted", upstream.aborted)


def test_guarded_view_streams(workspace, upstream, model):
    @guarded(BIG, app="haiku")
    def view():
        return StreamingHttpResponse(stream(MSG))

    r = attempt(lambda: in_scope(workspace, view))
    if r:
        attempt(lambda: b"".join(r))
        r.close()
    say(workspace, "guarded view returned StreamingHttpResponse")


def test_two_at_once_within(workspace, upstream, model):
    """asyncio.to_thread / copy_context: two answers under one hold at the same time."""
    upstream.tokens = ["a"] * 500
    upstream.delay_first = 0.3
    workspace.leave(100_000_000)
    from chat.history import prompt_bound

    hold = 10 * 1000 + 100 * 4000  # enough for one of 100

    @guarded(hold, app="haiku")
    def both():
        with ThreadPoolExecutor(2) as pool:
            fs = [pool.submit(contextvars.copy_context().run, complete, MSG, max_tokens=100) for _ in range(2)]
            return [f.result().usage for f in fs]

    print()
    attempt(lambda: in_scope(workspace, both))
    say(workspace, "two at once within one hold")
    print(upstream.spent)


def test_two_in_turn_within(workspace, upstream, model):
    upstream.tokens = ["a"] * 500
    hold = 10 * 1000 + 100 * 4000

    @guarded(hold, app="haiku")
    def both():
        return [complete(MSG, max_tokens=100).usage for _ in range(2)]

    print()
    attempt(lambda: in_scope(workspace, both))
    say(workspace, "two in turn within one hold")
    print(upstream.spent)


def test_threads(workspace, upstream, model):
    out = []

    def run(f):
        t = threading.Thread(target=lambda: out.append(attempt(f)))
        t.start()
        t.join()

    print()
    with workspace.scope():
        run(lambda: complete(MSG))
        print("   (bare thread)")
        run(lambda: guarded(100)(lambda: 1)())
        with ThreadPoolExecutor(1) as p:
            attempt(lambda: p.submit(complete, MSG).result())
        run(lambda: reserve(workspace.tenant, **ASK, estimate=5).settle())
        print("   (reserve(tenant))")

        def in_thread():
            with tenant_scope(workspace.tenant):
                return complete(MSG).cost

        run(in_thread)
    say(workspace, "threads")


def test_other_tenant(workspace, globex, upstream, model):
    g = globex.ledger()["spent"]
    kept = []

    @guarded(BIG, app="haiku")
    def mixed():
        with globex.scope():
            c = complete(MSG, keep=lambda c: kept.append(current_tenant().slug))
            return c.cost

    print()
    attempt(lambda: in_scope(workspace, mixed))
    say(workspace, "second tenant bound within guarded: complete")
    time.sleep(0.3)
    print("   globex spent", globex.ledger()["spent"] - g, kept)

    @guarded(BIG, app="haiku")
    def outer():
        with globex.scope():
            return guarded(10)(lambda: current_reservation().tenant.slug)()

    attempt(lambda: in_scope(workspace, outer))
    say(workspace, "nested guarded of the other tenant")
    print("   globex spent", globex.ledger()["spent"] - g)


def test_no_tenant(app, upstream, model):
    print()
    attempt(lambda: complete(MSG))
    attempt(lambda: stream(MSG))
    attempt(lambda: guarded(1)(lambda: 1)())
    attempt(lambda: reserve(**ASK, estimate=1))
    attempt(lambda: complete(MSG, keep=print))


@pytest.mark.parametrize(
    "kw",
    [
        dict(max_tokens=0),
        dict(max_tokens=-5),
        dict(max_tokens=10**9),
        dict(max_tokens="7"),
        dict(max_tokens=2.5),
        dict(model="nope"),
        dict(model=None),
        dict(app="my app"),
        dict(app=None),
        dict(user_id="x"),
        dict(workflow="a b"),
        dict(bogus=1),
        dict(keep=5),
        dict(app="ü"),
        dict(tags=["t"] * 30),
        dict(action_name="x" * 300),
        dict(dimensions={"a": 1}),
        dict(user_id=2**63),
        dict(model="m" * 300),
        dict(dimensions={"a": {1}}),
    ],
    ids=str,
)
def test_options(workspace, upstream, model, settings, kw):
    if kw.get("model", "") and len(kw["model"]) == 300:
        settings.LLM_PRICES = {**settings.LLM_PRICES, kw["model"]: {"input": 1, "output": 1}}
    print()
    attempt(lambda: in_scope(workspace, lambda: complete(MSG, **kw)))
    say(workspace, f"complete {kw!s:.60}")
    print("calls", [c.get("max_tokens") or c.get("max_completion_tokens") for c in upstream.calls])


@pytest.mark.parametrize(
    "m",
    [
        "hello",
        [],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        [{"role": "user", "content": ""}],
        [{"role": "assistant", "content": "hi"}],
        [{"role": "tool", "content": "hi"}, {"role": "user", "content": "x"}],
        [{"role": "user", "content": "a\x00\ud800b"}],
        None,
        ({"role": "user", "content": "gen"} for _ in range(1)),
        [{"role": "user", "content": "x" * 2_000_000}],
    ],
    ids=lambda m: str(m)[:30],
)
def test_messages(workspace, upstream, model, m):
    print()
    attempt(lambda: in_scope(workspace, lambda: complete(m).text))
    say(workspace, f"messages {str(m)[:40]}")


def test_keep(workspace, upstream, model):
    owner = workspace.owner.pk
    log = []

    def writes(c):
        log.append((current_tenant().slug, threading.current_thread().name))
        Conversation.objects.create(owner_id=owner, title=c.text[:50])

    def fails(c):
        log.append("fails")
        raise RuntimeError("mine")

    def opens(c):
        with transaction.atomic():
            Conversation.objects.create(owner_id=owner, title="t")
        with transaction.atomic():
            Conversation.objects.create(owner_id=owner, title="rolled")
            raise RuntimeError

    def buys(c):
        log.append(complete(MSG, app="again").cost)

    def slow(c):
        time.sleep(1.5)
        log.append("slow done")

    async def is_async(c):
        log.append("async ran")

    for k in (writes, fails, opens, buys, slow, is_async):
        n = len(log)
        t = time.monotonic()
        print()
        attempt(lambda: in_scope(workspace, lambda: complete(MSG, keep=k).cost))
        print(f"   returned after {time.monotonic() - t:.2f}; log at return {log[n:]}")
        say(workspace, f"keep {k.__name__}")
        time.sleep(1.7 if k is slow else 0.3)
        print("   log", log[n:])
    with workspace.scope():
        print("   rows", list(Conversation.objects.values_list("title", flat=True)))
    attempt(lambda: in_scope(workspace, lambda: guarded(BIG, app="g")(lambda: complete(MSG, keep=buys).cost)()))
    say(workspace, "keep buys inside guarded")
    time.sleep(0.5)
    print("   log", log[-2:])
    log.clear()
    upstream.status = 500
    attempt(lambda: in_scope(workspace, lambda: complete(MSG, keep=lambda c: log.append(c)).cost))
    time.sleep(0.3)
    print("   keep after a 500 got:", log)
    log.clear()
    upstream.status = None
    upstream.cut_after = 2
    attempt(lambda: in_scope(workspace, lambda: complete(MSG, keep=lambda c: log.append(c)).cost))
    time.sleep(0.3)
    print("   keep after a cut got:", log)


def test_stream_sync(workspace, upstream, model):
    kept = []
    k = lambda c: kept.append((c.text, c.finish_reason, c.cost, current_tenant().slug))
    upstream.tokens = ["w "] * 20
    upstream.delay_between = 0.03
    print()
    with workspace.scope():
        r = StreamingHttpResponse(stream(MSG, keep=k))
    it = iter(r)
    got = [next(it) for _ in range(3)]
    r.close()
    say(workspace, "response closed after 3")
    time.sleep(0.3)
    print(got, kept, upstream.spent, upstream.aborted)
    kept.clear()
    with workspace.scope():
        s = stream(MSG, keep=k)
        next(s)
        next(s)
        del s
    gc.collect()
    say(workspace, "dropped after 2")
    time.sleep(0.3)
    print(kept, upstream.spent, upstream.aborted)
    kept.clear()

    def loop():
        for i, w in enumerate(stream(MSG, keep=k)):
            if i == 2:
                raise ZeroDivisionError

    attempt(lambda: in_scope(workspace, loop))
    say(workspace, "exception in the loop")
    time.sleep(0.3)
    print(kept, upstream.spent, upstream.aborted)
    kept.clear()
    with workspace.scope():
        s = stream(MSG, keep=k)
    del s
    say(workspace, "dropped unread")
    time.sleep(0.3)
    print(kept, upstream.spent)
    kept.clear()

    def gen():
        for w in stream(MSG, keep=k):
            yield w

    with workspace.scope():
        r = StreamingHttpResponse(gen())
    attempt(lambda: b"".join(r))
    say(workspace, "stream() called inside the generator, after the tenant is left")

    def gen2():
        for w in s:
            yield f"data: {w}\n\n"

    with workspace.scope():
        s = stream(MSG, keep=k)
    r = StreamingHttpResponse(gen2())
    r.close()
    say(workspace, "builder's generator closed before it began")
    del s
    gc.collect()
    time.sleep(0.5)
    print("   after del", kept)
    say(workspace, "..")
    upstream.status = 500
    with workspace.scope():
        s = attempt(lambda: stream(MSG, keep=k))
    if s:
        r = StreamingHttpResponse(s)
        print("   status", r.status_code)
        attempt(lambda: b"".join(r))
    say(workspace, "stream, model 500")


def test_connection_given_back(workspace, upstream, model):
    seen = []
    upstream.usage = lambda b: (seen.append(1), None)[1]
    import chat.llm

    def probe(f):
        got = []
        upstream.delay_first = 0.3
        with workspace.scope():
            Conversation.objects.count()
            conn = connection.connection
            main = connection
            t = threading.Timer(0.25, lambda: got.append(main.connection is not None) if False else None)
            import django.db

            wrapper = django.db.connections["default"]
            t = threading.Timer(0.2, lambda: got.append(wrapper.connection is None))
            t.start()
            f()
            t.join()
        return got

    print("\n   complete: given back", probe(lambda: complete(MSG)))
    print("   guarded: given back", probe(lambda: guarded(BIG)(lambda: complete(MSG))()))
    print("   stream: given back", probe(lambda: "".join(stream(MSG))))


def test_iterator(workspace, upstream, model):
    owner = workspace.owner.pk
    with workspace.scope():
        for i in range(5):
            Conversation.objects.create(owner_id=owner, title=str(i))

        def command():
            n = 0
            for c in Conversation.objects.all().iterator(chunk_size=2):
                guarded(100, actual=1)(lambda: 1)()
                n += 1
            return n

        print()
        attempt(command)

        def command2():
            n = 0
            for c in Conversation.objects.all().iterator(chunk_size=2):
                complete(MSG)
                n += 1
            return n

        attempt(command2)
    say(workspace, "queryset.iterator around guarded")


def test_reserve_without_settle(workspace, upstream, model):
    print()
    r = reserve(workspace.tenant, **ASK, estimate=10_000)
    del r
    gc.collect()
    say(workspace, "reserve dropped")
    r = reserve(workspace.tenant, **ASK, estimate=10_000)
    r.dispatch(lambda: 1)
    r.record(cost=7)
    del r
    gc.collect()
    say(workspace, "dispatched, recorded, dropped")
    r = reserve(workspace.tenant, **ASK, estimate=10_000)
    r.dispatch(lambda: 1)
    del r
    gc.collect()
    say(workspace, "dispatched, dropped")

    def f():
        with reserve(workspace.tenant, **ASK, estimate=10_000) as p:
            raise KeyError("before")

    attempt(f)
    say(workspace, "exception before dispatch")

    def f2():
        with reserve(workspace.tenant, **ASK, estimate=10_000) as p:
            return complete(MSG)

    attempt(f2)
    say(workspace, "reserve() then complete without dispatch")

    def f3():
        with workspace.scope(), reserve(workspace.tenant, **ASK, estimate=BIG) as p:
            return p.dispatch(complete, MSG).cost

    attempt(f3)
    say(workspace, "reserve().dispatch(complete)")

    def f4():
        with reserve(workspace.tenant, **ASK, estimate=10_000) as p:
            p.record(cost=500)

    attempt(f4)
    say(workspace, "recorded, never dispatched")

    def f5():
        r = reserve(workspace.tenant, **ASK, estimate=10_000)
        r.settle()
        return r.dispatch(lambda: 1)

    attempt(f5)


def test_atomic(workspace, upstream, model):
    print()
    with workspace.scope(), transaction.atomic():
        attempt(lambda: complete(MSG))
        attempt(lambda: stream(MSG))
        attempt(lambda: guarded(1)(lambda: 1)())
        attempt(lambda: reserve(**ASK, estimate=1))

    @guarded(1000, actual=5)
    def f():
        with transaction.atomic():
            return complete(MSG)

    attempt(lambda: in_scope(workspace, f))
    say(workspace, "complete in atomic inside guarded")
    connection.set_autocommit(False)
    try:
        with workspace.scope():
            Conversation.objects.create(owner_id=1, title="unsaved") if False else None
            attempt(lambda: guarded(10)(lambda: 1)())
    finally:
        try:
            connection.set_autocommit(True)
        except Exception as e:
            print("   autocommit", e)
    say(workspace, "autocommit off")


def test_asyncio_run(workspace, upstream, model, capfd):
    print()
    engines = len(L._engines)
    procs = Process.objects.count()
    connection.close()

    async def a():
        with_ = tenant_scope  # ORM enter would touch connection only lazily
        from tenants.context import bind

        bind(workspace.tenant)
        return (await acomplete(MSG)).cost

    async def b():
        from tenants.context import bind

        bind(workspace.tenant)
        return complete(MSG)

    async def c():
        from tenants.context import bind

        bind(workspace.tenant)
        ans = await astream(MSG)
        async for w in ans.events():
            break
        ans.leave()
        return "left"

    async def d():
        from tenants.context import bind

        bind(workspace.tenant)
        return await asyncio.to_thread(guarded(100, actual=3)(lambda: 1))

    async def e():
        from tenants.context import bind

        bind(workspace.tenant)
        return guarded(100)(lambda: 1)()

    for f in (a, b, c, d, e):
        attempt(lambda: asyncio.run(f()))
        gc.collect()
        say(workspace, f"asyncio.run {f.__name__}")
    print("   engines", engines, "->", len(L._engines), "processes", procs, "->", Process.objects.count())


def _child(w, q):
    from django.db import connections

    for c in connections.all(initialized_only=True):
        c.connection = None
    try:
        with w.scope():
            q.put(("ok", complete(MSG).cost))
    except BaseException as e:
        q.put((type(e).__name__, str(e)[:200]))


def test_fork(workspace, upstream, model):
    print()
    with workspace.scope():
        complete(MSG)
    ctx = multiprocessing.get_context("fork")
    q = ctx.Queue()
    p = ctx.Process(target=_child, args=(workspace, q))
    p.start()
    print("   child", q.get(timeout=20))
    p.join(10)
    print("   exit", p.exitcode)
    say(workspace, "multiprocessing fork")
    # os.fork inside a reservation; the child unwinds through the with block
    paid = reserve(workspace.tenant, **ASK, estimate=10_000)
    paid.dispatch(lambda: 1)
    paid.record(cost=3)
    connection.close()
    pid = os.fork()
    if pid == 0:
        try:
            t = time.monotonic()
            try:
                paid.settle()
                m = "child settled"
            except BaseException as e:
                m = f"child {type(e).__name__} {e}"
            os.write(2, f"   {m} {time.monotonic() - t:.1f}s\n".encode())
            del paid
            gc.collect()
            time.sleep(0.5)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    l = workspace.ledger()
    print("   after the child: reserved", l["reserved"], "spent", l["spent"], "holds", workspace.holds())
    paid.record(cost=9)
    paid.settle()
    say(workspace, "fork inside a reservation: parent settles 9")
    with workspace.scope():
        attempt(lambda: complete(MSG).cost)
    s = None
    with workspace.scope():
        upstream.tokens = ["a"] * 30
        upstream.delay_between = 0.03
        s = stream(MSG)
        next(s)
    connection.close()
    pid = os.fork()
    if pid == 0:
        try:
            del s
            gc.collect()
            time.sleep(0.3)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    attempt(lambda: len("".join(s)))
    say(workspace, "fork under a stream")


def test_short_ttl(workspace):
    print()

    @guarded(1000, actual=5, ttl_ms=1000)
    def f():
        time.sleep(2.5)
        return workspace.ledger()["reserved"]

    attempt(lambda: in_scope(workspace, f))
    say(workspace, "ttl 1 s, work 2.5 s")
